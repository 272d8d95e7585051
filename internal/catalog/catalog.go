// Package catalog remembers which images a node has met: what their tags
// meant, which layers they are made of, and where those can be had.
//
// It is what lets a node answer containerd without asking the link. A manifest
// and its config, once they have passed through the mirror, tell the chain ID
// of every layer; so when containerd prepares a snapshot and says nothing but
// a chain ID, the catalog knows whether that layer can be served before it is
// here. Everything that it holds follows from content that was verified by its
// digest; the tags alone are what a registry said.
//
// Layers get slots: small numbers that name their directory in the FUSE tree
// and are part of every inode number, so a slot, once given, never moves.
package catalog

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/artifact"
	"github.com/airstream-io/airstream/internal/database"
)

// Source is a repository that a blob can be had from.
type Source struct {
	Host string `json:"host"` // registry, as references have it: "registry.example:5000"
	Repo string `json:"repo"`
}

// Layer is a layer that can be served before it is here.
type Layer struct {
	Slot      uint32        `json:"slot"`                // 1 and up
	TOC       digest.Digest `json:"toc"`                 // of its table of contents
	TOCOffset int64         `json:"tocOffset,omitempty"` // hint: bytes into the blob; 0 unknown
	Blob      digest.Digest `json:"blob"`
	Size      int64         `json:"size"`    // bytes, compressed
	Sources   []Source      `json:"sources"` // the latest first
	// Hot is the plan of what a start reads, as package trace writes it and as
	// the manifest at hand has it; another image may have another one.
	Hot string `json:"-"`

	// Own says what the layer's tree is made from in place of its table, of one that
	// Bind returned; else nil.
	Own *Own `json:"own,omitempty"`

	// Of a layer that was never converted, see Vouch; else empty.
	DiffID   digest.Digest `json:"diffID,omitempty"`   // that somebody vouches for
	Outline  digest.Digest `json:"outline,omitempty"`  // the blob that its tree was made from; "": nobody vouches any more
	TarSize  int64         `json:"tarSize,omitempty"`  // bytes
	Verified bool          `json:"verified,omitempty"` // its tar has DiffID

	Wrong string `json:"wrong,omitempty"` // why its images are in quarantine
}

// ImageLayer is one layer of an image, in its order.
type ImageLayer struct {
	ChainID   digest.Digest `json:"chainID"`
	DiffID    digest.Digest `json:"diffID"`
	Blob      digest.Digest `json:"blob"`
	MediaType string        `json:"mediaType"`
	Size      int64         `json:"size"`             // bytes, compressed
	Slot      uint32        `json:"slot,omitempty"`   // 0: not lazy
	Own       uint32        `json:"own,omitempty"`    // slot of the tree that the image's own root has for it; 0: none, see Bind
	Reason    string        `json:"reason,omitempty"` // why it is not
}

// Image is one platform's image.
type Image struct {
	Manifest  digest.Digest `json:"manifest"`
	MediaType string        `json:"mediaType"`
	Config    digest.Digest `json:"config"`
	Platform  string        `json:"platform"`        // "linux/arm64/v8"
	Names     []string      `json:"names,omitempty"` // "host/repo:tag", by which it was asked for
	Layers    []ImageLayer  `json:"layers"`          // lowest first
	Learned   time.Time     `json:"learned"`
	// Artifact is what its manifest says of one table for all layers and of its
	// hot set; nil if it says nothing that this version reads.
	Artifact *artifact.Ref `json:"artifact,omitempty"`
}

// Size returns the sum of the layers' compressed sizes, in bytes.
func (i *Image) Size() int64 {
	var n int64
	for _, l := range i.Layers {
		n += l.Size
	}
	return n
}

// Tag is what a tag meant when a registry was last asked.
type Tag struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	Size      int64         `json:"size"` // bytes
	Seen      time.Time     `json:"seen"`
	// Held says that this is what it is to mean, whatever a registry says.
	Held bool `json:"held,omitempty"`
}

// ErrConflict says that an image contradicts one that is here already: it
// gives a chain ID, which names the content of a stack of layers, to another
// table of contents. One of the two lies about its content.
var ErrConflict = errors.New("images disagree about a layer's content")

var (
	bucketTags   = []byte("tags")   // "host/repo:tag" → Tag
	bucketImages = []byte("images") // manifest digest → Image
	bucketLayers = []byte("layers") // slot, big-endian → Layer
	bucketSlots  = []byte("slots")  // TOC digest, or what annotation.TableOf has for none → slot, big-endian
	bucketChains = []byte("chains") // chain ID → ImageLayer
	bucketTypes  = []byte("types")  // manifest or index digest → media type
	bucketSizes  = []byte("sizes")  // layer or config digest → bytes, big-endian
	bucketPins   = []byte("pins")   // manifest digest → true
	bucketUses   = []byte("uses")   // manifest digest → Use
	bucketHots   = []byte("hots")   // manifest digest → slot → plan
	bucketFree   = []byte("free")   // slot, big-endian → nothing; no image has the layer any more

	bucketReferrers = []byte("referrers") // manifest digest, space, "host/repo" → Referrers
)

var buckets = [][]byte{
	bucketTags, bucketImages, bucketLayers, bucketSlots, bucketChains, bucketTypes, bucketSizes,
	bucketPins, bucketUses, bucketHots, bucketFree, bucketReferrers,
	bucketFormer, bucketActive,
}

// Catalog is safe for concurrent use by one process.
type Catalog struct {
	db      *database.DB
	garbage atomic.Bool // something may have been removed that the store still has

	usedMu sync.Mutex
	used   map[digest.Digest]time.Time // guarded by usedMu; when a use was written last
}

