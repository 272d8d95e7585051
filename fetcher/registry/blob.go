package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/catalog"
)

// Blob opens a blob from byte off on, with the urgency of class. At most n bytes are asked for; n < 0
// means to the end. The stream begins at start, which is before off if the
// registry doesn't do ranges; start bytes of the caller's interest lie ahead.
// The stream's errors are Errors too; the caller closes it. After an error in
// mid-stream the rest may come from another address of the registry.
func (c *Client) Blob(ctx context.Context, class uplink.Class, src catalog.Source, d digest.Digest, off, n int64) (stream io.ReadCloser, start int64, err error) {
	if c.opts.Shore != nil {
		if stream, ok, err := c.opts.Shore.Blob(ctx, class, src, d, off, n); ok {
			return stream, off, err
		}
	}
	err = c.each(ctx, src, func(h *host) (err error) {
		if stream, start, err = c.blob(ctx, h, class, src, d, off, n); err == nil {
			c.note(src, d, h)
		}
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	return stream, start, nil
}

type sentKey struct {
	src catalog.Source
	d   digest.Digest
}

// note remembers where a blob comes from.
func (c *Client) note(src catalog.Source, d digest.Digest, h *host) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.hosts[src.Host]) < 2 {
		return
	}
	if len(c.sentBy) > 10_000 {
		clear(c.sentBy)
	}
	c.sentBy[sentKey{src, d}] = h
}

// Distrust says that what came of a blob last is not what its digest, or its
// table of contents, says. The address that sent it is left alone for a while if
// the registry has another.
func (c *Client) Distrust(src catalog.Source, d digest.Digest) {
	c.mu.Lock()
	h := c.sentBy[sentKey{src, d}]
	c.mu.Unlock()
	if h != nil {
		h.failed(longestRest)
	}
}

func (c *Client) blob(ctx context.Context, h *host, class uplink.Class, src catalog.Source, d digest.Digest, off, n int64) (_ io.ReadCloser, start int64, err error) {
	what := "blob " + d.String()
	header := http.Header{}
	switch {
	case n >= 0:
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	case off > 0:
		header.Set("Range", fmt.Sprintf("bytes=%d-", off))
	}
	resp, ctx, a, err := c.getBlob(ctx, h, class, src, what, d, header, max(n, 0))
	if err != nil {
		return nil, 0, err
	}
	left := int64(-1)
	if n >= 0 {
		left = n
	}
	switch resp.StatusCode {
	case http.StatusPartialContent:
		var got span
		if got, err = contentRange(resp.Header.Get("Content-Range")); err == nil {
			err = got.fits(off, n, resp.ContentLength)
		}
		if err != nil {
			err = errors.Join(err, resp.Body.Close())
			a.end()
			return nil, 0, &Error{Source: src, What: what, Err: err}
		}
		start = got.first
	case http.StatusOK:
		if resp.ContentLength >= 0 && resp.ContentLength < off+max(n, 0) {
			err := fmt.Errorf("%d bytes, asked for %d from %d on", resp.ContentLength, n, off)
			err = errors.Join(err, resp.Body.Close())
			a.end()
			return nil, 0, &Error{Source: src, What: what, Err: err}
		}
	default:
		err := refused(src, what, resp)
		a.end()
		return nil, 0, err
	}
	b := c.body(ctx, a, resp, src, what)
	if left >= 0 {
		b.left = off + left - start
	}
	return b, start, nil
}

// span is what a Content-Range says: bytes first to last, of total; total < 0
// if it doesn't say.
type span struct{ first, last, total int64 }

func contentRange(s string) (span, error) {
	bad := fmt.Errorf("wrong Content-Range %q", s)
	r, ok := strings.CutPrefix(s, "bytes ")
	ends, total, ok2 := strings.Cut(r, "/")
	first, last, ok3 := strings.Cut(ends, "-")
	if !ok || !ok2 || !ok3 {
		return span{}, bad
	}
	var got span
	var err1, err2, err3 error
	got.first, err1 = strconv.ParseInt(first, 10, 64)
	got.last, err2 = strconv.ParseInt(last, 10, 64)
	if got.total = -1; total != "*" {
		got.total, err3 = strconv.ParseInt(total, 10, 64)
		if got.total <= got.last {
			return span{}, bad
		}
	}
	if errors.Join(err1, err2, err3) != nil || got.first < 0 || got.last < got.first {
		return span{}, bad
	}
	return got, nil
}

