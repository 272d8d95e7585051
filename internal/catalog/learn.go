package catalog

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/artifact"
	"github.com/airstream-io/airstream/internal/database"
)

// maxLayers bounds what a manifest may list. overlayfs stacks 500 at most.
const maxLayers = 1000

// ErrInvalid says that a manifest and config don't make an image.
var ErrInvalid = errors.New("not a container image")

// parsed is an image as its manifest and config describe it.
type parsed struct {
	Image
	layers []Layer // lazy ones; Slot not given yet, index as in Image.Layers
	descs  []ocispec.Descriptor
}

// Learn remembers the image that a manifest and its config make. Both have
// been verified by their digests: manifest is the manifest's, and the config's
// stands in it. name is "host/repo:tag" if the image was asked for by a tag,
// else empty. An image that contradicts one that is here is ErrConflict; what
// is no image, ErrInvalid.
func (c *Catalog) Learn(src Source, name string, mediaType string, manifest, config []byte) (Image, error) {
	p, err := parse(mediaType, manifest, config)
	if err != nil {
		return Image{}, fmt.Errorf("catalog: learn %s/%s: %w", src.Host, src.Repo, err)
	}
	err = c.db.Update(func(tx *database.Tx) error { return p.save(tx, src, name) })
	return p.Image, wrap("learn", p.Manifest.String(), err)
}

// Layers gives slots to the lazy layers of a manifest and returns them, before
// its config is here: their tables of contents can begin to cross. It remembers the sizes of
// all blobs that the manifest names, be it an image's or not. The manifest has
// been verified by its digest.
func (c *Catalog) Layers(src Source, manifest []byte) (layers []Layer, err error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return nil, fmt.Errorf("catalog: layers of %s/%s: %w: manifest: %w", src.Host, src.Repo, ErrInvalid, err)
	}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("catalog: layers of %s/%s: %w: %d layers", src.Host, src.Repo, ErrInvalid, len(m.Layers))
	}
	err = c.db.Update(func(tx *database.Tx) error {
		layers = nil
		for _, desc := range append(m.Layers, m.Config) {
			if desc.Digest.Validate() != nil || desc.Size < 0 {
				continue
			}
			if err := tx.Put(bucketSizes, []byte(desc.Digest), binary.BigEndian.AppendUint64(nil, uint64(desc.Size))); err != nil {
				return err
			}
		}
		for _, desc := range m.Layers {
			l, err := vouched(tx, desc)
			if err != nil {
				return err
			}
			if l.Slot == 0 {
				if notLazy(desc) != "" || desc.Digest.Validate() != nil || desc.Size < 0 {
					continue
				}
				l = lazyLayer(desc)
			}
			if l.Slot, err = giveSlot(tx, l, src); err != nil {
				return err
			}
			layers = append(layers, l)
		}
		return nil
	})
	return layers, wrap("layers of", src.Host+"/"+src.Repo, err)
}

func lazyLayer(desc ocispec.Descriptor) Layer {
	return Layer{TOC: digest.Digest(desc.Annotations[annotation.TOCDigest]), TOCOffset: tocOffset(desc), Blob: desc.Digest, Size: desc.Size, Hot: desc.Annotations[annotation.Hot]}
}

func parse(mediaType string, manifest, config []byte) (*parsed, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrInvalid, err)
	}
	var cfg ocispec.Image
	if err := json.Unmarshal(config, &cfg); err != nil {
		return nil, fmt.Errorf("%w: config: %w", ErrInvalid, err)
	}
	diffIDs := cfg.RootFS.DiffIDs
	if len(m.Layers) != len(diffIDs) {
		return nil, fmt.Errorf("%w: %d layers and %d diffIDs", ErrInvalid, len(m.Layers), len(diffIDs))
	}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("%w: %d layers", ErrInvalid, len(m.Layers))
	}
	p := &parsed{
		Image: Image{
			Manifest: digest.FromBytes(manifest), MediaType: mediaType, Config: m.Config.Digest,
			Platform: platform(cfg.Platform), Learned: time.Now().UTC(),
		},
		layers: make([]Layer, len(m.Layers)),
		descs:  m.Layers,
	}
	if err := m.Config.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%w: config %q: %w", ErrInvalid, m.Config.Digest, err)
	}
	for i, d := range diffIDs {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("%w: diffID %q: %w", ErrInvalid, d, err)
		}
		if err := m.Layers[i].Digest.Validate(); err != nil || m.Layers[i].Size < 0 {
			return nil, fmt.Errorf("%w: layer %q of %d bytes", ErrInvalid, m.Layers[i].Digest, m.Layers[i].Size)
		}
	}
	for i, chain := range identity.ChainIDs(slices.Clone(diffIDs)) {
		desc := m.Layers[i]
		l := ImageLayer{ChainID: chain, DiffID: diffIDs[i], Blob: desc.Digest, MediaType: desc.MediaType, Size: desc.Size}
		if l.Reason = notLazy(desc); l.Reason == "" {
			p.layers[i] = lazyLayer(desc)
		}
		p.Layers = append(p.Layers, l)
	}
	p.Artifact = artifactOf(m.Annotations)
	return p, nil
}