// Open opens the catalog in the file name, making it if it isn't there. One that
// is damaged is made anew from its journal, which loses nothing unless that is
// damaged in the same place.
func Open(name string, log *slog.Logger) (*Catalog, error) {
	db, err := database.Open(name, database.Options{Buckets: buckets, Journal: true, Check: true, Logger: log})
	if err != nil {
		return nil, fmt.Errorf("catalog: %w", err)
	}
	c := &Catalog{db: db, used: map[digest.Digest]time.Time{}}
	c.garbage.Store(true) // a process before this one may have been stopped in between
	return c, nil
}

// Close closes the catalog.
func (c *Catalog) Close() error {
	if err := c.db.Close(); err != nil {
		return fmt.Errorf("catalog: close: %w", err)
	}
	return nil
}

// SetTag remembers what name, "host/repo:tag", means.
func (c *Catalog) SetTag(name string, t Tag) error {
	err := c.db.Update(func(tx *database.Tx) error {
		if old := (Tag{}); get(tx, bucketTags, []byte(name), &old) == nil && old.Digest == t.Digest && old.Held == t.Held && t.Seen.Sub(old.Seen) < time.Hour {
			return nil // not worth a write
		}
		if err := tx.Put(bucketTypes, []byte(t.Digest), []byte(t.MediaType)); err != nil {
			return err
		}
		return put(tx, bucketTags, []byte(name), t)
	})
	return wrap("set tag", name, err)
}

// Tag returns what name, "host/repo:tag", meant last. The error is
// fs.ErrNotExist if it was never asked for.
func (c *Catalog) Tag(name string) (Tag, error) {
	var t Tag
	err := c.db.View(func(tx *database.Tx) error { return get(tx, bucketTags, []byte(name), &t) })
	return t, wrap("tag", name, err)
}

// SetMediaType remembers the media type of a manifest or index.
func (c *Catalog) SetMediaType(d digest.Digest, mediaType string) error {
	err := c.db.Update(func(tx *database.Tx) error {
		if old, err := tx.Get(bucketTypes, []byte(d)); err != nil || string(old) == mediaType {
			return err
		}
		return tx.Put(bucketTypes, []byte(d), []byte(mediaType))
	})
	return wrap("set media type", d.String(), err)
}

// MediaType returns the media type of a manifest or index, or fs.ErrNotExist.
func (c *Catalog) MediaType(d digest.Digest) (string, error) {
	var s string
	err := c.db.View(func(tx *database.Tx) error {
		v, err := tx.Get(bucketTypes, []byte(d))
		if err == nil && v == nil {
			err = fs.ErrNotExist
		}
		s = string(v)
		return err
	})
	return s, wrap("media type", d.String(), err)
}

// Chain returns the layer whose chain ID is id, or fs.ErrNotExist if no image
// has told of it.
func (c *Catalog) Chain(id digest.Digest) (ImageLayer, error) {
	var l ImageLayer
	err := c.db.View(func(tx *database.Tx) error { return get(tx, bucketChains, []byte(id), &l) })
	return l, wrap("chain", id.String(), err)
}

// Layer returns the layer in a slot, or fs.ErrNotExist.
func (c *Catalog) Layer(slot uint32) (Layer, error) {
	var l Layer
	err := c.db.View(func(tx *database.Tx) error { return get(tx, bucketLayers, slotKey(slot), &l) })
	return l, wrap("layer in slot", fmt.Sprint(slot), err)
}

// Image returns the image with a manifest, or fs.ErrNotExist.
func (c *Catalog) Image(manifest digest.Digest) (Image, error) {
	var i Image
	err := c.db.View(func(tx *database.Tx) error { return get(tx, bucketImages, []byte(manifest), &i) })
	return i, wrap("image", manifest.String(), err)
}

// Images returns all images, by manifest digest.
func (c *Catalog) Images() ([]Image, error) {
	var all []Image
	err := c.db.View(func(tx *database.Tx) error {
		all = nil
		return eachImage(tx, func(i *Image) error {
			all = append(all, *i)
			return nil
		})
	})
	return all, wrap("list", "images", err)
}

// eachImage calls do for all images, by manifest digest.
func eachImage(tx *database.Tx, do func(i *Image) error) error {
	return tx.ForEach(bucketImages, func(_, v []byte) error {
		var i Image
		if err := json.Unmarshal(v, &i); err != nil {
			return err
		}
		return do(&i)
	})
}

func slotKey(slot uint32) []byte { return binary.BigEndian.AppendUint32(nil, slot) }

func get(tx *database.Tx, bucket, key []byte, v any) error {
	b, err := tx.Get(bucket, key)
	if err != nil {
		return err
	}
	if b == nil {
		return fs.ErrNotExist
	}
	return json.Unmarshal(b, v)
}

func put(tx *database.Tx, bucket, key []byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return tx.Put(bucket, key, b)
}

func wrap(verb, name string, err error) error {
	if err != nil {
		return fmt.Errorf("catalog: %s %s: %w", verb, name, err)
	}
	return nil
}

// BlobSize returns the size of a layer or config that an image names, in
// bytes, or fs.ErrNotExist.
func (c *Catalog) BlobSize(d digest.Digest) (int64, error) {
	size := int64(-1)
	err := c.db.View(func(tx *database.Tx) error {
		v, err := tx.Get(bucketSizes, []byte(d))
		if err != nil {
			return err
		}
		if len(v) != 8 {
			return fs.ErrNotExist
		}
		size = int64(binary.BigEndian.Uint64(v))
		return nil
	})
	return size, wrap("size of", d.String(), err)
}
