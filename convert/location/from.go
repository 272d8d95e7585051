package location

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// BlobFrom returns a blob from an offset on, in bytes, as it is found.
func (l *layout) BlobFrom(_ context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error) {
	f, err := os.Open(l.blobPath(d.Digest))
	if err == nil {
		if _, err = f.Seek(offset, io.SeekStart); err == nil {
			return f, nil
		}
		_ = f.Close() // nothing was read
	}
	return nil, fmt.Errorf("location: read blob %s of %s: %w", d.Digest, l, notFound(err))
}

// BlobFrom returns a blob from an offset on, in bytes, as it is found. What lies
// before is not transferred unless the registry ignores ranges; it is skipped
// then.
func (r *registry) BlobFrom(ctx context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error) {
	rc, err := r.blobFrom(ctx, d, offset)
	if err != nil {
		return nil, classify(err, "read blob %s of %s", d.Digest, r.ref)
	}
	return &registryBlob{rc, d, r.ref}, nil
}

func (r *registry) blobFrom(ctx context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error) {
	client, err := r.client(ctx)
	if err != nil {
		return nil, err
	}
	repo := r.ref.Context()
	u := url.URL{Scheme: repo.Scheme(), Host: repo.RegistryStr(), Path: fmt.Sprintf("/v2/%s/blobs/%s", repo.RepositoryStr(), d.Digest)}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, d.Size-1))
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	err = transport.CheckError(resp, http.StatusOK, http.StatusPartialContent)
	switch {
	case err != nil:
	case resp.StatusCode == http.StatusOK:
		_, err = io.CopyN(io.Discard, resp.Body, offset)
	case !strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", offset)):
		err = fmt.Errorf("asked for bytes from %d on, got %q", offset, resp.Header.Get("Content-Range"))
	}
	if err != nil {
		return nil, errors.Join(err, resp.Body.Close())
	}
	return resp.Body, nil
}

// client returns a client that may read the repository. The library's own has
// no ranges.
func (r *registry) client(ctx context.Context) (*http.Client, error) {
	if c := r.ranges.Load(); c != nil {
		return c, nil
	}
	repo := r.ref.Context()
	auth, err := authn.Resolve(ctx, r.keychain, repo)
	if err != nil {
		return nil, err
	}
	rt, err := transport.NewWithContext(ctx, repo.Registry, auth, r.transport, []string{repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, err
	}
	c := &http.Client{Transport: rt}
	r.ranges.Store(c) // two that ask at once have greeted it twice
	return c, nil
}

// defaultTransport is what registries are spoken to with if Options says
// nothing.
func defaultTransport(o Options) http.RoundTripper {
	if o.Transport != nil {
		return o.Transport
	}
	return remote.DefaultTransport
}
