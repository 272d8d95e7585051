package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/catalog"
)

// ErrContent says that what came is not what was asked for: another digest, or
// bytes that something on the way has encoded anew. None of it was used.
var ErrContent = errors.New("the content is not what was asked for")

// fetch gets a storage host's URL, without credentials.
func (c *Client) fetch(ctx context.Context, a *attempt, src catalog.Source, what, to string, header http.Header) (*http.Response, error) {
	u, err := url.Parse(to)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Scheme == "http" && a.h.base.Scheme == "https" {
		return nil, fmt.Errorf("registry: %s of %s/%s: redirected to %q, which is not a secure address", what, src.Host, src.Repo, to)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, to, nil)
	if err != nil {
		return nil, &Error{Source: src, What: what, Err: err}
	}
	req.Header = untouched(header)
	resp, err := c.do(ctx, a, a.h, req)
	if err != nil {
		return nil, &Error{Source: src, What: what, Err: err}
	}
	return resp, encoded(src, what, resp)
}

// untouched returns header with what keeps proxies from changing bytes.
func untouched(header http.Header) http.Header {
	h := header.Clone()
	if h == nil {
		h = http.Header{}
	}
	h.Set("Accept-Encoding", "identity")
	h.Set("Cache-Control", "no-transform")
	return h
}

// encoded refuses, and closes, a successful answer that a proxy has compressed
// all the same: neither its digest nor its ranges are those of the content.
func encoded(src catalog.Source, what string, resp *http.Response) error {
	coding := resp.Header.Get("Content-Encoding")
	if coding == "" || coding == "identity" || resp.StatusCode >= 300 {
		return nil
	}
	err := fmt.Errorf("%w: it came with Content-Encoding %q, which nobody asked for; a proxy on the way changes it", ErrContent, coding)
	return &Error{Source: src, What: what, Err: errors.Join(err, resp.Body.Close())}
}

// get asks a host for a path below a repository, logging in if it is told to.
// The answer is for the caller to judge, whatever its status.
func (c *Client) get(ctx context.Context, a *attempt, src catalog.Source, method, what, path string, header http.Header) (*http.Response, error) {
	h := a.h
	as := c.user(ctx, h, src)
	for try := 0; ; try++ {
		req, err := http.NewRequestWithContext(ctx, method, h.base.String()+"/v2/"+src.Repo+path, nil)
		if err != nil {
			return nil, fmt.Errorf("registry: %s of %s/%s: %w", what, src.Host, src.Repo, err)
		}
		req.Header = untouched(header)
		req.Header.Set("Via", c.chain(ctx))
		sent := h.cred.header(as.key(src.Repo))
		if sent != "" {
			req.Header.Set("Authorization", sent)
		}
		resp, err := c.do(ctx, a, h, req)
		if err != nil {
			return nil, &Error{Source: src, What: what, Err: err}
		}
		if resp.StatusCode != http.StatusUnauthorized {
			if resp.StatusCode < 400 {
				c.accepted(h, src, as, sent)
			}
			return resp, encoded(src, what, resp)
		}
		challenges := resp.Header.Values("WWW-Authenticate")
		if try == 1 {
			// What was given for these credentials a moment ago is refused.
			c.rejected(h, src, as, sent)
			return resp, nil
		}
		if err := c.login(ctx, a, src, as, challenges, sent); err != nil {
			return nil, errors.Join(err, resp.Body.Close())
		}
		if h.cred.header(as.key(src.Repo)) == "" {
			return resp, nil // there is nothing to log in with
		}
		if err := drop(resp.Body); err != nil {
			return nil, &Error{Source: src, What: what, Err: err}
		}
	}
}

// small gets an answer that is held in memory whole: at most limit bytes.
func (c *Client) small(ctx context.Context, h *host, class uplink.Class, src catalog.Source, what, path string, header http.Header, limit int64) (http.Header, []byte, error) {
	ctx, a := c.begin(ctx, h, class, 0)
	defer a.end()
	resp, err := c.get(ctx, a, src, http.MethodGet, what, path, header)
	if err != nil {
		return nil, nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, nil, refused(src, what, resp)
	}
	stream := c.body(ctx, a, resp, src, what)
	b, err := io.ReadAll(io.LimitReader(stream, limit+1))
	if err = errors.Join(err, stream.Close()); err != nil {
		return nil, nil, err
	}
	if int64(len(b)) > limit {
		return nil, nil, fmt.Errorf("registry: %s of %s/%s: %w: larger than %d bytes", what, src.Host, src.Repo, ErrContent, limit)
	}
	return resp.Header, b, nil
}

func (c *Client) body(ctx context.Context, a *attempt, resp *http.Response, src catalog.Source, what string) *body {
	a.stream.Answered()
	return &body{ctx: ctx, a: a, rc: resp.Body, stream: a.stream, src: src, what: what, left: -1}
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

	waited time.Duration // waited for drips
	drips  int           // bytes that came in that time
}

// minProgress is how many bytes put a stall off: a server that lets single
// bytes drip makes none. It is less than 75 bit/s bring while a request may say
// nothing.
const minProgress = 32

func (b *body) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	if b.left > 0 && int64(len(p)) > b.left {
		p = p[:b.left]
	}
	if err := b.stream.Wait(b.ctx); err != nil {
		if notNow := (*uplink.NotNow)(nil); errors.As(err, &notNow) {
			return 0, &Error{Source: b.src, What: b.what, Err: err} // neither the link's doing nor the host's
		}
		return 0, &Error{Source: b.src, What: b.what, Err: b.a.failed(err)}
	}
	b.a.progressAfter(b.waited)
	began := time.Now()
	n, err := b.rc.Read(p[:b.stream.Piece(len(p))])
	b.a.rest()
	b.waited += time.Since(began)
	if b.drips += n; b.drips >= minProgress {
		b.waited, b.drips = 0, 0
	}
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
	b.a.end()
	return b.rc.Close()
}

// SetClass changes how urgent the answer is from now on, also while it is
// paused: somebody waits for what a less urgent request brings, or no longer.
func (b *body) SetClass(c uplink.Class) { b.stream.SetClass(c) }
