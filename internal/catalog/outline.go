package catalog

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/database"
)

// A layer that was never converted is lazy if the node's proxy vouches for what is in
// it. Such a layer has a slot of its own kind, by its blob and the diffID that the proxy
// names, and never one that an annotation could name. An image has it only if its
// config names the same diffID. So whoever lies of a blob can spoil what is served of
// that blob alone, to images that claim it, until the whole layer is here and its diffID
// shows it; what is known of a chain before is not replaced by the proxy's word.

// OnWord tells whether the layer's table is the proxy's word and not the image's.
func (l *Layer) OnWord() bool { return l.DiffID != "" }

// Vouch gives a slot to a layer that was never converted, of which somebody whom the
// node believes has sent the outline. If it is known with another diffID, or an image's
// annotation has taken its name, it is ErrConflict.
func (c *Catalog) Vouch(src Source, desc ocispec.Descriptor, diffID, outline digest.Digest, tarSize int64) (l Layer, err error) {
	if desc.Digest.Validate() != nil || desc.Digest.Algorithm() != digest.SHA256 || diffID.Validate() != nil || outline.Validate() != nil {
		return l, fmt.Errorf("catalog: vouch for %s: %w: digests", desc.Digest, ErrInvalid)
	}
	err = c.db.Update(func(tx *database.Tx) error {
		l = Layer{TOC: annotation.TableOf(desc.Digest, nil), Blob: desc.Digest, Size: desc.Size, DiffID: diffID, Outline: outline, TarSize: tarSize}
		if l.Slot, err = giveSlot(tx, l, src); err != nil {
			return err
		}
		return get(tx, bucketLayers, slotKey(l.Slot), &l)
	})
	return l, wrap("vouch for", desc.Digest.String(), err)
}

// Compared notes what came of comparing a layer's diffID: wrong says in words what is
// wrong with it, empty that nothing is. A layer that is wrong stays so until its content
// was removed with its images.
func (c *Catalog) Compared(slot uint32, wrong string) error {
	err := c.db.Update(func(tx *database.Tx) error {
		var l Layer
		if err := get(tx, bucketLayers, slotKey(slot), &l); err != nil {
			return err
		}
		l.Verified, l.Wrong = wrong == "", wrong
		return put(tx, bucketLayers, slotKey(slot), l)
	})
	return wrap("note what was compared of", fmt.Sprint(slot), err)
}

// vouched returns the layer of a blob that was never converted, if somebody vouches
// for it; else its slot is 0.
func vouched(tx *database.Tx, desc ocispec.Descriptor) (l Layer, err error) {
	if _, ok := desc.Annotations[annotation.TOCDigest]; ok {
		return Layer{}, nil
	}
	v, err := tx.Get(bucketSlots, []byte(annotation.TableOf(desc.Digest, nil)))
	if err != nil || len(v) != 4 {
		return Layer{}, err
	}
	if err := get(tx, bucketLayers, v, &l); err != nil {
		return Layer{}, err
	}
	if !l.OnWord() || l.Outline == "" || l.Blob != desc.Digest {
		return Layer{}, nil
	}
	return l, nil
}

// useWord makes those layers of an image lazy for which somebody vouches.
func (p *parsed) useWord(tx *database.Tx, descs []ocispec.Descriptor) error {
	for i := range p.Layers {
		l, err := vouched(tx, descs[i])
		if err != nil {
			return err
		}
		if il := &p.Layers[i]; l.Slot > 0 && il.Reason != "" && l.DiffID == il.DiffID {
			il.Reason, p.layers[i] = "", l
		}
	}
	return nil
}

// reconcile decides what a chain ID means that is here with another slot: it stays what
// it is, where one of the two is the proxy's word, unless that was taken back.
func reconcile(tx *database.Tx, l *ImageLayer, old ImageLayer) error {
	a, err := wordOf(tx, l.Slot)
	if err != nil {
		return err
	}
	b, err := wordOf(tx, old.Slot)
	if err != nil {
		return err
	}
	switch {
	case b.OnWord() && b.Outline == "" && (a.OnWord() || l.Slot == 0):
		return put(tx, bucketChains, []byte(l.ChainID), *l)
	case b.OnWord() && (a.OnWord() || l.Slot == 0), a.OnWord() && old.Slot == 0:
		l.Slot, l.Reason = old.Slot, old.Reason
		return nil
	}
	return fmt.Errorf("%w: chain %s is in slot %d here and would be in %d (0: not lazy); an image that is here already says otherwise", ErrConflict, l.ChainID, old.Slot, l.Slot)
}

func wordOf(tx *database.Tx, slot uint32) (l Layer, err error) {
	if slot == 0 {
		return Layer{}, nil
	}
	err = get(tx, bucketLayers, slotKey(slot), &l)
	return l, err
}

// takeBack forgets that somebody vouched for a layer, whose content is gone, and what
// was wrong with it.
func takeBack(tx *database.Tx, slot uint32) error {
	l, err := wordOf(tx, slot)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !l.OnWord() && l.Wrong == "" {
		return nil
	}
	if err != nil {
		return err
	}
	l.Outline, l.Verified, l.Wrong = "", false, ""
	return put(tx, bucketLayers, slotKey(slot), l)
}

// newWord brings what is known of a layer up to what somebody vouches for now.
func (l *Layer) newWord(old Layer) error {
	if old.DiffID != l.DiffID {
		if old.Outline != "" || !old.OnWord() || !l.OnWord() {
			return fmt.Errorf("%w: layer %s has diffID %q here, and somebody says %q", ErrConflict, l.Blob, old.DiffID, l.DiffID)
		}
		return nil
	}
	if l.Verified, l.Wrong = old.Verified, old.Wrong; l.Verified || l.Wrong != "" {
		l.Outline, l.TarSize = old.Outline, old.TarSize // what was compared
	}
	return nil
}
