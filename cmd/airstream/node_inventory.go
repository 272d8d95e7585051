package main

import (
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/internal/catalog"
)

// knownImage is what a tag meant last, of an image that is here in part.
type knownImage struct {
	root     registry.Manifest
	manifest []byte // of this platform; root's own, if it is no index
}

// known returns what a tag meant last; nothing if it is not known.
func (s *onShore) known(src catalog.Source, ref string) (k knownImage) {
	tag, err := s.n.catalog.Tag(src.Host + "/" + src.Repo + ":" + ref)
	if err != nil {
		return k
	}
	body, err := s.n.store.ReadBlob(tag.Digest, registry.MaxManifestSize)
	if err != nil {
		return k
	}
	root := registry.Manifest{Digest: tag.Digest, MediaType: tag.MediaType, Body: body}
	if _, err := s.n.catalog.Image(tag.Digest); err == nil {
		return knownImage{root, body}
	}
	var index ocispec.Index
	if json.Unmarshal(body, &index) != nil {
		return k
	}
	for _, d := range index.Manifests {
		if _, err := s.n.catalog.Image(d.Digest); err == nil {
			if body, err := s.n.store.ReadBlob(d.Digest, registry.MaxManifestSize); err == nil {
				return knownImage{root, body}
			}
		}
	}
	return k
}

// haveImage is an image that is here whole, or of which the hot set is.
type haveImage struct {
	src  catalog.Source
	ref  string
	warm bool // the hot set alone
}

// inventory returns images of which a proxy need not send anything, and those of
// which it need not send what a start reads; the same repository's first.
func (s *onShore) inventory(src catalog.Source) (whole, warm []string) {
	s.mu.Lock()
	all := slices.Clone(s.have)
	s.mu.Unlock()
	slices.SortStableFunc(all, func(a, b haveImage) int {
		switch {
		case (a.src == src) == (b.src == src):
			return 0
		case a.src == src:
			return -1
		}
		return 1
	})
	for _, h := range all {
		if h.warm {
			warm = append(warm, h.ref)
		} else {
			whole = append(whole, h.ref)
		}
	}
	return whole, warm
}

// inventoryEvery is how often it is looked which images are here whole.
const inventoryEvery = time.Minute

func (s *onShore) keepInventory() {
	for {
		if err := s.takeInventory(); err != nil {
			s.log.Warn("it is not known which images are here whole", slog.Any("error", err))
		}
		if !s.rest(inventoryEvery) {
			return
		}
	}
}

// takeInventory looks which images are here, whole or with what a start reads.
func (s *onShore) takeInventory() error {
	images, err := s.n.catalog.Images()
	if err != nil {
		return err
	}
	var have []haveImage
	var tables []digest.Digest
	byTable := map[[8]byte]uint32{}
	for i := range images {
		img := &images[i]
		slots := slotsOf(img)
		if len(slots) == 0 {
			continue
		}
		c, err := s.n.fetcher.Completeness(slots...)
		if err != nil {
			continue
		}
		l, err := s.n.catalog.Layer(slots[0])
		if err != nil || len(l.Sources) == 0 {
			continue
		}
		if c.Tables == c.Lazy {
			s.bases(byTable, slots)
		}
		if !c.Complete() {
			tables = append(tables, s.tablesOf(slots)...)
		}
		if c.Complete() || c.Hot() {
			src := l.Sources[0]
			have = append(have, haveImage{src, src.Host + "/" + src.Repo + "@" + img.Manifest.String(), !c.Complete()})
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.have, s.tables, s.byTable = have, tables, byTable
	return nil
}

// bases notes by what names of their tables a proxy may build on layers.
func (s *onShore) bases(byTable map[[8]byte]uint32, slots []uint32) {
	for _, slot := range slots {
		l, err := s.n.catalog.Layer(slot)
		if err != nil {
			continue
		}
		if b, err := hex.DecodeString(l.TOC.Encoded()); err == nil && len(b) >= 8 {
			byTable[[8]byte(b)] = slot
		}
	}
}

// tablesOfImage returns the digests of those of an image's tables that are here:
// more may be than at the last inventory.
func (s *onShore) tablesOfImage(manifest []byte) []digest.Digest {
	if len(manifest) == 0 {
		return nil
	}
	img, err := s.n.catalog.Image(digest.FromBytes(manifest))
	if err != nil {
		return nil
	}
	return s.tablesOf(slotsOf(&img))
}

// tablesOf returns the digests of those tables of layers that are here.
func (s *onShore) tablesOf(slots []uint32) (all []digest.Digest) {
	for _, slot := range slots {
		l, err := s.n.catalog.Layer(slot)
		if err != nil || l.Own != nil { // no table is here, but what the image's root says
			continue
		}
		if tree, err := s.n.fetcher.TreeHere(slot); err == nil && tree != nil {
			all = append(all, l.TOC)
		}
	}
	return all
}

// resume asks the proxy for what is missing of images that were begun before.
func (s *onShore) resume(images []catalog.Image) {
	if err := s.takeInventory(); err != nil {
		s.log.Warn("it is not known which images are here whole", slog.Any("error", err))
	}
	if err := s.coverWords(); err != nil {
		s.log.Warn("it is not known which layers are here on the proxy's word", slog.Any("error", err))
	}
	for i := range images {
		img := &images[i]
		slots := slotsOf(img)
		c, err := s.n.fetcher.Completeness(slots...)
		if err != nil || c.Complete() || len(slots) == 0 {
			continue
		}
		l, err := s.n.catalog.Layer(slots[0])
		if err != nil || len(l.Sources) == 0 {
			continue
		}
		raw, err := s.n.store.ReadBlob(img.Manifest, registry.MaxManifestSize)
		if err != nil {
			continue
		}
		known := knownImage{registry.Manifest{Digest: img.Manifest, MediaType: img.MediaType, Body: raw}, raw}
		p := s.goOn(l.Sources[0], img, known)
		if p == nil {
			p = s.askAsKnown(l.Sources[0], img.Manifest.String(), known)
		}
		if err := p.cover(raw); err != nil {
			s.log.Warn("an image is not asked of the proxy", slog.String("manifest", img.Manifest.String()), slog.Any("error", err))
		}
	}
}
