package cache

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/store"
)

// tiny is the largest blob that is kept as long as its manifest, in bytes:
// configs, signatures and the like cost less than asking for them again.
const tiny = 1 << 20

// maxManifest bounds what is read as a manifest, in bytes, as the mirror does.
const maxManifest = 8 << 20

// survey is what the catalog says about who wants what.
type survey struct {
	images []catalog.Image        // that may be evicted, oldest use first; image i has rank i+1
	layers map[uint32]layer       // by slot
	blobs  map[digest.Digest]rank // that somebody wants
	dead   map[digest.Digest]bool // layer blobs that are not needed to run their image
}

// layer is one lazy layer.
type layer struct {
	catalog.Layer
	rank rank
	hot  []string // plans of the images that have it
}

// look asks the catalog.
func look(s *store.Store, c *catalog.Catalog, opts Options) (*survey, error) {
	// What is in use comes last of all that is asked: what is mounted in
	// between belongs to an image that was used in between.
	images, err := c.Images()
	if err != nil {
		return nil, err
	}
	all, err := c.AllLayers()
	if err != nil {
		return nil, err
	}
	free, _, err := c.Free()
	if err != nil {
		return nil, err
	}
	pinned, err := c.Pinned()
	if err != nil {
		return nil, err
	}
	kept, err := c.Kept()
	if err != nil {
		return nil, err
	}
	uses, err := c.Uses()
	if err != nil {
		return nil, err
	}
	types, err := c.Manifests()
	if err != nil {
		return nil, err
	}
	var inUse map[uint32]bool
	if opts.InUse != nil {
		if inUse, err = opts.InUse(); err != nil {
			return nil, fmt.Errorf("ask what is in use: %w", err)
		}
	}

	v := &survey{layers: map[uint32]layer{}, blobs: map[digest.Digest]rank{}, dead: map[digest.Digest]bool{}}
	for _, l := range all {
		// A layer that no image has is about to be learned, unless it was
		// removed with its image.
		r := forever
		if free[l.Slot] && !inUse[l.Slot] {
			r = 0
		}
		v.layers[l.Slot] = layer{Layer: l, rank: r}
	}
	slices.SortStableFunc(images, func(a, b catalog.Image) int {
		return cmp.Or(cmp.Compare(uses[a.Manifest].Seq, uses[b.Manifest].Seq), a.Learned.Compare(b.Learned))
	})
	ranks := map[digest.Digest]rank{}
	for i := range images {
		img := &images[i]
		ranks[img.Manifest] = forever
		if !pinned[img.Manifest] && !kept[img.Manifest] && !slices.ContainsFunc(img.Layers, func(l catalog.ImageLayer) bool { return l.Slot != 0 && inUse[l.Slot] || l.Own != 0 && inUse[l.Own] }) {
			v.images = append(v.images, *img)
			ranks[img.Manifest] = rank(len(v.images))
		}
	}
	if err := v.rankLayers(c, images, ranks, inUse); err != nil {
		return nil, err
	}
	for i := range images {
		v.rankBlobs(s, &images[i], ranks[images[i].Manifest], opts)
	}
	return v, v.rankOthers(s, types, ranks)
}

// rankLayers gives each lazy layer the highest rank of its images, and their
// plans.
func (v *survey) rankLayers(c *catalog.Catalog, images []catalog.Image, ranks map[digest.Digest]rank, inUse map[uint32]bool) error {
	of := map[uint32]rank{}
	plans := map[uint32][]string{}
	for i := range images {
		img := &images[i]
		hot, err := c.Hot(img.Manifest)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue // removed a moment ago
			}
			return err
		}
		for _, l := range img.Layers { // the tables' trees, too, if an own one was not to be had
			if l.Slot != 0 {
				of[l.Slot] = max(of[l.Slot], ranks[img.Manifest])
			}
		}
		for _, l := range hot {
			of[l.Slot] = max(of[l.Slot], ranks[img.Manifest])
			if l.Hot != "" {
				plans[l.Slot] = append(plans[l.Slot], l.Hot)
			}
		}
	}
	for slot, r := range of {
		l := v.layers[slot]
		l.rank, l.hot = r, plans[slot]
		if inUse[slot] {
			l.rank = forever
		}
		v.layers[slot] = l
	}
	return nil
}

// rankBlobs says who wants the blobs of an image.
func (v *survey) rankBlobs(s *store.Store, img *catalog.Image, r rank, opts Options) {
	v.want(img.Manifest, forever)
	v.want(img.Config, forever)
	if img.Artifact != nil {
		v.want(digest.Digest(img.Artifact.Root.Digest), forever)
	}
	for _, l := range img.Layers {
		v.want(l.Blob, r)
		dead := l.Slot == 0 && opts.Unpacked != nil && opts.Unpacked(l.ChainID)
		if lazy := v.layers[l.Slot]; lazy.Outline != "" && !lazy.Verified {
			v.want(lazy.Outline, forever) // its diffID is to be compared yet
		}
		if _, here := s.HasBlob(l.Blob); here && l.Slot != 0 {
			dead = complete(s, v.layers[l.Serving()].Layer)
		}
		if dead {
			v.dead[l.Blob] = true
		}
	}
}

func (v *survey) want(d digest.Digest, r rank) { v.blobs[d] = max(v.blobs[d], r) }

// rankOthers keeps manifests, and what those name that are no images that the
// catalog knows: indexes, charts, signatures.
func (v *survey) rankOthers(s *store.Store, types map[digest.Digest]string, images map[digest.Digest]rank) error {
	for d := range types {
		v.want(d, forever)
		if _, ok := images[d]; ok {
			continue
		}
		b, err := s.ReadBlob(d, maxManifest)
		if err != nil {
			continue // not here, or not any more; either way it names nothing
		}
		var m ocispec.Manifest
		if json.Unmarshal(b, &m) != nil {
			continue
		}
		for _, desc := range append(m.Layers, m.Config) {
			if desc.Size <= tiny {
				v.want(desc.Digest, forever)
			} else {
				v.want(desc.Digest, 1)
			}
		}
	}
	return nil
}

// complete tells whether all content of a lazy layer is here.
func complete(s *store.Store, l catalog.Layer) bool {
	if !s.HasTree(l.TOC) {
		return false
	}
	t, err := s.Tree(l.TOC)
	if err != nil {
		return false
	}
	whole := true
	err = s.View(func(v store.View) error {
		for entry := range uint32(t.Len()) {
			first, end := t.Chunks(entry)
			if first == end {
				continue
			}
			if whole = t.Known(entry); !whole {
				return nil
			}
			missing, err := v.Missing(t.ObjectID(entry), end-first)
			if whole = missing == 0; err != nil || !whole {
				return err
			}
		}
		return nil
	})
	return err == nil && whole
}

// mark marks the objects of all layers whose trees are here.
func (v *survey) mark(ctx context.Context, s *store.Store) (marks, error) {
	var m marks
	for _, l := range v.layers {
		if !s.HasTree(l.TOC) {
			continue
		}
		t, err := s.Tree(l.TOC)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, store.ErrDamaged) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if m, err = m.markLayer(ctx, t, l.rank, l.Layer, l.hot); err != nil {
			return nil, err
		}
	}
	return m.settle(), nil
}
