package cache

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/artifact"
	"github.com/airstream-io/airstream/internal/catalog"
)

// rooted makes the catalog learn an image of one layer that runs from its artifact's
// root, of which root and tree are here and no table.
func (n *node) rooted(name string, l testLayer) catalog.Image {
	must(n.t, n.s.PutBlob(rootOf(name), []byte(name)))
	ref := artifact.Ref{TOC: artifact.BlobOf([]byte("toc " + name)), Root: artifact.BlobOf([]byte(name)), Hot: artifact.BlobOf([]byte("hot " + name))}
	var cfg ocispec.Image
	cfg.OS, cfg.Architecture = "linux", "amd64"
	cfg.RootFS.DiffIDs = []digest.Digest{l.diff}
	config, err := json.Marshal(cfg)
	must(n.t, err)
	manifest, err := json.Marshal(ocispec.Manifest{
		Annotations: ref.Annotations(),
		Config:      ocispec.Descriptor{Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers: []ocispec.Descriptor{{
			MediaType: ocispec.MediaTypeImageLayerGzip, Digest: l.blob, Size: 1 << 20,
			Annotations: map[string]string{annotation.TOCDigest: l.toc.String(), annotation.Hot: l.hot},
		}},
	})
	must(n.t, err)
	layers, err := n.c.Layers(src, manifest)
	must(n.t, err)
	own, err := n.c.Bind(src, ref, layers)
	must(n.t, err)
	must(n.t, n.s.PutTree(own[0].TOC, l.tree))
	_, err = n.s.DeleteTree(l.toc)
	must(n.t, err)
	img, err := n.c.Learn(src, name, ocispec.MediaTypeImageManifest, manifest, config)
	must(n.t, err)
	must(n.t, n.c.Used(img.Manifest, time.Now()))
	return img
}

func rootOf(name string) digest.Digest { return digest.FromBytes([]byte(name)) }

// age makes all blobs old enough to be garbage.
func (n *node) age() {
	n.t.Helper()
	old := time.Now().Add(-24 * time.Hour)
	must(n.t, filepath.WalkDir(filepath.Join(filepath.Dir(n.catalogFile), "store", "blobs"), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			err = os.Chtimes(path, old, old)
		}
		return err
	}))
}

// What an image runs from that needs no table is kept as long as it is, and no longer.
func TestRootsStayAsLongAsTheirImages(t *testing.T) {
	n := newNode(t)
	l := n.layer("l", 1, "hot", "cold")
	img := n.rooted("app", l)
	own, err := n.c.Layer(img.Layers[0].Own)
	must(t, err)
	n.age()

	n.collect(0, Options{All: true, InUse: func() (map[uint32]bool, error) { return map[uint32]bool{own.Slot: true}, nil }})
	n.want(l, true, "hot", "cold")
	if _, here := n.s.HasBlob(rootOf("app")); !here || !n.s.HasTree(own.TOC) {
		t.Fatal("a container runs from it, and its root or its tree is gone")
	}
	n.collect(fileSize/2, Options{})
	n.want(l, true, "hot")
	n.want(l, false, "cold")
	n.collect(0, Options{All: true})
	n.want(l, false, "hot")
	if _, here := n.s.HasBlob(rootOf("app")); !here || n.s.HasTree(own.TOC) {
		t.Error("of an image that is evicted the root stays, from which the tree is made again")
	}

	must(t, errors.Join(n.s.PutTree(own.TOC, l.tree), n.c.Remove(img.Manifest)))
	n.put(l.tree, "hot")
	n.age()
	n.collect(0, Options{})
	n.want(l, false, "hot")
	if _, here := n.s.HasBlob(rootOf("app")); here || n.s.HasTree(own.TOC) {
		t.Error("the image is gone, and its root or its tree is here")
	}
}
