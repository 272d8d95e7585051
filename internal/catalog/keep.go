package catalog

import (
	"encoding/json"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/database"
)

// Use is when an image was used last.
type Use struct {
	// Seq is its place in the order of uses of all images; 0: never used. It
	// counts uses and not time, so a clock that jumps disturbs nothing.
	Seq uint64    `json:"seq"`
	At  time.Time `json:"at"` // for people
}

// useGrain is how often a use of the same image is written down at most.
const useGrain = time.Hour

// Pin says that an image must stay whatever the limits. The error is
// fs.ErrNotExist if there is no such image.
func (c *Catalog) Pin(manifest digest.Digest) error {
	err := c.db.Update(func(tx *database.Tx) error {
		var i Image
		if err := get(tx, bucketImages, []byte(manifest), &i); err != nil {
			return err
		}
		return put(tx, bucketPins, []byte(manifest), true)
	})
	return wrap("pin", manifest.String(), err)
}

// Unpin takes back a Pin, if there is one.
func (c *Catalog) Unpin(manifest digest.Digest) error {
	err := c.db.Update(func(tx *database.Tx) error { return tx.Delete(bucketPins, []byte(manifest)) })
	return wrap("unpin", manifest.String(), err)
}

// Pinned returns the manifests of all pinned images.
func (c *Catalog) Pinned() (map[digest.Digest]bool, error) {
	var pins map[digest.Digest]bool
	err := c.db.View(func(tx *database.Tx) error {
		pins = map[digest.Digest]bool{}
		return tx.ForEach(bucketPins, func(k, _ []byte) error {
			pins[digest.Digest(k)] = true
			return nil
		})
	})
	return pins, wrap("list", "pins", err)
}

// Used notes that an image is being used, now being at. Uses within an hour of
// each other are written once.
func (c *Catalog) Used(manifest digest.Digest, at time.Time) error {
	c.usedMu.Lock()
	last, ok := c.used[manifest]
	recent := ok && time.Since(last) < useGrain
	if !recent {
		c.used[manifest] = time.Now()
	}
	c.usedMu.Unlock()
	if recent {
		return nil
	}
	err := c.db.Update(func(tx *database.Tx) error {
		if i, err := tx.Get(bucketImages, []byte(manifest)); i == nil || err != nil {
			return err // nil: it was removed
		}
		uses, err := allUses(tx)
		if err != nil {
			return err
		}
		last := uint64(0)
		for _, u := range uses {
			last = max(last, u.Seq)
		}
		return put(tx, bucketUses, []byte(manifest), Use{Seq: last + 1, At: at.UTC()})
	})
	if err != nil {
		c.usedMu.Lock()
		delete(c.used, manifest)
		c.usedMu.Unlock()
	}
	return wrap("note use of", manifest.String(), err)
}

// Uses returns when each image was used last. One that is not in it never was.
func (c *Catalog) Uses() (uses map[digest.Digest]Use, err error) {
	err = c.db.View(func(tx *database.Tx) error { uses, err = allUses(tx); return err })
	return uses, wrap("list", "uses", err)
}

func allUses(tx *database.Tx) (map[digest.Digest]Use, error) {
	uses := map[digest.Digest]Use{}
	return uses, tx.ForEach(bucketUses, func(k, v []byte) error {
		var u Use
		if err := json.Unmarshal(v, &u); err != nil {
			return err
		}
		uses[digest.Digest(k)] = u
		return nil
	})
}
