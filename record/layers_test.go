package record

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	converter "github.com/airstream-io/airstream/convert/layer"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
)

// blobOf converts a layer with these files, in chunks of 4 KiB, and returns where
// it is.
func blobOf(t *testing.T, files map[string][]byte, group int64) Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range []string{"etc/conf", "usr/bin/app", "usr/bin/tool"} {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(files[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "blob")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := converter.Convert(t.Context(), f, converter.Tar{ReaderAt: bytes.NewReader(b.Bytes()), Size: int64(b.Len())},
		converter.Options{ChunkSize: 4 << 10, GroupSize: group}, converter.NewPool(1), converter.ScratchIn(t.TempDir()), nil)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return Layer{Path: path, Size: r.Size, TOCOffset: r.TOCOffset, TOCDigest: r.TOCDigest.String()}
}

func testFiles() map[string][]byte {
	app := make([]byte, 20_000)
	if _, err := rand.NewChaCha8([32]byte{1}).Read(app); err != nil {
		panic(err) // it never fails
	}
	return map[string][]byte{"etc/conf": []byte("one = 1\n"), "usr/bin/app": app, "usr/bin/tool": []byte(strings.Repeat("tool ", 500))}
}

func lookup(t *testing.T, l *Layers, slot uint32, path string) uint32 {
	t.Helper()
	tree, err := l.Tree(t.Context(), slot)
	if err != nil {
		t.Fatal(err)
	}
	entry := toc.Root
	for name := range strings.SplitSeq(path, "/") {
		next, ok := tree.Lookup(entry, name)
		l.Lookup(slot, entry, name, ok)
		if !ok {
			t.Fatalf("no %s", path)
		}
		entry = next
	}
	return entry
}

func TestLayersServeAndWriteDown(t *testing.T) {
	files := testFiles()
	for _, group := range []int64{0, 64 << 10} {
		l, err := openLayers([]Layer{blobOf(t, map[string][]byte{"etc/conf": []byte("x")}, group), blobOf(t, files, group)})
		if err != nil {
			t.Fatal(err)
		}
		read := func(path string, off, n int) {
			t.Helper()
			c, err := l.Open(t.Context(), 2, lookup(t, l, 2, path))
			if err != nil {
				t.Fatal(err)
			}
			if c.Complete() != nil {
				t.Error("a file that the kernel may read by itself")
			}
			p := make([]byte, n)
			got, err := c.ReadAt(t.Context(), p, int64(off))
			want := files[path][min(off, len(files[path])):min(off+n, len(files[path]))]
			if !bytes.Equal(p[:got], want) || errors.Is(err, io.EOF) != (len(want) < n) || err != nil && !errors.Is(err, io.EOF) {
				t.Errorf("%s at %d: %d bytes, %v; want %d", path, off, got, err, len(want))
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		read("usr/bin/app", 8190, 4)
		read("etc/conf", 0, 100)
		read("usr/bin/app", 0, 10)
		read("usr/bin/app", 8000, 500)
		read("usr/bin/tool", 0, 2500)
		read("usr/bin/app", 20_000, 5)
		l.List(2, toc.Root)
		l.Lookup(1, toc.Root, "usr2", false)
		l.Lookup(9, toc.Root, "x", true) // no such layer
		var got []string
		for _, r := range l.trace().Reads {
			if r.Kind != trace.Content {
				got = append(got, string(r.Kind)+":"+r.Path)
				continue
			}
			got = append(got, r.Path)
			if r.Layer != 1 || r.Chunk == (trace.Hint{}) || r.Offset%4096 != 0 {
				t.Errorf("read %+v", r)
			}
		}
		want := "found:usr found:usr/bin found:usr/bin/app usr/bin/app usr/bin/app found:etc found:etc/conf etc/conf usr/bin/app found:usr/bin/tool usr/bin/tool list:. absent:usr2"
		if s := strings.Join(got, " "); s != want {
			t.Errorf("written down:\n%s\nwant:\n%s", s, want)
		}
		if _, err := l.Tree(t.Context(), 0); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("layer 0: %v", err)
		}
		if _, err := l.Open(t.Context(), 2, toc.Root); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("a directory opened as a file: %v", err)
		}
		if err := l.close(); err != nil {
			t.Error(err)
		}
	}
}

// Nothing that isn't what the layer's digest promises reaches the container.
func TestLayersVerify(t *testing.T) {
	files := testFiles()
	damage := func(at func(l Layer) int64) Layer {
		l := blobOf(t, files, 0)
		b, err := os.ReadFile(l.Path)
		if err != nil {
			t.Fatal(err)
		}
		b[at(l)] ^= 1
		if err := os.WriteFile(l.Path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return l
	}
	if _, err := openLayers([]Layer{damage(func(l Layer) int64 { return (l.TOCOffset + l.Size) / 2 })}); err == nil {
		t.Error("a damaged table was opened")
	}
	other := blobOf(t, files, 0)
	other.TOCDigest = "sha256:" + strings.Repeat("0", 64)
	if _, err := openLayers([]Layer{other}); err == nil || !strings.Contains(err.Error(), "and the layer names sha256:000") {
		t.Errorf("another table: %v", err)
	}
	if _, err := openLayers([]Layer{{Path: "nowhere"}}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no blob: %v", err)
	}
	l, err := openLayers([]Layer{damage(func(l Layer) int64 { return l.TOCOffset / 2 })}) // in the app, which is most of it
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Open(t.Context(), 1, lookup(t, l, 1, "usr/bin/app"))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := c.ReadAt(t.Context(), make([]byte, 20_000), 0); err == nil || n >= 20_000 {
		t.Errorf("%d bytes of a damaged file, %v", n, err)
	}
	if err := l.close(); err != nil {
		t.Error(err)
	}
}
