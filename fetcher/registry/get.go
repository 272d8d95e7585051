package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/catalog"
)

// MaxManifestSize bounds manifests and indexes, in bytes, as registries do.
const MaxManifestSize = 4 << 20

// accepted are the manifest types that a node can do something with.
var accepted = strings.Join([]string{
	"application/vnd.oci.image.index.v1+json",
	"application/vnd.oci.image.manifest.v1+json",
	"application/vnd.docker.distribution.manifest.list.v2+json",
	"application/vnd.docker.distribution.manifest.v2+json",
	"*/*",
}, ", ")

// Manifest is a manifest or an index as a registry sent it.
type Manifest struct {
	Digest    digest.Digest // of Body, computed here
	MediaType string
	Body      []byte
}

// Manifest fetches the manifest or index that ref, a tag or a digest, names.
// If ref is a digest, the body has it.
func (c *Client) Manifest(ctx context.Context, src catalog.Source, ref string) (Manifest, error) {
	what := "manifest " + ref
	ctx, a := c.begin(ctx, uplink.Demand, 0)
	defer a.end()
	resp, err := c.get(ctx, a, src, what, "/manifests/"+ref, http.Header{"Accept": {accepted}})
	if err != nil {
		return Manifest{}, err
	}
	if resp.StatusCode != http.StatusOK {
		return Manifest{}, refused(src, what, resp)
	}
	stream := c.body(ctx, a, resp, src, what)
	b, err := io.ReadAll(io.LimitReader(stream, MaxManifestSize+1))
	if err = errors.Join(err, stream.Close()); err != nil {
		return Manifest{}, err
	}
	if len(b) > MaxManifestSize {
		return Manifest{}, fmt.Errorf("registry: %s of %s/%s: larger than %d bytes", what, src.Host, src.Repo, MaxManifestSize)
	}
	m := Manifest{Digest: digest.FromBytes(b), MediaType: resp.Header.Get("Content-Type"), Body: b}
	if d := digest.Digest(ref); d.Validate() == nil && m.Digest != d {
		return Manifest{}, fmt.Errorf("registry: %s of %s/%s: the registry sent other content, %s", what, src.Host, src.Repo, m.Digest)
	}
	return m, nil
}

// Blob opens a blob from byte off on, with the urgency of class. At most n bytes are asked for; n < 0
// means to the end. The stream begins at start, which is before off if the
// registry doesn't do ranges; start bytes of the caller's interest lie ahead.
// The stream's errors are Errors too; the caller closes it.
func (c *Client) Blob(ctx context.Context, class uplink.Class, src catalog.Source, d digest.Digest, off, n int64) (stream io.ReadCloser, start int64, err error) {
	what := "blob " + d.String()
	ctx, a := c.begin(ctx, class, max(n, 0))
	header := http.Header{}
	switch {
	case n >= 0:
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	case off > 0:
		header.Set("Range", fmt.Sprintf("bytes=%d-", off))
	}
	resp, err := c.getBlob(ctx, a, src, what, d, header)
	if err != nil {
		a.end()
		return nil, 0, err
	}
	switch resp.StatusCode {
	case http.StatusPartialContent:
		start, err = contentRange(resp.Header.Get("Content-Range"))
		if err == nil && start > off {
			err = fmt.Errorf("range begins at %d, asked for %d", start, off)
		}
		if err != nil {
			err = errors.Join(err, resp.Body.Close())
			a.end()
			return nil, 0, &Error{Source: src, What: what, Err: err}
		}
	case http.StatusOK:
		start = 0
	default:
		err := refused(src, what, resp)
		a.end()
		return nil, 0, err
	}
	b := c.body(ctx, a, resp, src, what)
	if n >= 0 {
		b.left = off + n - start
	}
	return b, start, nil
}

func contentRange(s string) (start int64, err error) {
	r, ok := strings.CutPrefix(s, "bytes ")
	first, _, ok2 := strings.Cut(r, "-")
	if !ok || !ok2 {
		return 0, fmt.Errorf("Content-Range %q", s)
	}
	start, err = strconv.ParseInt(first, 10, 64)
	if err != nil || start < 0 {
		return 0, fmt.Errorf("Content-Range %q", s)
	}
	return start, nil
}

