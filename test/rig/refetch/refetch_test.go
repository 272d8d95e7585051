package refetch

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/store"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/test/rig/checker"
	"github.com/airstream-io/airstream/test/rig/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lazy is an image of one eStargz layer.
type lazy struct {
	img  v1.Image
	blob []byte
	hex  string
	tree *toc.Tree
}

func newLazy(t *testing.T) lazy {
	t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, f := range (checker.Spec{Seed: 1, Size: 1 << 20}).Files() {
		content := make([]byte, f.Size)
		f.Fill(content, 0)
		must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.Path, Size: f.Size, Mode: 0o644}))
		_, err := w.Write(content)
		must(t, err)
	}
	must(t, w.Close())
	built, err := estargz.Build(io.NewSectionReader(bytes.NewReader(archive.Bytes()), 0, int64(archive.Len())), estargz.WithChunkSize(64<<10))
	must(t, err)
	blob, err := io.ReadAll(built)
	must(t, errors.Join(err, built.Close()))
	offset, _, err := estargz.OpenFooter(io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob))))
	must(t, err)
	img, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), mutate.Addendum{
		Layer: static.NewLayer(blob, types.OCILayer),
		Annotations: map[string]string{
			annotation.TOCDigest: built.TOCDigest().String(), annotation.TOCOffset: fmt.Sprint(offset),
		},
	})
	must(t, err)
	zr, err := gzip.NewReader(bytes.NewReader(blob[offset:]))
	must(t, err)
	table := tar.NewReader(zr)
	_, err = table.Next()
	must(t, err)
	tree, err := toc.Parse(table, offset)
	must(t, err)
	return lazy{img, blob, digest.FromBytes(blob).Encoded(), tree}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ask sends a request for a range past the watch.
func ask(w *Watch, l lazy, from, to int64) {
	r := httptest.NewRequest(http.MethodGet, "/v2/app/blobs/sha256:"+l.hex, http.NoBody)
	r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to-1))
	w.Wrap(nil)(registry.KindBlob, httptest.NewRecorder(), r, http.NotFoundHandler())
}

// What is in a real store counts when it is asked for, and what isn't, or is
// damaged, or was lost in a crash, does not.
func TestCountsWhatIsHere(t *testing.T) {
	l, root := newLazy(t), t.TempDir()
	s, err := store.Open(filepath.Join(root, "store"), store.Options{})
	must(t, err)
	w := New(root)
	must(t, w.Add(l.img))
	end := int64(len(l.blob))

	ask(w, l, 0, end)
	want(t, w, l, Count{Asked: end})

	// Half of a file of several chunks is stored.
	const entry = 10 // 3 * 64 KiB
	files := checker.Spec{Seed: 1, Size: 1 << 20}.Files()
	id, path := lookup(t, l.tree, files[entry].Path)
	first, last := l.tree.Chunks(id)
	o, err := s.Object(l.tree.ObjectID(id), files[entry].Size, last-first)
	must(t, err)
	var stored int64
	for c := first; c < last-1; c++ {
		k := l.tree.Chunk(c)
		p := make([]byte, k.Size)
		files[entry].Fill(p, k.Offset)
		must(t, o.Put(c-first, k, p))
		m := l.tree.Member(k.Member)
		stored += m.End - m.Offset
	}
	must(t, o.Close())
	must(t, s.Close())
	if have, total, err := w.Have(l.img); err != nil || have != stored || total <= have {
		t.Errorf("%s: %d of %d bytes are here, %v; want %d", path, have, total, err, stored)
	}
	ask(w, l, 0, end)
	want(t, w, l, Count{Asked: 2 * end, Again: stored})
	missing := l.tree.Member(l.tree.Chunk(last - 1).Member)
	ask(w, l, missing.Offset, missing.End)
	want(t, w, l, Count{Asked: 2*end + missing.End - missing.Offset, Again: stored})

	w.Crash()() // all of it was sent a moment ago
	ask(w, l, 0, end)
	want(t, w, l, Count{Asked: 3*end + missing.End - missing.Offset, Again: stored, Lost: stored})
}

func want(t *testing.T, w *Watch, l lazy, want Count) {
	t.Helper()
	got, err := w.Count(l.img)
	must(t, err)
	got.First = ""
	if got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
}

func lookup(t *testing.T, tree *toc.Tree, name string) (entry uint32, path string) {
	t.Helper()
	entry = toc.Root
	for dir := range bytes.SplitSeq([]byte(name), []byte("/")) {
		var ok bool
		if entry, ok = tree.Lookup(entry, string(dir)); !ok {
			t.Fatalf("no %s", name)
		}
	}
	return entry, name
}
