package catalog

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/artifact"
	"github.com/airstream-io/airstream/internal/database"
)

// What the root of an image's artifact says of a layer is bound to the images whose
// manifests name that root, and to nobody else: the digest of the layer's own table
// says nothing of it. So a layer has a slot, and with it a directory and inode numbers,
// for its own table, which all images share, and one more for each root that speaks of
// it. Images that name the root run from the latter. Nothing moves from one to the
// other; the content is shared in any case, since it goes by the IDs of its chunks.

// Own says which part of which root a layer's tree is made from.
type Own struct {
	Artifact artifact.Ref `json:"artifact"`
	Number   int          `json:"number"` // among the image's layers, the lowest is 0
	Of       uint32       `json:"of"`     // slot of the same layer under its own table
}

// tableOf returns what the tree that a root has for a layer goes by in the store, the
// layer being number in its image. No JSON has that digest.
func tableOf(ref artifact.Ref, number int, blob, toc digest.Digest) digest.Digest {
	return digest.FromString(fmt.Sprintf("airstream: layer %d, blob %s with table %s, of root %s in %s", number, blob, toc, ref.Root.Digest, ref.TOC.Digest))
}

// Serving returns the slot that containers of the layer's image run from; 0: it is
// not lazy.
func (l *ImageLayer) Serving() uint32 {
	if l.Own != 0 {
		return l.Own
	}
	return l.Slot
}

// Bind gives slots to the layers of an image, all of which are lazy, for the trees that
// the root of its artifact has for them. ref is what the image's manifest says, layers
// are what Layers returned, the lowest first. The result has the same order and plans.
func (c *Catalog) Bind(src Source, ref artifact.Ref, layers []Layer) (own []Layer, err error) {
	err = c.db.Update(func(tx *database.Tx) error {
		own = nil
		for i, l := range layers {
			l.Own, l.TOC, l.Sources = &Own{Artifact: ref, Number: i, Of: l.Slot}, tableOf(ref, i, l.Blob, l.TOC), nil
			if l.Slot, err = giveSlot(tx, l, src); err != nil {
				return err
			}
			own = append(own, l)
		}
		return nil
	})
	return own, wrap("bind", ref.Root.Digest, err)
}

// useOwn notes the slots that Bind has given to an image's layers, unless another image
// has the same layers and names another root, or none: containerd says of a container
// no more than its layers, so neither root may speak for both.
func (p *parsed) useOwn(tx *database.Tx) error {
	others, err := p.rivals(tx)
	if err != nil {
		return err
	}
	for i := range others {
		if err := disown(tx, &others[i]); err != nil {
			return err
		}
	}
	if p.Artifact == nil || len(others) > 0 {
		return nil
	}
	for i := range p.Layers {
		v, err := tx.Get(bucketSlots, []byte(tableOf(*p.Artifact, i, p.layers[i].Blob, p.layers[i].TOC)))
		if err != nil {
			return err
		}
		var l Layer
		if len(v) == 4 {
			err = get(tx, bucketLayers, v, &l)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if l.Own == nil || l.Own.Of != p.Layers[i].Slot {
			for k := range i {
				p.Layers[k].Own = 0
			}
			return nil // it was not bound
		}
		p.Layers[i].Own = l.Slot
	}
	return nil
}

// rivals returns the other images that have the same layers and name another root.
func (p *parsed) rivals(tx *database.Tx) (all []Image, err error) {
	if len(p.Layers) == 0 {
		return nil, nil
	}
	top := p.Layers[len(p.Layers)-1].ChainID
	err = eachImage(tx, func(i *Image) error {
		n := len(i.Layers)
		if i.Manifest != p.Manifest && n > 0 && i.Layers[n-1].ChainID == top && rootOf(i) != rootOf(&p.Image) {
			all = append(all, *i)
		}
		return nil
	})
	return all, err
}

func rootOf(i *Image) string {
	if i.Artifact == nil {
		return ""
	}
	return i.Artifact.Root.Digest + " in " + i.Artifact.TOC.Digest
}

// disown has an image run from its layers' own tables from now on. What containers
// have mounted stays as long as they do.
func disown(tx *database.Tx, i *Image) error {
	if len(i.Layers) == 0 || i.Layers[0].Own == 0 {
		return nil
	}
	before := *i
	i.Layers = append([]ImageLayer{}, i.Layers...)
	for k := range i.Layers {
		i.Layers[k].Own = 0
	}
	if err := put(tx, bucketImages, []byte(i.Manifest), i); err != nil {
		return err
	}
	return freeLayers(tx, before)
}

// Stack returns the slots that a container runs from whose layers are those of an
// image, given the highest layer's chain ID: those of the image's own trees, the lowest
// first. It is nil if that is the layers' own tables, or if no image has such layers.
func (c *Catalog) Stack(top digest.Digest) (slots []uint32, err error) {
	err = c.db.View(func(tx *database.Tx) error {
		slots = nil
		return eachImage(tx, func(i *Image) error {
			if n := len(i.Layers); n == 0 || i.Layers[n-1].ChainID != top || slots != nil {
				return nil
			}
			for _, l := range i.Layers {
				if l.Own == 0 {
					slots = nil
					return nil
				}
				slots = append(slots, l.Own)
			}
			return nil
		})
	})
	return slots, wrap("stack of", top.String(), err)
}

// SetWrong notes why nothing of a layer is served any more.
func (c *Catalog) SetWrong(slot uint32, why string) error {
	err := c.db.Update(func(tx *database.Tx) error {
		var l Layer
		if err := get(tx, bucketLayers, slotKey(slot), &l); err != nil {
			return err
		}
		l.Wrong = why
		return put(tx, bucketLayers, slotKey(slot), l)
	})
	return wrap("note what is wrong with", fmt.Sprint(slot), err)
}
