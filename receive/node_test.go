package receive_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/airstream-io/airstream/convert"
	"github.com/airstream-io/airstream/convert/location"
	"github.com/airstream-io/airstream/internal/bundle"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/store"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
	"github.com/airstream-io/airstream/pack"
	"github.com/airstream-io/airstream/receive"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const name = "registry.example/app:1"

// node is a node without a link: its content is in the store, and nothing fetches.
type node struct {
	dir     string
	store   *store.Store
	catalog *catalog.Catalog
	content *content
	*receive.Receiver
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{dir: t.TempDir()}
	n.open(t)
	t.Cleanup(func() { n.close(t) })
	return n
}

func (n *node) open(t *testing.T) {
	t.Helper()
	var err error
	n.store, err = store.Open(filepath.Join(n.dir, "store"), store.Options{Logger: slog.New(slog.DiscardHandler)})
	must(t, err)
	n.catalog, err = catalog.Open(filepath.Join(n.dir, "catalog.db"), slog.New(slog.DiscardHandler))
	must(t, err)
	n.content = &content{n: n}
	n.Receiver, err = receive.Open(filepath.Join(n.dir, "bundles"), n.store, n.catalog, n.content, receive.Options{
		Logger: slog.New(slog.DiscardHandler), Rebuilders: map[string]receive.Rebuilder{"test": reverse{}},
	})
	must(t, err)
}

func (n *node) close(t *testing.T) {
	t.Helper()
	must(t, errors.Join(n.store.Close(), n.catalog.Close()))
}

func (n *node) restart(t *testing.T) {
	t.Helper()
	n.close(t)
	n.open(t)
}

// apply takes a bundle in and wants an error, or none.
func (n *node) apply(t *testing.T, raw []byte, o receive.Order, want error) receive.Result {
	t.Helper()
	res, err := n.Apply(t.Context(), bytes.NewReader(raw), o)
	if want == nil && err != nil || want != nil && !errors.Is(err, want) {
		t.Fatalf("%v, want %v: %+v", err, want, res)
	}
	return res
}

// means tells what a name means; empty: nothing.
func (n *node) means(t *testing.T, name string) string {
	t.Helper()
	tag, err := n.catalog.Tag(name)
	if err != nil {
		return ""
	}
	return tag.Digest.String()
}

// content is receive.Content over a store alone.
type content struct {
	n    *node
	fail int // Push fails when it is down to 1; 0: never
}

var errPush = errors.New("as ordered")

func (c *content) layer(slot uint32) catalog.Layer {
	l, err := c.n.catalog.Layer(slot)
	if err != nil {
		panic(err)
	}
	return l
}

func (c *content) TreeHere(slot uint32) (*toc.Tree, error) {
	t, err := c.n.store.Tree(c.layer(slot).TOC)
	if err != nil {
		return nil, nil //nolint:nilerr // it is not here
	}
	return t, nil
}

func (c *content) PutTable(_ context.Context, slot uint32, json []byte, at int64) (*toc.Tree, error) {
	t, err := toc.Parse(bytes.NewReader(json), at)
	if err != nil {
		return nil, err
	}
	return t, c.n.store.PutTree(c.layer(slot).TOC, t)
}

func (c *content) Push(slot, number uint32, data []byte) error {
	if c.fail > 0 {
		if c.fail--; c.fail == 0 {
			return errPush
		}
	}
	t, err := c.TreeHere(slot)
	if err != nil {
		return err
	}
	entry := t.ChunkFile(number)
	first, end := t.Chunks(entry)
	o, err := c.n.store.Object(t.ObjectID(entry), t.Attr(entry).Size, end-first)
	if err != nil {
		return err
	}
	return errors.Join(o.Put(number-first, t.Chunk(number), data), o.Close())
}

func (c *content) Complete(slots ...uint32) (bool, error) {
	for _, slot := range slots {
		t, err := c.TreeHere(slot)
		if t == nil || err != nil {
			return false, err
		}
		for e := range uint32(t.Len()) {
			first, end := t.Chunks(e)
			if first == end {
				continue
			}
			o, err := c.n.store.Object(t.ObjectID(e), t.Attr(e).Size, end-first)
			if err != nil {
				return false, err
			}
			for k := first; k < end && err == nil; k++ {
				err = o.Check(k-first, t.Chunk(k))
			}
			if cerr := o.Close(); err != nil || cerr != nil {
				return false, cerr
			}
		}
	}
	return true, nil
}

// file is a file of a test image.
type file struct {
	name string
	data []byte
}

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(b) // never fails
	return b
}