// artifactOf reads what a manifest says of the image's artifact.
func artifactOf(annotations map[string]string) *artifact.Ref {
	ref, ok := artifact.ParseRef(annotations)
	if !ok {
		return nil
	}
	return &ref
}

func platform(p ocispec.Platform) string {
	return strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
}

// notLazy says in a few words why a layer can't be served before it is here.
func notLazy(desc ocispec.Descriptor) string {
	toc, ok := desc.Annotations[annotation.TOCDigest]
	switch {
	case !ok:
		return "it has no table of contents: the image was not converted"
	case digest.Digest(toc).Validate() != nil || digest.Digest(toc).Algorithm() != digest.SHA256:
		return "its table of contents has no SHA-256 digest"
	case desc.Digest.Algorithm() != digest.SHA256:
		return "its digest is not SHA-256"
	case !strings.HasSuffix(desc.MediaType, "gzip"): // "…layer.v1.tar+gzip", "…rootfs.diff.tar.gzip"
		return "its media type is " + desc.MediaType
	}
	return ""
}

// tocOffset reads the hint; one that makes no sense is as good as none.
func tocOffset(desc ocispec.Descriptor) int64 {
	n, err := strconv.ParseInt(desc.Annotations[annotation.TOCOffset], 10, 64)
	if err != nil || n < 0 || n >= desc.Size {
		return 0
	}
	return n
}

func (p *parsed) save(tx *database.Tx, src Source, name string) error {
	if err := p.useWord(tx, p.descs); err != nil {
		return err
	}
	for i := range p.Layers {
		if p.Layers[i].Reason != "" {
			continue
		}
		slot, err := giveSlot(tx, p.layers[i], src)
		if err != nil {
			return err
		}
		p.Layers[i].Slot = slot
	}
	for i := range p.Layers {
		l := &p.Layers[i]
		var old ImageLayer
		err := get(tx, bucketChains, []byte(l.ChainID), &old)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			err = put(tx, bucketChains, []byte(l.ChainID), *l)
		case err == nil && old.Slot != l.Slot:
			err = reconcile(tx, l, old)
		}
		if err != nil {
			return err
		}
	}
	if err := p.useOwn(tx); err != nil {
		return err
	}
	var old Image
	if err := get(tx, bucketImages, []byte(p.Manifest), &old); err == nil {
		p.Names = old.Names
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if name != "" && !slices.Contains(p.Names, name) {
		p.Names = append(p.Names, name)
	}
	if err := tx.Put(bucketTypes, []byte(p.Manifest), []byte(p.MediaType)); err != nil {
		return err
	}
	plans := map[uint32]string{}
	for i, l := range p.layers {
		if l.Hot != "" {
			plans[p.Layers[i].Slot] = l.Hot
		}
	}
	if len(plans) > 0 {
		if err := put(tx, bucketHots, []byte(p.Manifest), plans); err != nil {
			return err
		}
	}
	return put(tx, bucketImages, []byte(p.Manifest), p.Image)
}

// giveSlot returns the slot of a layer, a new one if it has none, and
// remembers one more source of it.
func giveSlot(tx *database.Tx, l Layer, src Source) (uint32, error) {
	key := []byte(l.TOC)
	v, err := tx.Get(bucketSlots, key)
	if err != nil {
		return 0, err
	}
	if len(v) == 4 {
		l.Slot = binary.BigEndian.Uint32(v)
		var old Layer
		if err := get(tx, bucketLayers, slotKey(l.Slot), &old); err != nil {
			return 0, err
		}
		l.Sources = old.Sources
		if old.Blob != l.Blob {
			// The same table in another blob: recompressed. Offsets would
			// differ, so they can't both be right; the first is kept.
			return 0, fmt.Errorf("%w: table of contents %s belongs to blob %s here", ErrConflict, l.TOC, old.Blob)
		}
		if old.Own != nil && l.Own == nil {
			return 0, fmt.Errorf("%w: what layer %s names as its table of contents is none", ErrConflict, l.Blob)
		}
		if err := l.newWord(old); err != nil {
			return 0, err
		}
		l.TOCOffset = max(l.TOCOffset, old.TOCOffset)
	} else {
		if l.Slot, err = freeSlot(tx); err != nil {
			return 0, err
		}
		if err := tx.Put(bucketSlots, key, slotKey(l.Slot)); err != nil {
			return 0, err
		}
	}
	if i := slices.Index(l.Sources, src); i != 0 {
		if i > 0 {
			l.Sources = slices.Delete(l.Sources, i, i+1)
		}
		l.Sources = slices.Insert(l.Sources, 0, src)
		if len(l.Sources) > 8 {
			l.Sources = l.Sources[:8]
		}
	}
	if err := tx.Delete(bucketFree, slotKey(l.Slot)); err != nil {
		return 0, err
	}
	return l.Slot, put(tx, bucketLayers, slotKey(l.Slot), l)
}

// freeSlot returns the slot above all that were ever given.
func freeSlot(tx *database.Tx) (uint32, error) {
	last := uint32(0)
	err := tx.ForEach(bucketSlots, func(_, v []byte) error {
		if len(v) == 4 {
			last = max(last, binary.BigEndian.Uint32(v))
		}
		return nil
	})
	if err == nil && last >= 1<<31-1 {
		err = errors.New("all slots are taken")
	}
	return last + 1, err
}