// fits tells whether an answer can be what a request for n bytes from off on
// (n < 0: to the end) is answered with, its body being length bytes long
// (< 0: not said).
func (s span) fits(off, n, length int64) error {
	switch {
	case s.first > off || s.last < off:
		return fmt.Errorf("wrong Content-Range: bytes %d to %d, asked for %d", s.first, s.last, off)
	case n > 0 && s.total >= 0 && s.total < off+n:
		return fmt.Errorf("wrong Content-Range: %d bytes in all, asked for %d from %d on", s.total, n, off)
	case length >= 0 && s.last-s.first+1 != length:
		return fmt.Errorf("wrong Content-Range: bytes %d to %d in a body of %d", s.first, s.last, length)
	}
	return nil
}

// getBlob goes to where the blob was found last, and asks the registry if
// that doesn't hold any more. The caller ends the attempt that it returns.
func (c *Client) getBlob(ctx context.Context, h *host, class uplink.Class, src catalog.Source, what string, d digest.Digest, header http.Header, queued int64) (*http.Response, context.Context, *attempt, error) {
	key := redirectKey{h, src.Repo, d.String()}
	c.mu.Lock()
	known := c.redirects[key]
	c.mu.Unlock()
	if known != "" {
		// A storage host that is gone says nothing of the link, nor of the
		// registry, which may name another.
		run, a := c.begin(ctx, h, class, queued)
		a.quiet = true
		resp, err := c.fetch(run, a, src, what, known, header)
		if err == nil && resp.StatusCode < 300 {
			a.quiet = false
			return resp, run, a, nil
		}
		c.remember(key, "")
		if err == nil {
			err = drop(resp.Body)
		}
		a.end()
		if err != nil && ctx.Err() != nil {
			return nil, nil, nil, err
		}
	}
	run, a := c.begin(ctx, h, class, queued)
	resp, err := c.locate(run, a, src, what, d, header, key)
	if err != nil {
		a.end()
		return nil, nil, nil, err
	}
	return resp, run, a, nil
}

// locate asks the registry for a blob and follows where it points.
func (c *Client) locate(ctx context.Context, a *attempt, src catalog.Source, what string, d digest.Digest, header http.Header, key redirectKey) (*http.Response, error) {
	resp, err := c.get(ctx, a, src, http.MethodGet, what, "/blobs/"+d.String(), header)
	for hops := 0; err == nil && isRedirect(resp.StatusCode); hops++ {
		to, locErr := resp.Location()
		if err := errors.Join(locErr, drop(resp.Body)); err != nil {
			return nil, &Error{Source: src, What: what, Err: err}
		}
		if hops == 5 {
			return nil, fmt.Errorf("registry: %s of %s/%s: too many redirects", what, src.Host, src.Repo)
		}
		a.quiet = to.Host != a.h.base.Host // the registry answers: it is not the link
		resp, err = c.fetch(ctx, a, src, what, to.String(), header)
		a.quiet = false
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

// Size asks how large a blob is that no manifest has told of, in bytes, or -1
// if the registry has it and does not say.
func (c *Client) Size(ctx context.Context, src catalog.Source, d digest.Digest) (int64, error) {
	size := int64(-1)
	err := c.each(ctx, src, func(h *host) error {
		what := "blob " + d.String()
		// Storage hosts sign their addresses for GET alone, so this asks for
		// one byte rather than for the head.
		resp, _, a, err := c.getBlob(ctx, h, uplink.Demand, src, what, d, http.Header{"Range": {"bytes=0-0"}}, 1)
		if err != nil {
			return err
		}
		defer a.end()
		switch resp.StatusCode {
		case http.StatusOK:
			size = resp.ContentLength
		case http.StatusPartialContent:
			got, err := contentRange(resp.Header.Get("Content-Range"))
			if err != nil {
				return &Error{Source: src, What: what, Err: errors.Join(err, resp.Body.Close())}
			}
			size = got.total
		case http.StatusRequestedRangeNotSatisfiable: // of an empty blob
			size = 0
		default:
			return refused(src, what, resp)
		}
		return resp.Body.Close()
	})
	return size, err
}