// image makes an image with a layer of files; kind changes what it is.
func image(t *testing.T, kind string, files ...file) v1.Image {
	t.Helper()
	var raw bytes.Buffer
	w := tar.NewWriter(&raw)
	for _, f := range files {
		must(t, w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.data))}))
		_, err := w.Write(f.data)
		must(t, err)
	}
	must(t, w.Close())
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.Append(img, mutate.Addendum{Layer: static.NewLayer(raw.Bytes(), types.OCIUncompressedLayer)})
	must(t, err)
	cfg, err := img.ConfigFile()
	must(t, err)
	cfg.OS, cfg.Architecture = "linux", "amd64"
	img, err = mutate.ConfigFile(img, cfg)
	must(t, err)
	if kind == "chart" {
		img = mutate.ConfigMediaType(img, "application/vnd.cncf.helm.config.v1+json")
	}
	return img
}

// source puts an image into a layout, converted if it is to be, and returns it as a
// source and its digest.
func source(t *testing.T, img v1.Image, converted bool, traces ...*trace.Trace) (pack.Source, string) {
	t.Helper()
	dir := t.TempDir()
	l, err := layout.Write(filepath.Join(dir, "plain"), empty.Index)
	must(t, err)
	must(t, l.AppendImage(img))
	place := "oci:" + filepath.Join(dir, "plain")
	if converted {
		from, err := location.Parse(place, location.Options{})
		must(t, err)
		place = "oci:" + filepath.Join(dir, "lazy") + ":1"
		to, err := location.Parse(place, location.Options{})
		must(t, err)
		src, err := from.OpenSource(t.Context(), location.Options{}, dir)
		must(t, err)
		dst, err := to.OpenDestination(location.Options{}, from)
		must(t, err)
		_, err = convert.Run(t.Context(), src, dst, nil, convert.Options{WorkDir: dir, Traces: traces})
		must(t, errors.Join(err, dst.Close(), src.Close()))
	}
	at, err := location.Parse(place, location.Options{})
	must(t, err)
	s, err := at.OpenSource(t.Context(), location.Options{}, dir)
	must(t, err)
	root, _, err := s.Root(t.Context())
	must(t, err)
	return s.(pack.Source), root.Digest.String() //nolint:errcheck // a layout is one
}

// write makes a bundle.
func write(t *testing.T, o pack.Order) []byte {
	t.Helper()
	o.WorkDir = t.TempDir()
	var out bytes.Buffer
	_, err := pack.Write(t.Context(), o, &out)
	must(t, err)
	return out.Bytes()
}

// records takes a bundle apart: its manifest, and the records.
func records(t *testing.T, raw []byte) (manifest []byte, all [][]byte) {
	t.Helper()
	r, err := bundle.NewReader(bytes.NewReader(raw))
	must(t, err)
	defer r.Close()
	_, err = r.Begin()
	must(t, err)
	for {
		_, b, err := r.NextPacked()
		if errors.Is(err, io.EOF) {
			return r.Manifest(), all
		}
		must(t, err)
		all = append(all, b)
	}
}

// versions are an image of which some files change.
func versions(t *testing.T) (one, two v1.Image) {
	t.Helper()
	var files []file
	for i := range uint64(6) {
		files = append(files, file{fmt.Sprintf("usr/lib/file-%d", i), random(i, 140_000)})
	}
	one = image(t, "", files...)
	files[3].data = random(99, 90_000)
	return one, image(t, "", append(files, file{"usr/bin/new", random(100, 70_000)})...)
}

// reverse is a codec for tests: its deltas say nothing, and targets are their base
// turned round.
type reverse struct{}

func (reverse) Rebuild(_ context.Context, _ io.ReaderAt, size int64, bases []io.ReaderAt, targets int, emit func(int, io.Reader) error) error {
	if size != 1 || len(bases) != targets {
		return bundle.ErrDamaged
	}
	for i, b := range bases {
		all, err := io.ReadAll(io.NewSectionReader(b, 0, 1<<20))
		if err != nil {
			return err
		}
		if err := emit(i, bytes.NewReader(turned(all))); err != nil {
			return err
		}
	}
	return nil
}

func turned(b []byte) []byte {
	out := make([]byte, len(b))
	for i := range b {
		out[len(b)-1-i] = b[i]
	}
	return out
}

func sum(b []byte) bundle.Sum { return sha256.Sum256(b) }

func mustSum(t *testing.T, d string) bundle.Sum {
	t.Helper()
	s, err := bundle.SumOf(digest.Digest(d))
	must(t, err)
	return s
}
