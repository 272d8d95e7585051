package catalog

import (
	"encoding/json"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/database"
)

// NamedTag is a tag with the name that it belongs to.
type NamedTag struct {
	Name string // "host/repo:tag"
	Tag
}

// Tags returns all tags, by name.
func (c *Catalog) Tags() ([]NamedTag, error) {
	var all []NamedTag
	err := c.db.View(func(tx *database.Tx) error {
		all = nil
		return tx.ForEach(bucketTags, func(k, v []byte) error {
			t := NamedTag{Name: string(k)}
			if err := json.Unmarshal(v, &t.Tag); err != nil {
				return err
			}
			all = append(all, t)
			return nil
		})
	})
	return all, wrap("list", "tags", err)
}

// Names returns the names, "host/repo:tag", by which an image was asked for.
func (c *Catalog) Names(manifest digest.Digest) ([]string, error) {
	i, err := c.Image(manifest)
	return i.Names, err
}

// Referrers is what a registry said refers to a manifest.
type Referrers struct {
	Index []byte    `json:"index"` // an OCI image index, as the registry sent it
	Seen  time.Time `json:"seen"`
}

// SetReferrers remembers what a repository says refers to the manifest
// subject.
func (c *Catalog) SetReferrers(src Source, subject digest.Digest, index []byte, seen time.Time) error {
	err := c.db.Update(func(tx *database.Tx) error {
		return put(tx, bucketReferrers, referrersKey(src, subject), Referrers{Index: index, Seen: seen.UTC()})
	})
	return wrap("set referrers of", subject.String(), err)
}

// Referrers returns what SetReferrers remembered last, or fs.ErrNotExist.
func (c *Catalog) Referrers(src Source, subject digest.Digest) (Referrers, error) {
	var r Referrers
	err := c.db.View(func(tx *database.Tx) error { return get(tx, bucketReferrers, referrersKey(src, subject), &r) })
	return r, wrap("referrers of", subject.String(), err)
}

func referrersKey(src Source, subject digest.Digest) []byte {
	return []byte(subject.String() + " " + src.Host + "/" + src.Repo)
}
