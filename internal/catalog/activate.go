package catalog

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/database"
)

// Activation is a name and what it is to mean.
type Activation struct {
	Name      string // "host/repo:tag"
	Tag       Tag
	Manifests []digest.Digest // images that are it: one, or those of an index that are here
}

// Former is what a name meant before it was activated.
type Former struct {
	Tag
	Manifests []digest.Digest `json:"manifests"`
}

// ErrNoFormer says that a name has meant nothing else before.
var ErrNoFormer = errors.New("nothing is known that it meant before")

var (
	bucketFormer = []byte("former") // "host/repo:tag" → Former
	bucketActive = []byte("active") // "host/repo:tag" → manifests that it was activated with
)

// Activate lets names mean images, all of them or none. What a name meant before is
// remembered, see Rollback. It returns the names that mean something else than
// before, and what that was; empty if nothing.
func (c *Catalog) Activate(list ...Activation) (changed map[string]digest.Digest, err error) {
	err = c.db.Update(func(tx *database.Tx) error {
		changed = map[string]digest.Digest{}
		for _, a := range list {
			before, ok, err := activate(tx, a)
			if err != nil {
				return fmt.Errorf("%s: %w", a.Name, err)
			}
			if ok {
				changed[a.Name] = before
			}
		}
		return nil
	})
	return changed, wrap("activate", fmt.Sprint(len(list), " names"), err)
}

func activate(tx *database.Tx, a Activation) (before digest.Digest, changed bool, err error) {
	var old Tag
	err = get(tx, bucketTags, []byte(a.Name), &old)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", false, err
	}
	if old.Digest == a.Tag.Digest && old.Held == a.Tag.Held {
		return "", false, nil
	}
	if old.Digest != "" && old.Digest != a.Tag.Digest {
		former := Former{Tag: old, Manifests: []digest.Digest{old.Digest}}
		if err := get(tx, bucketActive, []byte(a.Name), &former.Manifests); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", false, err
		}
		if !slices.Contains(former.Manifests, old.Digest) && len(former.Manifests) == 0 {
			former.Manifests = []digest.Digest{old.Digest}
		}
		if err := put(tx, bucketFormer, []byte(a.Name), former); err != nil {
			return "", false, err
		}
	}
	for _, m := range a.Manifests {
		if err := addName(tx, m, a.Name); err != nil {
			return "", false, err
		}
	}
	if err := put(tx, bucketActive, []byte(a.Name), a.Manifests); err != nil {
		return "", false, err
	}
	if err := tx.Put(bucketTypes, []byte(a.Tag.Digest), []byte(a.Tag.MediaType)); err != nil {
		return "", false, err
	}
	return old.Digest, old.Digest != a.Tag.Digest, put(tx, bucketTags, []byte(a.Name), a.Tag)
}

// addName gives a name to an image, if it is one.
func addName(tx *database.Tx, manifest digest.Digest, name string) error {
	var i Image
	err := get(tx, bucketImages, []byte(manifest), &i)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a chart, say
	}
	if err != nil || slices.Contains(i.Names, name) {
		return err
	}
	i.Names = append(i.Names, name)
	return put(tx, bucketImages, []byte(manifest), i)
}

// Former returns what a name meant before it was activated last, or ErrNoFormer.
func (c *Catalog) Former(name string) (Former, error) {
	var f Former
	err := c.db.View(func(tx *database.Tx) error { return get(tx, bucketFormer, []byte(name), &f) })
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNoFormer
	}
	return f, wrap("former meaning of", name, err)
}

// Rollback lets a name mean again what it meant before, and holds it there: no
// registry is asked until it is activated or fetched again. What it meant until now
// is what it meant before, from then on. Errors are ErrNoFormer.
func (c *Catalog) Rollback(name string) (before, after Tag, err error) {
	err = c.db.Update(func(tx *database.Tx) error {
		var f Former
		err := get(tx, bucketFormer, []byte(name), &f)
		if errors.Is(err, fs.ErrNotExist) {
			return ErrNoFormer
		}
		if err == nil {
			err = get(tx, bucketTags, []byte(name), &before)
		}
		if err != nil {
			return err
		}
		after = f.Tag
		after.Held = true
		_, _, err = activate(tx, Activation{Name: name, Tag: after, Manifests: f.Manifests})
		return err
	})
	return before, after, wrap("roll back", name, err)
}

// Kept returns the manifests that names meant before, which stay so that Rollback
// finds them.
func (c *Catalog) Kept() (map[digest.Digest]bool, error) {
	var kept map[digest.Digest]bool
	err := c.db.View(func(tx *database.Tx) error {
		kept = map[digest.Digest]bool{}
		return tx.ForEach(bucketFormer, func(k, _ []byte) error {
			var f Former
			err := get(tx, bucketFormer, k, &f)
			for _, m := range f.Manifests {
				kept[m] = true
			}
			return err
		})
	})
	return kept, wrap("list", "former images", err)
}
