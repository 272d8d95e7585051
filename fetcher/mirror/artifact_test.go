package mirror

import (
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/artifact"
)

// lazily returns an image with the layers of img, which say of themselves that
// they are lazy; the last one not, if plain.
func lazily(t *testing.T, img v1.Image, ref artifact.Ref, plain bool) v1.Image {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	list := make([]mutate.Addendum, len(layers))
	for i, l := range layers {
		h, err := l.DiffID() // some digest
		if err != nil {
			t.Fatal(err)
		}
		list[i] = mutate.Addendum{Layer: l, Annotations: map[string]string{annotation.TOCDigest: h.String(), annotation.TOCOffset: "100"}}
		if plain && i == len(layers)-1 {
			list[i].Annotations = nil
		}
	}
	out, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), list...)
	if err != nil {
		t.Fatal(err)
	}
	return mutate.Annotations(out, ref.Annotations()).(v1.Image) //nolint:errcheck,forcetypeassert // as its documentation says
}

// The artifact that a manifest names is asked for before containerd asks for
// anything else. An image of which the artifact can't tell all is fetched without.
func TestArtifactIsAskedForWithTheManifest(t *testing.T) {
	ref := artifact.Ref{TOC: artifact.BlobOf([]byte("toc and pages")), Root: artifact.BlobOf([]byte("toc")), Hot: artifact.BlobOf([]byte("hot"))}
	for name, plain := range map[string]bool{"all layers are lazy": false, "one is not": true} {
		t.Run(name, func(t *testing.T) {
			s := newShore(t)
			s.push(t, "app:1", lazily(t, randomImage(t), ref, plain))
			n := newNode(t, s, t.TempDir())
			n.get(t, "GET", "app/manifests/1")
			asked := func() bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				return slices.ContainsFunc(s.requests, func(path string) bool { return strings.HasSuffix(path, ref.TOC.Digest) })
			}
			for range 100 {
				if asked() {
					break
				}
				time.Sleep(5 * time.Millisecond)
			}
			if asked() == plain {
				t.Errorf("the TOC blob was asked for: %t", !plain)
			}
		})
	}
}

// Which images run from their artifact's root: those of which it says what a start
// reads, unless a proxy brings the tables.
func TestWhichImagesRunFromTheirRoot(t *testing.T) {
	ref := artifact.Ref{TOC: artifact.BlobOf([]byte("toc and pages")), Root: artifact.BlobOf([]byte("toc")), Hot: artifact.BlobOf([]byte("hot"))}
	cold := ref
	cold.Hot = artifact.Blob{}
	for name, c := range map[string]struct {
		ref           artifact.Ref
		plain, tables bool
		own           bool
	}{
		"hot":        {ref: ref, own: true},
		"no hot set": {ref: cold},
		"plain":      {ref: ref, plain: true},
		"tables":     {ref: ref, tables: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShore(t)
			s.push(t, "app:1", lazily(t, randomImage(t), c.ref, c.plain))
			n := newNode(t, s, t.TempDir(), func(o *Options, _ map[string]registry.Host) { o.Tables = c.tables })
			n.get(t, "GET", "app/manifests/1")
			images, err := n.catalog.Images()
			if err != nil || len(images) != 1 {
				t.Fatalf("%+v, %v", images, err)
			}
			for i, l := range images[0].Layers {
				if (l.Own != 0) != c.own {
					t.Errorf("layer %d has slots %d and %d", i, l.Slot, l.Own)
				}
			}
		})
	}
}
