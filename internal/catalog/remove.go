package catalog

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"io/fs"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/database"
)

// Remove forgets an image: its names, their tags, its pin and its plans. What
// the store has of it stays until nobody else wants it (package cache). Its
// layers keep their slots for ever. The error is fs.ErrNotExist if there is no
// such image.
func (c *Catalog) Remove(manifest digest.Digest) error {
	key := []byte(manifest)
	err := c.db.Update(func(tx *database.Tx) error {
		var i Image
		if err := get(tx, bucketImages, key, &i); err != nil {
			return err
		}
		for _, b := range [][]byte{bucketImages, bucketPins, bucketUses, bucketHots, bucketTypes} {
			if err := tx.Delete(b, key); err != nil {
				return err
			}
		}
		for _, name := range i.Names {
			if err := untag(tx, name); err != nil {
				return err
			}
		}
		return freeLayers(tx, i)
	})
	c.garbage.Store(true)
	c.usedMu.Lock()
	delete(c.used, manifest)
	c.usedMu.Unlock()
	return wrap("remove", manifest.String(), err)
}

// Untag forgets one name, "host/repo:tag", and what it meant. Images that had
// it stay.
func (c *Catalog) Untag(name string) error {
	images, err := c.Images()
	if err != nil {
		return err
	}
	err = c.db.Update(func(tx *database.Tx) error {
		for _, i := range images {
			if !slices.Contains(i.Names, name) {
				continue
			}
			if err := get(tx, bucketImages, []byte(i.Manifest), &i); err != nil {
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				return err
			}
			i.Names = slices.DeleteFunc(i.Names, func(n string) bool { return n == name })
			if err := put(tx, bucketImages, []byte(i.Manifest), i); err != nil {
				return err
			}
		}
		return untag(tx, name)
	})
	c.garbage.Store(true)
	return wrap("untag", name, err)
}

// untag removes a tag, and what it meant if that is an index that no other tag
// means.
func untag(tx *database.Tx, name string) error {
	var t Tag
	err := get(tx, bucketTags, []byte(name), &t)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, b := range [][]byte{bucketTags, bucketFormer, bucketActive} {
		if err == nil {
			err = tx.Delete(b, []byte(name))
		}
	}
	if err != nil {
		return err
	}
	if image, err := tx.Get(bucketImages, []byte(t.Digest)); image != nil || err != nil {
		return err
	}
	meant := false
	err = tx.ForEach(bucketTags, func(_, v []byte) error {
		var other Tag
		err := json.Unmarshal(v, &other)
		meant = meant || other.Digest == t.Digest
		return err
	})
	if meant || err != nil {
		return err
	}
	return tx.Delete(bucketTypes, []byte(t.Digest))
}

// freeLayers notes which layers of a removed image no other image has: their
// content may go. Those that are only about to be learned are not noted.
func freeLayers(tx *database.Tx, gone Image) error {
	slots := map[uint32]bool{}
	for _, l := range gone.Layers {
		slots[l.Slot], slots[l.Own] = true, true
	}
	delete(slots, 0)
	err := eachImage(tx, func(i *Image) error {
		for _, l := range i.Layers {
			delete(slots, l.Slot)
			delete(slots, l.Own)
		}
		return nil
	})
	for slot := range slots {
		if err == nil {
			err = tx.Put(bucketFree, slotKey(slot), nil)
		}
	}
	return err
}

// Free returns the slots of layers that were removed with their images, and
// whether something may have been removed since Swept.
func (c *Catalog) Free() (slots map[uint32]bool, garbage bool, err error) {
	err = c.db.View(func(tx *database.Tx) error {
		slots = map[uint32]bool{}
		return tx.ForEach(bucketFree, func(k, _ []byte) error {
			if len(k) == 4 {
				slots[binary.BigEndian.Uint32(k)] = true
			}
			return nil
		})
	})
	return slots, c.garbage.Load(), wrap("list", "removed layers", err)
}

// Swept notes that the store has nothing left of these layers, and if all is
// set, of anything else that was removed before.
func (c *Catalog) Swept(all bool, slots ...uint32) error {
	if all {
		c.garbage.Store(false)
	}
	err := c.db.Update(func(tx *database.Tx) error {
		for _, slot := range slots {
			if err := errors.Join(tx.Delete(bucketFree, slotKey(slot)), takeBack(tx, slot)); err != nil {
				return err
			}
		}
		return nil
	})
	return wrap("note swept", "layers", err)
}

// AllLayers returns every layer that has a slot.
func (c *Catalog) AllLayers() (layers []Layer, err error) {
	err = c.db.View(func(tx *database.Tx) error {
		layers = nil
		return tx.ForEach(bucketLayers, func(_, v []byte) error {
			var l Layer
			err := json.Unmarshal(v, &l)
			layers = append(layers, l)
			return err
		})
	})
	return layers, wrap("list", "layers", err)
}

// Manifests returns the media types of all manifests and indexes that are known.
func (c *Catalog) Manifests() (types map[digest.Digest]string, err error) {
	err = c.db.View(func(tx *database.Tx) error {
		types = map[digest.Digest]string{}
		return tx.ForEach(bucketTypes, func(k, v []byte) error {
			types[digest.Digest(k)] = string(v)
			return nil
		})
	})
	return types, wrap("list", "manifests", err)
}

// Hot returns the lazy layers of an image, lowest first, with the plans that
// its manifest has for them: what Layers, or Bind, returned when it was learned.
func (c *Catalog) Hot(manifest digest.Digest) ([]Layer, error) {
	var layers []Layer
	err := c.db.View(func(tx *database.Tx) error {
		layers = nil
		var i Image
		if err := get(tx, bucketImages, []byte(manifest), &i); err != nil {
			return err
		}
		plans := map[uint32]string{}
		if err := get(tx, bucketHots, []byte(manifest), &plans); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, il := range i.Layers {
			if il.Slot == 0 {
				continue
			}
			var l Layer
			if err := get(tx, bucketLayers, slotKey(il.Serving()), &l); err != nil {
				return err
			}
			l.Hot = plans[il.Slot]
			layers = append(layers, l)
		}
		return nil
	})
	return layers, wrap("hot layers of", manifest.String(), err)
}
