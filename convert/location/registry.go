package location

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// registry is an image in a registry.
type registry struct {
	ref    name.Reference
	puller *remote.Puller
	pusher *remote.Pusher
	from   *name.Repository // where blobs may be mounted from

	keychain  authn.Keychain
	transport http.RoundTripper
	ranges    atomic.Pointer[http.Client] // nil until somebody reads a range
}

func openRegistry(ref name.Reference, o Options) (*registry, error) {
	opts := []remote.Option{remote.WithUserAgent("airstream")}
	keychain := o.Keychain
	if keychain == nil {
		keychain = authn.DefaultKeychain
	}
	opts = append(opts, remote.WithAuthFromKeychain(keychain))
	if o.Transport != nil {
		opts = append(opts, remote.WithTransport(o.Transport))
	}
	if o.Jobs > 0 {
		opts = append(opts, remote.WithJobs(o.Jobs))
	}
	puller, err := remote.NewPuller(opts...)
	if err != nil {
		return nil, fmt.Errorf("location: open %s: %w", ref, err)
	}
	pusher, err := remote.NewPusher(opts...)
	if err != nil {
		return nil, fmt.Errorf("location: open %s: %w", ref, err)
	}
	return &registry{ref: ref, puller: puller, pusher: pusher, keychain: keychain, transport: defaultTransport(o)}, nil
}

func (r *registry) Root(ctx context.Context) (v1.Descriptor, []byte, error) {
	d, err := r.puller.Get(ctx, r.ref)
	if err != nil {
		return v1.Descriptor{}, nil, classify(err, "read %s", r.ref)
	}
	return v1.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}, d.Manifest, nil
}

func (r *registry) Manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	got, err := r.puller.Get(ctx, r.ref.Context().Digest(d.Digest.String()))
	if err != nil {
		return nil, classify(err, "read manifest %s of %s", d.Digest, r.ref)
	}
	return got.Manifest, nil
}

func (r *registry) Blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	l, err := r.puller.Layer(ctx, r.ref.Context().Digest(d.Digest.String()))
	if err != nil {
		return nil, classify(err, "read blob %s of %s", d.Digest, r.ref)
	}
	rc, err := l.Compressed()
	if err != nil {
		return nil, classify(err, "read blob %s of %s", d.Digest, r.ref)
	}
	return &registryBlob{rc, d, r.ref}, nil
}

// registryBlob names the place in the errors of a body.
type registryBlob struct {
	io.ReadCloser
	d   v1.Descriptor
	ref name.Reference
}

func (b *registryBlob) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = classify(err, "read blob %s of %s", b.d.Digest, b.ref)
	}
	return n, err
}

// Check writes OCI's empty blob, of two bytes, because a registry has no other
// way of saying that it would take one.
func (r *registry) Check(ctx context.Context) error {
	const empty = "{}"
	h, size, err := v1.SHA256(strings.NewReader(empty))
	if err != nil {
		return err
	}
	return r.PutBlob(ctx, v1.Descriptor{MediaType: types.OCIEmptyJSON, Digest: h, Size: size}, func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(empty)), nil
	})
}

func (r *registry) HasBlob(ctx context.Context, d v1.Descriptor) (bool, error) {
	l, err := r.puller.Layer(ctx, r.ref.Context().Digest(d.Digest.String()))
	if err == nil {
		var ok bool
		if ok, err = partial.Exists(l); err == nil {
			return ok, nil
		}
	}
	// Some registries refuse to be asked about a repository that is to be
	// created by the first push. If it is more than that, the push will tell.
	if err = classify(err, "look for blob %s in %s", d.Digest, r.ref.Context()); errors.Is(err, ErrDenied) || errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return false, err
}

func (r *registry) PutBlob(ctx context.Context, d v1.Descriptor, open func() (io.ReadCloser, error)) error {
	var l v1.Layer = &upload{d, open}
	if r.from != nil {
		l = &remote.MountableLayer{Layer: l, Reference: r.from.Digest(d.Digest.String())}
	}
	if err := r.pusher.Upload(ctx, r.ref.Context(), l); err != nil {
		return classify(err, "write blob %s to %s", d.Digest, r.ref.Context())
	}
	return nil
}

