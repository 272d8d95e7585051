package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/store"
)

// maxConfigSize bounds an image's config, in bytes. Real ones have a few
// thousand.
const maxConfigSize = 8 << 20

// darkPatience is how long a registry may take that has not answered lately: a
// round trip on a short link, should it be back. A guess.
const darkPatience = 250 * time.Millisecond

// flight is one question under way, that any number of requests wait for.
type flight struct {
	done chan struct{}
	m    registry.Manifest
	err  error
}

// once asks a question on the mirror's own time, unless it is being asked: a
// client that goes away takes nothing from the others.
func (m *Mirror) once(key string, ask func(ctx context.Context) (registry.Manifest, error)) *flight {
	m.mu.Lock()
	defer m.mu.Unlock()
	if fl, ok := m.flights[key]; ok {
		return fl
	}
	fl := &flight{done: make(chan struct{})}
	if m.closing {
		fl.err = fmt.Errorf("mirror: stopping: %w", context.Canceled)
		close(fl.done)
		return fl
	}
	m.flights[key] = fl
	m.work.Go(func() {
		fl.m, fl.err = ask(m.run)
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.flights, key)
		close(fl.done)
	})
	return fl
}

func (m *Mirror) serveManifest(w http.ResponseWriter, r *http.Request, q request) {
	man, err := m.manifest(r.Context(), q)
	if err != nil {
		m.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", man.MediaType)
	w.Header().Set("Docker-Content-Digest", man.Digest.String())
	w.Header().Set("Content-Length", strconv.Itoa(len(man.Body)))
	w.Header().Set("Etag", `"`+man.Digest.String()+`"`)
	if r.Method == http.MethodHead {
		return
	}
	if _, err := w.Write(man.Body); err != nil {
		m.log.DebugContext(r.Context(), "client went away", slog.Any("error", err))
	}
}

// manifest returns what q names: by digest from the cache if it is there, by
// tag from the registry, and from the cache if that takes too long.
func (m *Mirror) manifest(ctx context.Context, q request) (registry.Manifest, error) {
	if d := digest.Digest(q.ref); d.Validate() == nil {
		man, err := m.cached(d)
		if err == nil {
			return man, m.know(ctx, q, man)
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, store.ErrDamaged) {
			return man, err
		}
		man, err = m.ask(ctx, q, -1)
		if err != nil {
			return man, err
		}
		return man, m.know(ctx, q, man)
	}
	tag, tagErr := m.catalog.Tag(q.name())
	patience := m.opts.Patience
	switch {
	case tagErr != nil:
		patience = -1 // there is nothing else to answer with
	case m.reg.Dark():
		// The question goes out all the same, and its answer is kept.
		patience = min(patience, darkPatience)
	}
	man, err := m.ask(ctx, q, patience)
	if err != nil && tagErr == nil && (registry.Temporary(err) || errors.Is(err, errPatience)) {
		if old, cacheErr := m.cached(tag.Digest); cacheErr == nil {
			m.log.InfoContext(ctx, "the registry does not answer; the tag means what it meant last", slog.String("image", q.name()), slog.Duration("age", time.Since(tag.Seen).Round(time.Second)))
			man, err = old, nil
		}
	}
	if err != nil {
		return man, err
	}
	return man, m.know(ctx, q, man)
}

func (q request) name() string {
	if strings.Contains(q.ref, ":") {
		return q.src.Host + "/" + q.src.Repo + "@" + q.ref
	}
	return q.src.Host + "/" + q.src.Repo + ":" + q.ref
}

// errPatience says that a registry has not answered yet.
var errPatience = errors.New("the registry has not answered yet")

// ask asks the registry, and stores the answer also if nobody waits for it any
// more. patience < 0 waits until ctx ends.
func (m *Mirror) ask(ctx context.Context, q request, patience time.Duration) (registry.Manifest, error) {
	fl := m.once("manifest "+q.name(), func(ctx context.Context) (registry.Manifest, error) {
		man, err := m.reg.Manifest(ctx, q.src, q.ref)
		if err != nil {
			return man, err
		}
		return man, m.keep(q, man)
	})
	var late <-chan time.Time
	if patience >= 0 {
		t := time.NewTimer(patience)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-fl.done:
		return fl.m, fl.err
	case <-late:
		return registry.Manifest{}, errPatience
	case <-ctx.Done():
		return registry.Manifest{}, fmt.Errorf("mirror: manifest of %s: %w", q.name(), ctx.Err())
	}
}

// keep stores a manifest and what its tag means.
func (m *Mirror) keep(q request, man registry.Manifest) error {
	if err := m.store.PutBlob(man.Digest, man.Body); err != nil {
		return err
	}
	if strings.Contains(q.ref, ":") {
		return m.catalog.SetMediaType(man.Digest, man.MediaType)
	}
	return m.catalog.SetTag(q.name(), catalog.Tag{Digest: man.Digest, MediaType: man.MediaType, Size: int64(len(man.Body)), Seen: time.Now().UTC()})
}

func (m *Mirror) cached(d digest.Digest) (registry.Manifest, error) {
	b, err := m.store.ReadBlob(d, registry.MaxManifestSize)
	if err != nil {
		return registry.Manifest{}, err
	}
	mediaType, err := m.catalog.MediaType(d)
	if err != nil {
		return registry.Manifest{}, err
	}
	return registry.Manifest{Digest: d, MediaType: mediaType, Body: b}, nil
}

// know sees to it that the catalog knows the image that a manifest describes
// before containerd learns of it: it may prepare snapshots at once then. Other
// manifests, such as indexes and charts, pass.
func (m *Mirror) know(ctx context.Context, q request, man registry.Manifest) error {
	switch man.MediaType {
	case ocispec.MediaTypeImageManifest, "application/vnd.docker.distribution.manifest.v2+json":
	default:
		return nil
	}
	fl := m.once("image "+man.Digest.String(), func(ctx context.Context) (registry.Manifest, error) {
		return man, m.learn(ctx, q, man)
	})
	select {
	case <-fl.done:
		return fl.err
	case <-ctx.Done():
		return fmt.Errorf("mirror: image %s: %w", q.name(), ctx.Err())
	}
}

func (m *Mirror) learn(ctx context.Context, q request, man registry.Manifest) error {
	if known, err := m.known(q, man); known || err != nil {
		return err
	}
	layers, err := m.catalog.Layers(q.src, man.Body)
	if errors.Is(err, catalog.ErrInvalid) {
		return nil // not an image after all; whoever asked must know what it is
	}
	if err != nil {
		return err
	}
	slots := make([]uint32, 0, len(layers))
	for _, l := range layers {
		slots = append(slots, l.Slot)
	}
	if err := errors.Join(m.fetcher.Announce(slots...), m.fetcher.Warm(layers...)); err != nil {
		return err
	}
	var parsed ocispec.Manifest
	if err := json.Unmarshal(man.Body, &parsed); err != nil {
		return nil //nolint:nilerr // as above
	}
	config, err := m.config(ctx, q, parsed.Config)
	if err != nil {
		return err
	}
	name := ""
	if !strings.Contains(q.ref, ":") {
		name = q.name()
	}
	img, err := m.catalog.Learn(q.src, name, man.MediaType, man.Body, config)
	if errors.Is(err, catalog.ErrInvalid) {
		return nil
	}
	if err != nil {
		return err
	}
	m.mu.Lock()
	seen := m.learned[img.Manifest]
	m.learned[img.Manifest] = true
	m.mu.Unlock()
	if !seen {
		m.report(ctx, q, img)
	}
	return m.fetcher.Fill(slots...)
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
	blob, err := m.fetcher.Blob(ctx, fetcher.Demand, q.src, desc.Digest, desc.Size)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, blob)
	if err = errors.Join(err, blob.Close()); err != nil {
		return nil, err
	}
	return m.store.ReadBlob(desc.Digest, maxConfigSize)
}
