package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/internal/catalog"
)

// ErrNotImage says that what a reference names is no image, or has none for the
// platform.
var ErrNotImage = errors.New("not an image")

// Fetched is the image that a reference names. The catalog knows it, and its
// layers' tables of contents are crossing; but its tag means here what it meant
// before, until Publish.
type Fetched struct {
	Image catalog.Image
	Src   catalog.Source
	// Cached says that the registry did not answer, and that the image is the
	// one that the tag meant last.
	Cached bool

	q   request
	tag registry.Manifest // what it means; zero: nothing new
}

// Name returns the reference written out: "host/repo:tag" or "host/repo@digest".
func (f *Fetched) Name() string { return f.q.name() }

// Fetch finds the image that a reference names: ref is a tag or a digest, and
// platform, "OS/ARCH" or "OS/ARCH/VARIANT", chooses from an index; empty is
// this machine's. If the registry does not answer, the tag's last meaning is
// taken, if there is one.
func (m *Mirror) Fetch(ctx context.Context, src catalog.Source, ref, platform string) (Fetched, error) {
	q := request{src: canonical(src), kind: "manifests", ref: ref, self: true}
	q.from = rewrite(m.opts.Rewrite, q.src)
	f := Fetched{Src: q.from, q: q}
	d := digest.Digest(ref)
	var man registry.Manifest
	var err error
	if d.Validate() == nil {
		man, err = m.byDigest(ctx, q, d, -1)
	} else {
		man, err = m.ahead(ctx, &f)
	}
	if err == nil && isIndex(man.MediaType) {
		if d, err = choose(man.Body, platform); err == nil {
			q.ref = d.String()
			man, err = m.byDigest(ctx, q, d, -1)
		}
	}
	if err != nil {
		return f, err
	}
	q.ref, q.still = man.Digest.String(), true
	if err := m.know(ctx, q, man, -1); err != nil {
		return f, err
	}
	if f.Image, err = m.catalog.Image(man.Digest); err != nil {
		return f, fmt.Errorf("mirror: %s: %w but %s", f.Name(), ErrNotImage, man.MediaType)
	}
	return f, nil
}

// ahead asks what a tag means without changing what it means here.
func (m *Mirror) ahead(ctx context.Context, f *Fetched) (registry.Manifest, error) {
	var old registry.Manifest
	tag, oldErr := m.catalog.Tag(f.Name())
	if oldErr == nil {
		old, oldErr = m.cached(tag.Digest)
	}
	fl := question(m, f.q, "ahead "+f.q.name(), oldErr != nil && !m.reg.Dark(), func(ctx context.Context) (registry.Manifest, error) {
		man, err := m.reg.Manifest(ctx, fetcher.Prefetch, f.q.from, f.q.ref)
		if err != nil {
			return man, err
		}
		return man, errors.Join(m.store.PutBlob(man.Digest, man.Body), m.catalog.SetMediaType(man.Digest, man.MediaType))
	})
	man, err := fl.wait(ctx, -1)
	if f.Cached = oldErr == nil && registry.Temporary(err); f.Cached {
		return old, nil
	}
	f.tag = man
	return man, err
}

// Publish makes the tag of a fetched image mean that image from now on.
func (m *Mirror) Publish(ctx context.Context, f *Fetched) error {
	if f.tag.Digest == "" {
		return nil // it was asked for by digest, or is what the tag means already
	}
	man, err := m.cached(f.Image.Manifest)
	if err != nil {
		return err
	}
	if err := m.know(ctx, f.q, man, -1); err != nil { // gives the image its name
		return err
	}
	return m.catalog.SetTag(f.q.name(), tagOf(f.tag)) // also if it was held
}

func isIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == "application/vnd.docker.distribution.manifest.list.v2+json"
}

// choose returns the digest of an index's manifest for a platform.
func choose(index []byte, platform string) (digest.Digest, error) {
	var list ocispec.Index
	if err := json.Unmarshal(index, &list); err != nil {
		return "", fmt.Errorf("%w: its index: %w", ErrNotImage, err)
	}
	if platform == "" {
		platform = "linux/" + runtime.GOARCH
	}
	var have []string
	for _, d := range list.Manifests {
		if d.Platform == nil || d.Platform.OS == "unknown" || d.Digest.Validate() != nil {
			continue // attestations and the like
		}
		p := strings.TrimSuffix(d.Platform.OS+"/"+d.Platform.Architecture+"/"+d.Platform.Variant, "/")
		if p == platform || strings.Contains(platform, "/") && strings.HasPrefix(p, platform+"/") {
			return d.Digest, nil
		}
		have = append(have, p)
	}
	return "", fmt.Errorf("%w for %s; it has %s", ErrNotImage, platform, strings.Join(have, ", "))
}
