package catalog

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/artifact"
)

func refOf(name string) artifact.Ref {
	return artifact.Ref{TOC: artifact.BlobOf([]byte("toc " + name)), Root: artifact.BlobOf([]byte(name)), Hot: artifact.BlobOf([]byte("hot " + name))}
}

// learnOwn learns an image that names a root, "" being none; bind says whether its
// layers get slots for what the root says.
func learnOwn(t *testing.T, c *Catalog, root string, bind bool, layers ...layer) (Image, []Layer) {
	t.Helper()
	raw, cfg := image(t, layers...)
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	if root != "" {
		m.Annotations = refOf(root).Annotations()
	}
	raw = marshal(t, m)
	found, err := c.Layers(src, raw)
	if err != nil {
		t.Fatal(err)
	}
	var own []Layer
	if bind {
		if own, err = c.Bind(src, refOf(root), found); err != nil {
			t.Fatal(err)
		}
	}
	learned, err := c.Learn(src, "", ocispec.MediaTypeImageManifest, raw, cfg)
	if err != nil {
		t.Fatal(err)
	}
	img, err := c.Image(learned.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	return img, own
}

func servingOf(img Image) (slots []uint32) {
	for i := range img.Layers {
		slots = append(slots, img.Layers[i].Serving())
	}
	return slots
}

func (c *Catalog) wantStack(t *testing.T, img Image, want []uint32) {
	t.Helper()
	got, err := c.Stack(img.Layers[len(img.Layers)-1].ChainID)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("a container's slots are %v, %v, want %v", got, err, want)
	}
}

func TestLayersOfARootHaveSlotsOfTheirOwn(t *testing.T) {
	base, top := layer{"a", "ta", "ba"}, layer{"b", "tb", "bb"}
	file := filepath.Join(t.TempDir(), "catalog.db")
	c := open(t, file)
	img, own := learnOwn(t, c, "one", true, base, top)
	var slots []uint32
	for i, l := range own {
		if l.Slot == img.Layers[i].Slot || l.Own.Of != img.Layers[i].Slot || l.Own.Number != i {
			t.Errorf("layer %d, in slot %d for its table: %+v, %+v", i, img.Layers[i].Slot, l, l.Own)
		}
		slots = append(slots, l.Slot)
	}
	if got := servingOf(img); !slices.Equal(got, slots) {
		t.Errorf("it is served from %v, want %v", got, slots)
	}
	c.wantStack(t, img, slots)
	hot, err := c.Hot(img.Manifest)
	if err != nil || len(hot) != 2 || hot[1].Slot != slots[1] || hot[1].Own.Artifact != refOf("one") {
		t.Errorf("%+v, %v", hot, err)
	}

	// The same base, and another root: nothing is shared but the slots of the tables.
	more, ownMore := learnOwn(t, c, "two", true, base, layer{"c", "tc", "bc"})
	if more.Layers[0].Slot != img.Layers[0].Slot || ownMore[0].Slot == own[0].Slot {
		t.Errorf("another root's base is in %d and %d, the first one's in %d and %d", more.Layers[0].Slot, ownMore[0].Slot, img.Layers[0].Slot, own[0].Slot)
	}
	// No root at all.
	plain, _ := learnOwn(t, c, "", false, base, layer{"d", "td", "bd"})
	c.wantStack(t, plain, nil)
	c.wantStack(t, img, slots)
	if got := servingOf(plain); got[0] != img.Layers[0].Slot {
		t.Errorf("an image without a root is served from %v", got)
	}
	// One that nobody has bound.
	late, _ := learnOwn(t, c, "three", false, layer{"e", "te", "be"})
	c.wantStack(t, late, nil)
}

// Two images with the same layers can't be told apart by containerd: neither root may
// speak for both.
func TestSameLayersAndAnotherRoot(t *testing.T) {
	for name, second := range map[string]string{"another": "two", "none": ""} {
		t.Run(name, func(t *testing.T) {
			only := layer{"a", "ta", "ba"}
			c := open(t, filepath.Join(t.TempDir(), "catalog.db"))
			first, own := learnOwn(t, c, "one", true, only)
			other, _ := learnOwn(t, c, second, second != "", only)
			first, err := c.Image(first.Manifest)
			if err != nil {
				t.Fatal(err)
			}
			for _, img := range []Image{first, other} {
				c.wantStack(t, img, nil)
				if img.Layers[0].Own != 0 {
					t.Errorf("%+v", img.Layers)
				}
			}
			free, _, err := c.Free()
			if err != nil || !free[own[0].Slot] || free[first.Layers[0].Slot] {
				t.Errorf("%v, %v: want slot %d free", free, err, own[0].Slot)
			}
		})
	}
}

func TestRemoveFreesWhatTheRootHad(t *testing.T) {
	c := open(t, filepath.Join(t.TempDir(), "catalog.db"))
	img, own := learnOwn(t, c, "one", true, layer{"a", "ta", "ba"})
	if err := c.SetWrong(own[0].Slot, "it lies"); err != nil {
		t.Fatal(err)
	}
	if err := c.Remove(img.Manifest); err != nil {
		t.Fatal(err)
	}
	free, _, err := c.Free()
	if err != nil || !free[own[0].Slot] || !free[img.Layers[0].Slot] {
		t.Errorf("%v, %v", free, err)
	}
	if err := c.Swept(true, own[0].Slot); err != nil {
		t.Fatal(err)
	}
	if again, bound := learnOwn(t, c, "one", true, layer{"a", "ta", "ba"}); bound[0].Slot != own[0].Slot || again.Layers[0].Own != own[0].Slot {
		t.Errorf("it has moved from slot %d to %d", own[0].Slot, bound[0].Slot)
	}
	if l, err := c.Layer(own[0].Slot); err != nil || l.Wrong != "" {
		t.Errorf("%+v, %v", l, err)
	}
}

// An annotation may say what a root's layer goes by, though no table has that digest.
// That neither takes the slot away nor keeps it from the image that it is for.
func TestAnnotationWithTheNameOfARootsLayer(t *testing.T) {
	only := layer{"a", "ta", "ba"}
	name := tableOf(refOf("one"), 0, digest.FromString(only.blob), digest.FromString(only.toc))
	squat := func(c *Catalog) error {
		raw, _ := image(t, only)
		var m ocispec.Manifest
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatal(err)
		}
		m.Layers[0].Annotations[annotation.TOCDigest] = name.String()
		_, err := c.Layers(src, marshal(t, m))
		return err
	}
	c := open(t, filepath.Join(t.TempDir(), "catalog.db"))
	_, own := learnOwn(t, c, "one", true, only)
	if err := squat(c); !errors.Is(err, ErrConflict) {
		t.Errorf("a slot was given away twice: %v", err)
	}
	if l, err := c.Layer(own[0].Slot); err != nil || l.Own == nil {
		t.Errorf("%+v, %v", l, err)
	}
	early := open(t, filepath.Join(t.TempDir(), "catalog.db"))
	if err := squat(early); err != nil {
		t.Fatal(err)
	}
	img, own := learnOwn(t, early, "one", true, only)
	early.wantStack(t, img, []uint32{own[0].Slot})
}
