package catalog

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/annotation"
)

var far = Source{Host: "far.example", Repo: "app"}

func vouch(t *testing.T, c *Catalog, blob, diff string) (Layer, error) {
	t.Helper()
	desc := ocispec.Descriptor{Digest: digest.FromString(blob), Size: 1000}
	return c.Vouch(far, desc, digest.FromString(diff), digest.FromString("outline of "+blob), 4096)
}

func learnFar(t *testing.T, c *Catalog, layers ...layer) (Image, error) {
	t.Helper()
	manifest, config := image(t, layers...)
	if _, err := c.Layers(far, manifest); err != nil && !errors.Is(err, ErrConflict) {
		t.Fatal(err)
	}
	return c.Learn(far, "", ocispec.MediaTypeImageManifest, manifest, config)
}

func mustVouch(t *testing.T, c *Catalog, blob, diff string) Layer {
	t.Helper()
	l, err := vouch(t, c, blob, diff)
	if err != nil || l.Slot == 0 || !l.OnWord() {
		t.Fatalf("%+v, %v", l, err)
	}
	return l
}

func mustLearn(t *testing.T, c *Catalog, layers ...layer) Image {
	t.Helper()
	img, err := learnFar(t, c, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// A layer for which somebody vouches is lazy in images that say the same diffID of it,
// and in no others.
func TestWhatSomebodyVouchesForIsLazy(t *testing.T) {
	c := open(t, filepath.Join(t.TempDir(), "catalog.db"))
	l := mustVouch(t, c, "b1", "d1")
	img := mustLearn(t, c, layer{"d1", "", "b1"}, layer{"d2", "", "b2"})
	if img.Layers[0].Slot != l.Slot || img.Layers[0].Reason != "" || img.Layers[1].Slot != 0 {
		t.Errorf("%+v", img.Layers)
	}
	// An image that claims the blob for a chain that is somebody else's.
	img = mustLearn(t, c, layer{"trusted", "", "b1"})
	if img.Layers[0].Slot != 0 {
		t.Errorf("it got the slot by another diffID: %+v", img.Layers)
	}
	if _, err := vouch(t, c, "b1", "trusted"); !errors.Is(err, ErrConflict) {
		t.Errorf("vouched for as something else: %v", err)
	}
	layers, err := c.Layers(far, func() []byte { m, _ := image(t, layer{"d1", "", "b1"}); return m }())
	if err != nil || len(layers) != 1 || layers[0].Slot != l.Slot {
		t.Errorf("%+v, %v", layers, err)
	}
}

// The proxy's word neither takes what an image vouches for, nor the other way round; and
// a chain that is here stays what it is.
func TestTheProxysWordIsKeptApart(t *testing.T) {
	c := open(t, filepath.Join(t.TempDir(), "catalog.db"))
	annotated := mustLearn(t, c, layer{"d1", "t1", "b1"})
	mustVouch(t, c, "other", "d1")
	if img, err := learnFar(t, c, layer{"d1", "", "other"}); !errors.Is(err, ErrConflict) {
		t.Errorf("a chain that an image vouches for was taken: %+v, %v", img, err)
	}
	if l, err := c.Layer(annotated.Layers[0].Slot); err != nil || l.OnWord() {
		t.Errorf("%+v, %v", l, err)
	}
	// An annotation that names what only the proxy may.
	mustVouch(t, c, "b2", "d2")
	var m ocispec.Manifest
	manifest, _ := image(t, layer{"d3", "t3", "evil"})
	if err := json.Unmarshal(manifest, &m); err != nil {
		t.Fatal(err)
	}
	for _, blob := range []string{"evil", "b2"} {
		m.Layers[0].Digest = digest.FromString(blob)
		m.Layers[0].Annotations[annotation.TOCDigest] = annotation.TableOf(digest.FromString("b2"), nil).String()
		if layers, err := c.Layers(far, marshal(t, m)); !errors.Is(err, ErrConflict) {
			t.Errorf("blob %s: %+v, %v", blob, layers, err)
		}
	}
	// A layer that was unpacked before somebody vouched for it.
	plain := mustLearn(t, c, layer{"d4", "", "b4"})
	mustVouch(t, c, "b4", "d4")
	if again := mustLearn(t, c, layer{"d4", "", "b4"}); again.Layers[0].Slot != 0 || again.Layers[0].Reason != plain.Layers[0].Reason {
		t.Errorf("%+v", again.Layers)
	}
	// The same chain in another blob.
	first := mustVouch(t, c, "b5", "d5")
	mustLearn(t, c, layer{"d5", "", "b5"})
	mustVouch(t, c, "b5 recompressed", "d5")
	if again := mustLearn(t, c, layer{"d5", "", "b5 recompressed"}); again.Layers[0].Slot != first.Slot {
		t.Errorf("%+v", again.Layers)
	}
}

// What was compared stays known; when the content is gone, nobody vouches any more, and
// the layer is unpacked like any other.
func TestWhatWasComparedIsRemembered(t *testing.T) {
	name := filepath.Join(t.TempDir(), "catalog.db")
	c := open(t, name)
	l := mustVouch(t, c, "b1", "d1")
	img := mustLearn(t, c, layer{"d1", "", "b1"})
	if err := c.Compared(l.Slot, "its tar is another"); err != nil {
		t.Fatal(err)
	}
	if again := mustVouch(t, c, "b1", "d1"); again.Wrong == "" || again.Slot != l.Slot {
		t.Errorf("vouched for again: %+v", again)
	}
	if again := mustLearn(t, c, layer{"d1", "", "b1"}); again.Layers[0].Slot != l.Slot {
		t.Errorf("an image left its quarantine: %+v", again.Layers)
	}
	if err := errors.Join(c.Remove(img.Manifest), c.Swept(false, l.Slot)); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Layer(l.Slot); err != nil || got.Wrong != "" || got.Outline != "" || got.Verified {
		t.Errorf("%+v, %v", got, err)
	}
	if again := mustLearn(t, c, layer{"d1", "", "b1"}); again.Layers[0].Slot != 0 {
		t.Errorf("lazy without anybody's word: %+v", again.Layers)
	}
	if got, err := c.Chain(identity.ChainID([]digest.Digest{digest.FromString("d1")})); err != nil || got.Slot != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if again, err := vouch(t, c, "b1", "d6"); err != nil || again.Slot != l.Slot || again.DiffID != digest.FromString("d6") {
		t.Errorf("with another diffID: %+v, %v", again, err)
	}
}