// getBlob goes to where the blob was found last, and asks the registry if
// that doesn't hold any more.
func (c *Client) getBlob(ctx context.Context, a *attempt, src catalog.Source, what string, d digest.Digest, header http.Header) (*http.Response, error) {
	key := redirectKey{src, d.String()}
	c.mu.Lock()
	known := c.redirects[key]
	c.mu.Unlock()
	if known != "" {
		resp, err := c.fetch(ctx, a, src, what, known, header)
		if err == nil && resp.StatusCode < 300 {
			return resp, nil
		}
		c.remember(key, "")
		if err != nil {
			return nil, err
		}
		if err := resp.Body.Close(); err != nil {
			return nil, &Error{Source: src, What: what, Err: err}
		}
	}
	resp, err := c.get(ctx, a, src, what, "/blobs/"+d.String(), header)
	for hops := 0; err == nil && isRedirect(resp.StatusCode); hops++ {
		to, locErr := resp.Location()
		if err := errors.Join(locErr, resp.Body.Close()); err != nil {
			return nil, &Error{Source: src, What: what, Err: err}
		}
		if hops == 5 {
			return nil, fmt.Errorf("registry: %s of %s/%s: too many redirects", what, src.Host, src.Repo)
		}
		resp, err = c.fetch(ctx, a, src, what, to.String(), header)
		if err == nil && resp.StatusCode < 300 {
			c.remember(key, to.String())
		}
	}
	return resp, err
}

func isRedirect(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

func (c *Client) remember(key redirectKey, to string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if to == "" {
		delete(c.redirects, key)
		return
	}
	if len(c.redirects) > 10_000 { // images come and go; these are hints
		clear(c.redirects)
	}
	c.redirects[key] = to
}

// fetch gets a storage host's URL, without credentials.
func (c *Client) fetch(ctx context.Context, a *attempt, src catalog.Source, what, to string, header http.Header) (*http.Response, error) {
	h, err := c.host(src.Host)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(to)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Scheme == "http" && h.base.Scheme == "https" {
		return nil, fmt.Errorf("registry: %s of %s/%s: redirected to %q, which is not a secure address", what, src.Host, src.Repo, to)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, to, nil)
	if err != nil {
		return nil, &Error{Source: src, What: what, Err: err}
	}
	req.Header = header.Clone()
	resp, err := c.do(ctx, a, h, req)
	if err != nil {
		return nil, &Error{Source: src, What: what, Err: err}
	}
	return resp, nil
}

// get asks the registry for a path below the repository, logging in if it is
// told to.
func (c *Client) get(ctx context.Context, a *attempt, src catalog.Source, what, path string, header http.Header) (*http.Response, error) {
	h, err := c.host(src.Host)
	if err != nil {
		return nil, err
	}
	for try := 0; ; try++ {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.base.String()+"/v2/"+src.Repo+path, nil)
		if err != nil {
			return nil, fmt.Errorf("registry: %s of %s/%s: %w", what, src.Host, src.Repo, err)
		}
		req.Header = header.Clone()
		sent := h.cred.header(src.Repo)
		if sent != "" {
			req.Header.Set("Authorization", sent)
		}
		resp, err := c.do(ctx, a, h, req)
		if err != nil {
			return nil, &Error{Source: src, What: what, Err: err}
		}
		if resp.StatusCode != http.StatusUnauthorized || try == 1 {
			return resp, nil
		}
		challenges := resp.Header.Values("WWW-Authenticate")
		if err := c.login(ctx, a, h, src, challenges, sent); err != nil {
			return nil, errors.Join(err, resp.Body.Close())
		}
		if h.cred.header(src.Repo) == "" {
			return resp, nil // there is nothing to log in with
		}
		if err := resp.Body.Close(); err != nil {
			return nil, &Error{Source: src, What: what, Err: err}
		}
	}
}

func (c *Client) body(ctx context.Context, a *attempt, resp *http.Response, src catalog.Source, what string) *body {
	return &body{ctx: ctx, a: a, rc: resp.Body, stream: c.opts.Meter.Stream(a.class, a.conn), src: src, what: what, left: -1}
}

// body is an answer's body under watch.
type body struct {
	ctx    context.Context //nolint:containedctx // of the request, as in http.Request
	a      *attempt
	rc     io.ReadCloser
	stream *uplink.Stream
	src    catalog.Source
	what   string
	left   int64 // bytes that were asked for and have not come; < 0: unknown
}

func (b *body) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	if b.left > 0 && int64(len(p)) > b.left {
		p = p[:b.left]
	}
	if err := b.stream.Wait(b.ctx); err != nil {
		return 0, &Error{Source: b.src, What: b.what, Err: b.a.failed(err)}
	}
	b.a.progress()
	n, err := b.rc.Read(p)
	b.a.rest()
	if n > 0 {
		b.stream.Arrived(n)
		if b.left > 0 {
			b.left -= int64(n)
		}
	}
	if errors.Is(err, io.EOF) && b.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = &Error{Source: b.src, What: b.what, Err: b.a.failed(err)}
	}
	return n, err
}

// Close ends the request. What has not been read of it is not waited for.
func (b *body) Close() error {
	b.stream.End()
	b.a.end()
	return b.rc.Close()
}
