package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/internal/artifact"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/store"
)

// maxConfigSize bounds an image's config, in bytes. Real ones have a few
// thousand.
const maxConfigSize = 8 << 20

// know sees to it that the catalog knows the image that a manifest describes
// before containerd learns of it: it may prepare snapshots at once then. Other
// manifests, such as indexes and charts, pass. It waits for at most limit.
func (m *Mirror) know(ctx context.Context, q request, man registry.Manifest, limit time.Duration) error {
	switch man.MediaType {
	case ocispec.MediaTypeImageManifest, "application/vnd.docker.distribution.manifest.v2+json":
	case ocispec.MediaTypeImageIndex, "application/vnd.docker.distribution.manifest.list.v2+json":
		m.list(man)
		return nil
	default:
		return nil
	}
	key := "image " + man.Digest.String() + " " + q.name()
	if q.still {
		key += " still"
	}
	fl := once(m, key, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, m.learn(ctx, q, man)
	})
	_, err := fl.wait(ctx, limit)
	return err
}

// maxListed bounds what is remembered of indexes.
const maxListed = 10_000

// list remembers what an index tells of the manifests in it.
func (m *Mirror) list(man registry.Manifest) {
	var idx ocispec.Index
	if json.Unmarshal(man.Body, &idx) != nil {
		return // whoever asked must know what it is
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.listed)+len(idx.Manifests) > maxListed {
		clear(m.listed)
	}
	for _, d := range idx.Manifests[:min(len(idx.Manifests), maxListed)] {
		if d.Digest.Validate() == nil && d.Size > 0 && d.Size <= registry.MaxManifestSize && d.MediaType != "" {
			m.listed[d.Digest] = ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
		}
	}
}

func (m *Mirror) learn(ctx context.Context, q request, man registry.Manifest) error {
	if known, err := m.known(q, man); known || err != nil {
		return err
	}
	if err := m.settle(ctx, q.from, man); err != nil {
		return err
	}
	layers, err := m.catalog.Layers(q.from, man.Body)
	if errors.Is(err, catalog.ErrInvalid) {
		return nil // not an image after all; whoever asked must know what it is
	}
	if err != nil {
		return err
	}
	var parsed ocispec.Manifest
	if err := json.Unmarshal(man.Body, &parsed); err != nil {
		return nil //nolint:nilerr // as above
	}
	switch parsed.Config.MediaType {
	case ocispec.MediaTypeImageConfig, "application/vnd.docker.container.image.v1+json":
	default:
		return nil // a signature, a chart: nothing that runs
	}
	ref, layers, err := m.bind(q, &parsed, layers)
	if err != nil {
		return err
	}
	if err := m.fetcher.Announce(slotsOf(layers)...); err != nil {
		return err
	}
	if !q.still {
		if err := m.fetcher.WarmFrom(q.from, ref, layers...); err != nil {
			return err
		}
	}
	config, err := m.config(ctx, q, parsed.Config)
	if err != nil {
		return err
	}
	name := ""
	if !strings.Contains(q.ref, ":") {
		name = q.name()
	}
	img, err := m.catalog.Learn(q.from, name, man.MediaType, man.Body, config)
	if errors.Is(err, catalog.ErrInvalid) {
		return nil
	}
	if err != nil {
		return err
	}
	now, err := m.catalog.Hot(img.Manifest)
	if err != nil {
		return err
	}
	if slots := slotsOf(now); !slices.Equal(slots, slotsOf(layers)) {
		// Another image has the same layers and another artifact.
		if err := m.fetcher.Announce(slots...); err != nil {
			return err
		}
	}
	if q.still {
		return nil
	}
	m.mu.Lock()
	seen := m.learned[img.Manifest]
	m.learned[img.Manifest] = true
	m.mu.Unlock()
	if !seen {
		m.report(ctx, q, img)
	}
	return m.fetcher.Fill(slotsOf(now)...)
}

func (m *Mirror) settle(ctx context.Context, src catalog.Source, man registry.Manifest) error {
	if m.opts.Settle == nil {
		return nil
	}
	return m.opts.Settle(ctx, src, man)
}

// bind returns the artifact of an image, if it has one, and the layers as they are
// served: from the artifact's root, if that says what a start needs.
func (m *Mirror) bind(q request, parsed *ocispec.Manifest, layers []catalog.Layer) (artifact.Ref, []catalog.Layer, error) {
	ref, ok := artifact.ParseRef(parsed.Annotations)
	switch {
	case !ok || len(layers) != len(parsed.Layers):
		return artifact.Ref{}, layers, nil
	case m.opts.Tables || ref.Hot == (artifact.Blob{}):
		return ref, layers, nil // without a hot set the root has no IDs at all, and each read would wait twice
	}
	layers, err := m.catalog.Bind(q.from, ref, layers)
	return ref, layers, err
}

func slotsOf(layers []catalog.Layer) []uint32 {
	slots := make([]uint32, 0, len(layers))
	for _, l := range layers {
		slots = append(slots, l.Slot)
	}
	return slots
}

// known tells whether there is nothing to learn of an image: it was learned by
// this process, under this name.
func (m *Mirror) known(q request, man registry.Manifest) (bool, error) {
	m.mu.Lock()
	seen := m.learned[man.Digest]
	m.mu.Unlock()
	if !seen {
		return false, nil
	}
	img, err := m.catalog.Image(man.Digest)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return strings.Contains(q.ref, ":") || slices.Contains(img.Names, q.name()), err
}

// report says what kind of image it is.
func (m *Mirror) report(ctx context.Context, q request, img catalog.Image) {
	var whole int64
	var count int
	for _, l := range img.Layers {
		if l.Slot == 0 {
			count++
			whole += l.Size
		}
	}
	attrs := []any{slog.String("image", q.name()), slog.String("manifest", img.Manifest.String()), slog.Int("layers", len(img.Layers)), slog.Int64("bytes", img.Size())}
	if count == 0 {
		m.log.InfoContext(ctx, "image is lazy", attrs...)
		return
	}
	attrs = append(attrs, slog.Int("wholeLayers", count), slog.Int64("wholeBytes", whole))
	m.log.WarnContext(ctx, "image is not lazy: its layers must cross the link whole; convert it with airstream convert", attrs...)
}

// config returns an image's config, from the cache or across the link.
func (m *Mirror) config(ctx context.Context, q request, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size < 0 || desc.Size > maxConfigSize {
		return nil, fmt.Errorf("mirror: image %s: a config of %d bytes", q.name(), desc.Size)
	}
	b, err := m.store.ReadBlob(desc.Digest, maxConfigSize)
	if err == nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, store.ErrDamaged) {
		return b, err
	}
	blob, err := m.fetcher.Blob(ctx, fetcher.Demand, q.from, desc.Digest, desc.Size)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, blob)
	if err = errors.Join(err, blob.Close()); err != nil {
		return nil, err
	}
	return m.store.ReadBlob(desc.Digest, maxConfigSize)
}
