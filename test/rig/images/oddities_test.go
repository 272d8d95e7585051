package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/airstream-io/airstream/test/rig/tools"
	"github.com/airstream-io/airstream/test/rig/tree"
)

func needRoot(t *testing.T) {
	t.Helper()
	tools.Need(t, tools.Root)
}

func scan(t *testing.T, img *Image) *tree.Tree {
	t.Helper()
	needRoot(t) // to make devices, owners and trusted attributes
	oci, err := img.OCI()
	if err != nil {
		t.Fatal(err)
	}
	found, err := tree.Scan(t.Context(), unpack(t, oci, func(*tar.Header) {}), tree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// containerd itself can unpack the image, and what then is there is what the
// recipe means.
func TestOdditiesUnpack(t *testing.T) {
	found := scan(t, odd(t, "oddities"))

	var changes []string
	for _, path := range found.Paths() {
		if rest, ok := strings.CutPrefix(path, "changes/"); ok {
			changes = append(changes, rest)
		}
	}
	const want = `chmodded deleted-then-added dir-to-symlink file-to-dir file-to-dir/inside file-to-symlink kept ` +
		`opaque-empty opaque-filled opaque-filled/sub opaque-filled/sub/new opaque-filled/sub/newer opaque-late opaque-late/new ` +
		`pair-a pair-c pair-d redone redone/new replaced restyled restyled/sub restyled/sub/old symlink-to-dir symlink-to-dir/inside`
	if got := strings.Join(changes, " "); got != want {
		t.Errorf("changes =\n%s\nwant\n%s", got, want)
	}

	for path, want := range map[string]string{
		"links/file":                `mode 104755 owner 1000:1001 names ["links/file" "links/other/other-dir" "links/same-dir"]`,
		"links/empty":               `mode 100644 owner 0:0 names ["links/empty" "links/empty-too"]`,
		"modes/dir-3777":            `mode 43777 owner 0:0 names ["modes/dir-3777"]`,
		"modes/file-0000":           `mode 100000 owner 0:0 names ["modes/file-0000"]`,
		"owners/4294967294":         `mode 100644 owner 4294967294:4294967293 names ["owners/4294967294"]`,
		"devices/major-above-255":   `mode 60660 owner 0:6 names ["devices/major-above-255"]`,
		"names/new\nline":           `mode 100644 owner 0:0 names ["names/new\nline"]`,
		"names/größe":               `mode 100644 owner 0:0 names ["names/größe"]`,
		"names/gro\u0308ße":         fmt.Sprintf("mode 100644 owner 0:0 names [%q]", "names/gro\u0308ße"),
		"changes":                   `mode 40755 owner 0:0 names ["changes"]`,
		"changes/restyled":          `mode 40711 owner 70000:70001 names ["changes/restyled"]`,
		"devices/minor-above-255":   `mode 20660 owner 0:0 names ["devices/minor-above-255"]`,
		"changes/symlink-to-dir":    `mode 40755 owner 0:0 names ["changes/symlink-to-dir"]`,
		"changes/dir-to-symlink":    `mode 120777 owner 0:0 names ["changes/dir-to-symlink"]`,
		"names/" + longName():       fmt.Sprintf(`mode 100644 owner 0:0 names [%q]`, "names/"+longName()),
		"etc/stargz.index.json":     `mode 100644 owner 0:0 names ["etc/stargz.index.json"]`,
		"links/other/other-dir":     `mode 104755 owner 1000:1001 names ["links/file" "links/other/other-dir" "links/same-dir"]`,
		"links/owned":               `mode 120777 owner 1234:5678 names ["links/owned"]`,
		"links/other/large-too":     `mode 100644 owner 0:0 names ["links/large" "links/other/large-too"]`,
		"sizes/4194305":             `mode 100644 owner 0:0 names ["sizes/4194305"]`,
		"changes/opaque-filled":     `mode 40700 owner 0:0 names ["changes/opaque-filled"]`,
		"devices/fifo":              `mode 10622 owner 0:0 names ["devices/fifo"]`,
		"changes/file-to-symlink":   `mode 120777 owner 0:0 names ["changes/file-to-symlink"]`,
		"changes/pair-a":            `mode 100644 owner 0:0 names ["changes/pair-a"]`,
		"changes/opaque-late/new":   `mode 100644 owner 0:0 names ["changes/opaque-late/new"]`,
		"changes/chmodded":          `mode 100755 owner 0:0 names ["changes/chmodded"]`,
		"names/\u202eright-to-left": `mode 100644 owner 0:0 names ["names/\u202eright-to-left"]`,
	} {
		e := found.Entry(path)
		if e == nil {
			t.Errorf("%q is not there", path)
			continue
		}
		if got := fmt.Sprintf("mode %o owner %d:%d names %q", e.Mode, e.UID, e.GID, e.Names); got != want {
			t.Errorf("%q: %s\nwant %s", path, got, want)
		}
	}
	for path, want := range map[string]time.Time{
		"times/nanosecond":  time.Unix(1_700_000_000, 1),
		"times/before-half": time.Unix(0, 0), // as containerd has it
		"times/epoch":       time.Unix(0, 0),
		"times/far":         time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC),
	} {
		if e := found.Entry(path); e == nil || !e.MTime.Equal(want) {
			t.Errorf("%s has time %v, want %v", path, e.MTime, want)
		}
	}
	for path, want := range map[string]map[string]string{
		"xattrs/capability":        {"security.capability": netBind},
		"xattrs/user":              {"user.text": "plain", "user.binary": "\x00\x01\xff\xfe\x00", "user.ünicode": "ü"},
		"xattrs/trusted":           {}, // as containerd has it
		"xattrs":                   {"user.on-directory": "yes"},
		"links/attributed-too":     {"user.note": "all names have it"},
		"xattrs/none":              {},
		"changes/restyled/sub/old": {},
	} {
		if e := found.Entry(path); e == nil || fmt.Sprint(e.Xattrs) != fmt.Sprint(want) {
			t.Errorf("%s has xattrs %q, want %q", path, e.Xattrs, want)
		}
	}
}

func longName() string { return strings.Repeat("n", 255) }

func TestSingleOdditiesUnpack(t *testing.T) {
	raw := scan(t, odd(t, "odd-rawnames"))
	for _, path := range []string{"raw/latin1-gr\xf6\xdfe", "raw/latin1-gr\xe4\xdfe", "raw/dir-\xff/inside"} {
		if raw.Entry(path) == nil {
			t.Errorf("%q is not there", path)
		}
	}
	if got := raw.Entry("raw/symlink").Target; got != "latin1-gr\xf6\xdfe" {
		t.Errorf("target = %q", got)
	}
	if e := raw.Entry("raw/xattr"); len(e.Xattrs) != 1 || e.Xattrs["user.gr\xf6\xdfe"] != "x" {
		t.Errorf("xattrs = %q", e.Xattrs)
	}

	cross := scan(t, odd(t, "odd-crosslink"))
	if e := cross.Entry("etc/passwd-"); e == nil || len(e.Names) != 2 {
		t.Errorf("etc/passwd- = %+v, want two names", e)
	}

	implied := scan(t, odd(t, "odd-implied"))
	if e := implied.Entry("opt/app/bin"); e == nil || e.Mode != 0o40755 {
		t.Errorf("opt/app/bin = %+v, want a directory", e)
	}

	twice := scan(t, odd(t, "odd-duplicates"))
	if e := twice.Entry("twice/file"); e == nil || e.Size != int64(len("second, and last\n")) || e.Mode != 0o100600 {
		t.Errorf("twice/file = %+v, want the second", e)
	}
	if e := twice.Entry("twice/kind"); e == nil || e.Target != "file" {
		t.Errorf("twice/kind = %+v, want a symlink", e)
	}
}

// What the odd recipes say of eStargz is what estargz does: it decides which of
// them a converter can carry over, and which it has to refuse or treat.
func TestWhatEStargzCanSay(t *testing.T) {
	oci, err := odd(t, "oddities").OCI()
	if err != nil {
		t.Fatal(err)
	}
	for i, layer := range layers(t, oci) {
		if _, err := openAsEStargz(t, layer); err != nil {
			t.Errorf("oddities, layer %d: %v", i, err)
		}
	}
	top := func(name string) (*estargz.Reader, error) {
		oci, err := odd(t, name).OCI()
		if err != nil {
			t.Fatal(err)
		}
		return openAsEStargz(t, layers(t, oci)[1])
	}

	raw, err := top("odd-rawnames")
	if err != nil {
		t.Fatal(err)
	}
	var merged []string
	for _, name := range children(t, raw, "raw") {
		if strings.HasPrefix(name, "latin1-") {
			merged = append(merged, name)
		}
	}
	if want := "latin1-gr\ufffd\ufffde"; len(merged) != 1 || merged[0] != want {
		t.Errorf("two raw names are %q, want them lost in %q", merged, want)
	}

	if _, err := top("odd-crosslink"); err == nil || !strings.Contains(err.Error(), "isn't found") {
		t.Errorf("odd-crosslink: %v, want a complaint about the target", err)
	}

	implied, err := top("odd-implied")
	if err != nil {
		t.Fatal(err)
	}
	if e, ok := implied.Lookup("opt/app"); !ok || e.Type != "dir" || e.Mode != 0o755 || !e.ModTime().IsZero() {
		t.Errorf("opt/app = %+v, want a directory made up, without a time", e)
	}

	twice, err := top("odd-duplicates")
	if err != nil {
		t.Fatal(err)
	}
	if e, ok := twice.Lookup("twice/file"); !ok || e.Size != int64(len("second, and last\n")) || e.Mode != 0o600 {
		t.Errorf("twice/file = %+v, want the second", e)
	}
	if e, ok := twice.Lookup("twice/kind"); !ok || e.Type != "symlink" {
		t.Errorf("twice/kind = %+v, want the symlink", e)
	}
}

func children(t *testing.T, r *estargz.Reader, dir string) []string {
	t.Helper()
	e, ok := r.Lookup(dir)
	if !ok {
		t.Fatalf("no %s in the TOC", dir)
	}
	var names []string
	e.ForeachChild(func(name string, _ *estargz.TOCEntry) bool {
		names = append(names, name)
		return true
	})
	return names
}

// openAsEStargz converts the layer with estargz and opens what comes out.
func openAsEStargz(t *testing.T, layer v1.Layer) (*estargz.Reader, error) {
	t.Helper()
	stream, err := io.ReadAll(uncompressed(t, layer))
	if err != nil {
		t.Fatal(err)
	}
	made, err := estargz.Build(io.NewSectionReader(bytes.NewReader(stream), 0, int64(len(stream))), estargz.WithCompressionLevel(gzip.BestSpeed))
	if err != nil {
		return nil, err
	}
	defer made.Close() //nolint:errcheck // a reader
	whole, err := io.ReadAll(made)
	if err != nil {
		return nil, err
	}
	r, err := estargz.Open(io.NewSectionReader(bytes.NewReader(whole), 0, int64(len(whole))))
	if err != nil {
		return nil, err
	}
	_, err = r.VerifyTOC(made.TOCDigest())
	return r, err
}
