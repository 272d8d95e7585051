package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/units"
)

func (n *node) getImages(w http.ResponseWriter, r *http.Request) {
	all, err := n.images(r)
	n.answer(w, r, all, err)
}

// images returns the status of all images, by their first name.
func (n *node) images(r *http.Request) ([]imageStatus, error) {
	images, err := n.catalog.Images()
	if err != nil {
		return nil, err
	}
	pinned, err := n.catalog.Pinned()
	if err != nil {
		return nil, err
	}
	unpacked := n.unpacked(r.Context())
	all := make([]imageStatus, 0, len(images))
	for i := range images {
		s, err := n.status(&images[i], unpacked)
		if err != nil {
			n.log.WarnContext(r.Context(), "an image cannot be counted", slog.String("manifest", images[i].Manifest.String()), slog.Any("error", err))
		}
		s.Pinned = pinned[images[i].Manifest]
		all = append(all, s)
	}
	slices.SortStableFunc(all, func(a, b imageStatus) int { return strings.Compare(a.titles()[0], b.titles()[0]) })
	return all, nil
}

// slotsOf returns the slots that containers of an image run from, each once.
func slotsOf(img *catalog.Image) []uint32 {
	var slots []uint32
	for i := range img.Layers {
		if slot := img.Layers[i].Serving(); slot > 0 && !slices.Contains(slots, slot) {
			slots = append(slots, slot)
		}
	}
	return slots
}

// status counts what is here of an image. unpacked are the chain IDs of plain
// layers that containerd has.
func (n *node) status(img *catalog.Image, unpacked map[string]bool) (imageStatus, error) {
	slots := slotsOf(img)
	c, err := n.fetcher.Completeness(slots...)
	s := imageStatus{
		Names: append([]string{}, img.Names...), Manifest: img.Manifest.String(), Platform: img.Platform, Learned: img.Learned,
		Layers: len(img.Layers), Size: img.Size(), Total: c.Total, Missing: c.Missing, HotTotal: c.HotTotal, HotMissing: c.HotMissing,
	}
	for _, title := range img.Names {
		if !n.current(title, img) {
			s.Former = append(s.Former, title)
		}
	}
	if title, ok := n.coming.Load(img.Manifest); ok {
		s.Coming, _ = title.(string)
	}
	tableless := c.Lazy - c.Tables
	for _, l := range img.Layers {
		if l.Slot > 0 {
			s.Lazy++
			continue
		}
		if _, ok := n.store.HasBlob(l.Blob); !ok && !unpacked[l.ChainID.String()] {
			s.Plain++
		}
	}
	s.Tables = s.Lazy - tableless
	s.Complete = err == nil && tableless == 0 && s.Missing == 0 && s.Plain == 0
	s.Dark, s.Why = s.darkness(err)
	if l, qErr := quarantineOf(n.catalog, img); qErr != nil {
		err = errors.Join(err, qErr)
	} else if l != nil {
		s.Dark, s.Why, s.Complete = "no", "quarantine: layer "+l.Blob.Encoded()[:12]+": "+l.Wrong, false
	}
	return s, err
}

// darkness tells whether a container starts from the image without a link, and
// if not, why.
func (s *imageStatus) darkness(err error) (dark, why string) {
	switch {
	case err != nil:
		return "no", "damaged"
	case s.Complete:
		return "yes", ""
	case s.Plain > 0:
		return "no", fmt.Sprintf("%s to pull", count(s.Plain, "layer"))
	case s.Tables < s.Lazy:
		return "no", fmt.Sprintf("%s missing", count(s.Lazy-s.Tables, "table"))
	case s.HotTotal > 0 && s.HotMissing == 0:
		return "hot", ""
	case s.HotTotal > 0:
		return "no", "hot set " + percent(s.HotTotal-s.HotMissing, s.HotTotal)
	}
	return "no", units.Short(s.Missing) + " missing"
}

// count writes a number of things: "1 table", "3 tables".
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// percent writes a share, and 100% only for all of it.
func percent(part, whole int64) string {
	switch {
	case part >= whole:
		return "100%"
	case part <= 0:
		return "0%"
	}
	return fmt.Sprintf("%d%%", max(1, min(99, int64(100*float64(part)/float64(whole)))))
}

// current tells whether a name still means an image: by its tag, or by an index
// that lists it. One whose tag is not known any more does.
func (n *node) current(title string, img *catalog.Image) bool {
	tag, err := n.catalog.Tag(title)
	if err != nil || tag.Digest == img.Manifest {
		return true
	}
	body, err := n.store.ReadBlob(tag.Digest, registry.MaxManifestSize)
	return err == nil && bytes.Contains(body, []byte(img.Manifest))
}

// find returns the image that a reference or manifest digest names: what its
// tag means now, if that is here.
func (n *node) find(ref string) (catalog.Image, error) {
	images, err := n.findEvery(ref)
	if err != nil {
		return catalog.Image{}, err
	}
	best := images[0]
	for _, img := range images[1:] {
		if a, b := n.means(&img, ref), n.means(&best, ref); a != b && a || a == b && img.Learned.After(best.Learned) {
			best = img
		}
	}
	return best, nil
}

// means tells whether a reference is a current name of an image.
func (n *node) means(img *catalog.Image, ref string) bool {
	want, err := name.ParseReference(ref)
	return err == nil && slices.ContainsFunc(img.Names, func(s string) bool { return same(s, want) && n.current(s, img) })
}

// checkRef returns an error unless ref is a reference, or a manifest's digest.
func checkRef(ref string) error {
	if digest.Digest(ref).Validate() == nil {
		return nil
	}
	_, _, err := parseRef(ref)
	return err
}

// checkRefs does that for each.
func checkRefs(refs []string) error {
	for _, ref := range refs {
		if err := checkRef(ref); err != nil {
			return err
		}
	}
	return nil
}

// findEvery returns all images that have a reference as a name, also those that
// it meant before. If there is none, it is an error.
func (n *node) findEvery(ref string) ([]catalog.Image, error) {
	if d := digest.Digest(ref); d.Validate() == nil {
		img, err := n.catalog.Image(d)
		return []catalog.Image{img}, err
	}
	if err := checkRef(ref); err != nil {
		return nil, err
	}
	want, err := name.ParseReference(ref)
	if err != nil {
		return nil, err
	}
	images, err := n.catalog.Images()
	if err != nil {
		return nil, err
	}
	images = slices.DeleteFunc(images, func(img catalog.Image) bool {
		return img.Manifest.String() != want.Identifier() && !slices.ContainsFunc(img.Names, func(s string) bool { return same(s, want) })
	})
	if len(images) == 0 {
		return nil, fmt.Errorf("%s: the node has not met it; airstream images lists what it has (%w)", ref, fs.ErrNotExist)
	}
	return images, nil
}

// same tells whether a name that containerd used is a reference, written out
// or short.
func same(s string, ref name.Reference) bool {
	other, err := name.ParseReference(s)
	return err == nil && other.Name() == ref.Name()
}