func (r *registry) PutManifest(ctx context.Context, d v1.Descriptor, raw []byte) error {
	if err := r.pusher.Put(ctx, r.ref.Context().Digest(d.Digest.String()), manifest{d, raw}); err != nil {
		return classify(err, "write manifest %s to %s", d.Digest, r.ref.Context())
	}
	return nil
}

// PutReferrer leaves it to the library to ask whether the registry lists
// referrers, and to keep the tag otherwise.
func (r *registry) PutReferrer(ctx context.Context, _, d v1.Descriptor, raw []byte) error {
	return r.PutManifest(ctx, d, raw)
}

func (r *registry) Commit(ctx context.Context, d v1.Descriptor, raw []byte) error {
	if err := r.pusher.Put(ctx, r.ref, manifest{d, raw}); err != nil {
		return classify(err, "write %s", r.ref)
	}
	return nil
}

// Close does nothing: blobs that no manifest names are the registry's to
// collect, and until then they make the next try quicker.
func (r *registry) Close() error { return nil }

type manifest struct {
	d   v1.Descriptor
	raw []byte
}

func (m manifest) RawManifest() ([]byte, error)        { return m.raw, nil }
func (m manifest) MediaType() (types.MediaType, error) { return m.d.MediaType, nil }

// upload is a blob as go-containerregistry wants it.
type upload struct {
	d    v1.Descriptor
	open func() (io.ReadCloser, error)
}

func (u *upload) Digest() (v1.Hash, error)             { return u.d.Digest, nil }
func (u *upload) DiffID() (v1.Hash, error)             { return v1.Hash{}, errors.New("not known here") }
func (u *upload) Compressed() (io.ReadCloser, error)   { return u.open() }
func (u *upload) Uncompressed() (io.ReadCloser, error) { return nil, errors.New("not known here") }
func (u *upload) Size() (int64, error)                 { return u.d.Size, nil }
func (u *upload) MediaType() (types.MediaType, error)  { return u.d.MediaType, nil }

// classify gives a registry's error one of the package's meanings.
func classify(err error, format string, args ...any) error {
	at := fmt.Sprintf("location: "+format, args...)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: %w", at, err)
	}
	if status, ok := errors.AsType[*transport.Error](err); ok {
		switch {
		case status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden:
			return fmt.Errorf("%s: %w: %w", at, ErrDenied, err)
		case status.StatusCode == http.StatusNotFound:
			return fmt.Errorf("%s: %w: %w", at, ErrNotFound, err)
		case status.StatusCode >= 500 || status.StatusCode == http.StatusTooManyRequests:
			return fmt.Errorf("%s: %w: %w", at, ErrUnreachable, err)
		}
		return fmt.Errorf("%s: %w", at, err)
	}
	var (
		op  *net.OpError
		dns *net.DNSError
		ne  net.Error
	)
	switch {
	case errors.As(err, &op), errors.As(err, &dns), errors.As(err, &ne) && ne.Timeout(),
		errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, net.ErrClosed):
		return fmt.Errorf("%s: %w: %w", at, ErrUnreachable, err)
	}
	return fmt.Errorf("%s: %w", at, err)
}

// Referrers returns the manifests whose subject is another, as the registry lists
// them, or the tag that stands for such a list.
func (r *registry) Referrers(ctx context.Context, subject v1.Descriptor) ([]v1.Descriptor, error) {
	index, err := remote.Referrers(r.ref.Context().Digest(subject.Digest.String()), remote.WithContext(ctx), remote.Reuse(r.puller))
	if err != nil {
		return nil, classify(err, "list what refers to %s of %s", subject.Digest, r.ref)
	}
	list, err := index.IndexManifest()
	if err != nil {
		return nil, classify(err, "list what refers to %s of %s", subject.Digest, r.ref)
	}
	return list.Manifests, nil
}
