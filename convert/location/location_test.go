package location

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParse(t *testing.T) {
	const hash = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for _, test := range []struct {
		in   string
		want Location
		err  bool
	}{
		{in: "oci:/a/b", want: Location{kind: layoutKind, path: "/a/b"}},
		{in: "oci:a:1.0", want: Location{kind: layoutKind, path: "a", tag: "1.0"}},
		{in: "oci:/x:y/b", want: Location{kind: layoutKind, path: "/x:y/b"}},
		{in: "oci:/x:y/b:t", want: Location{kind: layoutKind, path: "/x:y/b", tag: "t"}},
		{in: "oci:b@" + hash, want: Location{kind: layoutKind, path: "b", hash: hash}},
		{in: "docker-archive:f.tar", want: Location{kind: archiveKind, path: "f.tar"}},
		{in: "docker-archive:f.tar:app:1", want: Location{kind: archiveKind, path: "f.tar", tag: "app:1"}},
		{in: "oci:", err: true},
		{in: "oci:b@sha256:12", err: true},
		{in: "docker-archive:", err: true},
		{in: "", err: true},
		{in: "UPPER/case:1", err: true},
	} {
		got, err := Parse(test.in, Options{})
		if test.err {
			if !errors.Is(err, ErrSyntax) {
				t.Errorf("%q: got %v, want ErrSyntax", test.in, err)
			}
			continue
		}
		test.want.raw = test.in
		if err != nil || got != test.want {
			t.Errorf("%q: got %+v, %v; want %+v", test.in, got, err, test.want)
		}
	}
	l, err := Parse("docker://registry.example/app:1", Options{PlainHTTP: true})
	if err != nil || l.Host() != "registry.example" || l.ref.Context().Scheme() != "http" {
		t.Errorf("got %+v, %v", l, err)
	}
}

func blob(s string) (v1.Descriptor, func() (io.ReadCloser, error)) {
	h, n, _ := v1.SHA256(strings.NewReader(s)) // can't fail in memory
	return v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: h, Size: n}, func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(s)), nil
	}
}

func files(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			list = append(list, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func openDir(t *testing.T, name string) Destination {
	t.Helper()
	l, err := Parse("oci:"+name, Options{})
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.OpenDestination(Options{}, Location{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestLayoutIsAsBeforeWithoutCommit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "layout")
	put := func(d Destination, contents ...string) {
		for _, s := range contents {
			desc, open := blob(s)
			if err := d.PutBlob(t.Context(), desc, open); err != nil {
				t.Fatal(err)
			}
		}
	}
	d := openDir(t, dir)
	put(d, "a", "b")
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Dir(dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is there: %v", filepath.Dir(dir), err)
	}

	d = openDir(t, dir+":one")
	put(d, "a")
	desc, _ := blob("manifest")
	if err := d.Commit(t.Context(), desc, []byte("manifest")); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	before := files(t, dir)
	if len(before) != 4 { // a, manifest, index.json, oci-layout
		t.Errorf("got %v", before)
	}
	d = openDir(t, dir+":two")
	put(d, "a", "c")
	broken, open := blob("d")
	failing := func() (io.ReadCloser, error) {
		rc, err := open()
		return struct {
			io.Reader
			io.Closer
		}{io.MultiReader(rc, errReader{}), rc}, err
	}
	if err := d.PutBlob(t.Context(), broken, failing); !errors.Is(err, errBroken) {
		t.Errorf("got %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if after := files(t, dir); strings.Join(after, " ") != strings.Join(before, " ") {
		t.Errorf("got %v, want %v", after, before)
	}
}

var errBroken = errors.New("broken")

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errBroken }

// Several processes may write to one layout.
func TestLayoutKeepsAllNames(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "layout")
	var wg sync.WaitGroup
	for i := range 8 {
		d := openDir(t, fmt.Sprintf("%s:tag%d", dir, i))
		wg.Go(func() {
			s := fmt.Sprintf(`{"n":%d}`, i)
			desc, _ := blob(s)
			if err := d.Commit(context.WithoutCancel(t.Context()), desc, []byte(s)); err != nil {
				t.Error(err)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range 8 {
		l, err := Parse(fmt.Sprintf("oci:%s:tag%d", dir, i), Options{})
		if err != nil {
			t.Fatal(err)
		}
		src, err := l.OpenSource(t.Context(), Options{}, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, raw, err := src.Root(t.Context()); err != nil || string(raw) != fmt.Sprintf(`{"n":%d}`, i) {
			t.Errorf("tag%d: %q, %v", i, raw, err)
		}
	}
	l, err := Parse("oci:"+dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	src, err := l.OpenSource(t.Context(), Options{}, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := src.Root(t.Context()); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "tag3") {
		t.Errorf("got %v, want ErrNotFound that lists the tags", err)
	}
}

// oldArchive is what dockers before 25 save: a layer that two images share is
// there once, and a link to it.
func oldArchive(tb testing.TB) []byte {
	tb.Helper()
	var layer bytes.Buffer
	if err := tar.NewWriter(&layer).Close(); err != nil {
		tb.Fatal(err)
	}
	list, err := json.Marshal([]map[string]any{
		{"Config": "c.json", "RepoTags": []string{"app:1"}, "Layers": []string{"one/layer.tar"}},
		{"Config": "c.json", "RepoTags": []string{"app:2"}, "Layers": []string{"one/layer.tar", "two/layer.tar"}},
	})
	if err != nil {
		tb.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct {
		h       tar.Header
		content []byte
	}{
		{tar.Header{Name: "two/layer.tar", Typeflag: tar.TypeSymlink, Linkname: "../one/layer.tar"}, nil},
		{tar.Header{Name: "one/layer.tar"}, layer.Bytes()},
		{tar.Header{Name: "c.json"}, []byte(`{"os":"linux"}`)},
		{tar.Header{Name: "manifest.json"}, list},
	} {
		f.h.Size = int64(len(f.content))
		if err := w.WriteHeader(&f.h); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write(f.content); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func TestOldArchive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "old.tar")
	if err := os.WriteFile(path, oldArchive(t), 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := Parse("docker-archive:"+path+":app:2", Options{})
	if err != nil {
		t.Fatal(err)
	}
	src, err := l.OpenSource(t.Context(), Options{}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close() //nolint:errcheck // a reader
	_, raw, err := src.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	if len(m.Layers) != 2 || m.Layers[0].Digest != m.Layers[1].Digest || m.Layers[0].Size != 1024 {
		t.Errorf("got %s", raw)
	}
	if l, err = Parse("docker-archive:"+path, Options{}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.OpenSource(t.Context(), Options{}, ""); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "app:1, app:2") {
		t.Errorf("got %v, want ErrNotFound that lists the images", err)
	}
}

func FuzzArchive(f *testing.F) {
	f.Add(oldArchive(f))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, raw []byte) {
		path := filepath.Join(dir, "a.tar")
		if err := os.WriteFile(path, raw, 0o644); err != nil {
			t.Fatal(err)
		}
		src, err := openArchive(t.Context(), Location{path: path, tag: "app:2"}, dir)
		if err != nil {
			return
		}
		defer src.Close() //nolint:errcheck // a reader
		d, raw, err := src.Root(t.Context())
		if h, n, _ := v1.SHA256(bytes.NewReader(raw)); err != nil || h != d.Digest || n != d.Size {
			t.Errorf("root %v, %v", d, err)
		}
	})
}
