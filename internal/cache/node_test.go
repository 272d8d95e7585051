package cache

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/store"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
)

// fileSize is that of every test file, in bytes: one chunk, whole pages.
const fileSize = 64 << 10

// node is a store and a catalog with images whose content is here.
type node struct {
	t      *testing.T
	s      *store.Store
	c      *catalog.Catalog
	layers map[string]testLayer

	catalogFile string
}

type testLayer struct {
	toc, blob digest.Digest
	tree      *toc.Tree
	diff      digest.Digest
	plain     bool
	hot       string
}

var src = catalog.Source{Host: "registry.example", Repo: "app"}

func newNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	s, err := store.Open(filepath.Join(dir, "store"), store.Options{FlushDelay: time.Hour, Logger: log})
	must(t, err)
	c, err := catalog.Open(filepath.Join(dir, "catalog.db"), log)
	must(t, err)
	n := &node{t: t, s: s, c: c, layers: map[string]testLayer{}, catalogFile: filepath.Join(dir, "catalog.db")}
	t.Cleanup(func() { must(t, errors.Join(n.s.Close(), n.c.Close())) })
	return n
}

// data is the content of a test file.
func data(name string) []byte {
	seed := digest.FromString(name)
	r := rand.NewChaCha8([32]byte([]byte(seed.Encoded()[:32])))
	b := make([]byte, fileSize)
	_, _ = r.Read(b)
	return b
}

// layer makes a lazy layer of files, all of them here. hot of them, from the
// first on, are what a start reads.
func (n *node) layer(name string, hot int, files ...string) testLayer {
	if l, ok := n.layers[name]; ok {
		return l
	}
	var b strings.Builder
	b.WriteString(`{"version":1,"entries":[{"name":"d","type":"dir"}`)
	for i, f := range files {
		fmt.Fprintf(&b, `,{"name":%q,"type":"reg","size":%d,"offset":%d,"chunkSize":%d,"chunkDigest":%q}`, f, fileSize, 10+100*i, fileSize, chunk.Sum(data(f)))
	}
	b.WriteString(`]}`)
	tree, err := toc.Parse(strings.NewReader(b.String()), 10+100*int64(len(files)))
	must(n.t, err)
	l := testLayer{toc: digest.FromString(b.String() + name), blob: digest.FromString("blob " + name), tree: tree, diff: digest.FromString("diff " + name)}
	if hot > 0 {
		l.hot = trace.Plan{{Rank: 1, Offset: 10, Size: int64(100 * hot)}}.String()
	}
	must(n.t, n.s.PutTree(l.toc, tree))
	for _, f := range files {
		n.put(tree, f)
	}
	n.layers[name] = l
	return l
}

func (n *node) put(tree *toc.Tree, f string) {
	entry, _ := tree.Lookup(toc.Root, f)
	first, _ := tree.Chunks(entry)
	o, err := n.s.Object(tree.ObjectID(entry), fileSize, 1)
	must(n.t, err)
	must(n.t, o.Put(0, tree.Chunk(first), data(f)))
	must(n.t, o.Close())
}

// plain makes a layer that is here as a blob.
func (n *node) plain(name string) testLayer {
	b := data(name)
	must(n.t, n.s.PutBlob(digest.FromBytes(b), b))
	return testLayer{blob: digest.FromBytes(b), diff: digest.FromString("diff " + name), plain: true}
}

// image makes the catalog learn an image of layers, lowest first.
func (n *node) image(name string, layers ...testLayer) catalog.Image {
	var cfg ocispec.Image
	cfg.OS, cfg.Architecture, cfg.Author = "linux", "amd64", name
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, l.diff)
		desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: l.blob, Size: 1 << 20}
		if !l.plain {
			desc.Annotations = map[string]string{annotation.TOCDigest: l.toc.String()}
			if l.hot != "" {
				desc.Annotations[annotation.Hot] = l.hot
			}
		}
		m.Layers = append(m.Layers, desc)
	}
	config, err := json.Marshal(cfg)
	must(n.t, err)
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))}
	manifest, err := json.Marshal(m)
	must(n.t, err)
	must(n.t, errors.Join(n.s.PutBlob(digest.FromBytes(config), config), n.s.PutBlob(digest.FromBytes(manifest), manifest)))
	img, err := n.c.Learn(src, name, m.MediaType, manifest, config)
	must(n.t, err)
	must(n.t, n.c.SetTag(name, catalog.Tag{Digest: img.Manifest, MediaType: m.MediaType, Seen: time.Now()}))
	must(n.t, n.c.Used(img.Manifest, time.Now()))
	return img
}

// has tells whether a file of a layer is here.
func (n *node) has(l testLayer, f string) bool {
	entry, ok := l.tree.Lookup(toc.Root, f)
	if !ok {
		n.t.Fatalf("no file %s", f)
	}
	missing, _ := n.s.HasObject(l.tree.ObjectID(entry), 1)
	return missing == 0
}

func (n *node) want(l testLayer, here bool, files ...string) {
	n.t.Helper()
	for _, f := range files {
		if n.has(l, f) != here {
			n.t.Errorf("%s: here %v, want %v", f, !here, here)
		}
	}
}

// collect frees about bytes below what is stored now.
func (n *node) collect(less int64, opts Options) Freed {
	n.t.Helper()
	must(n.t, n.s.Flush())
	u, err := n.s.Usage()
	must(n.t, err)
	opts.Limit = u.Bytes - less
	freed, err := Collect(n.t.Context(), n.s, n.c, opts)
	must(n.t, err)
	return freed
}

func slots(img catalog.Image) map[uint32]bool {
	m := map[uint32]bool{}
	for _, l := range img.Layers {
		m[l.Slot] = true
	}
	return m
}

func manifestOf(t *testing.T, layers ...testLayer) []byte {
	t.Helper()
	var m ocispec.Manifest
	for _, l := range layers {
		m.Layers = append(m.Layers, ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageLayerGzip, Digest: l.blob, Size: 1 << 20,
			Annotations: map[string]string{annotation.TOCDigest: l.toc.String()},
		})
	}
	b, err := json.Marshal(m)
	must(t, err)
	return b
}
