package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/fetcher/registry"
)

// serveBlob answers with a blob: from the cache if it is there, else as it
// crosses the link, from where it was interrupted.
func (m *Mirror) serveBlob(w http.ResponseWriter, r *http.Request, q request) {
	d := digest.Digest(q.ref)
	h := w.Header()
	h.Set("Docker-Content-Digest", q.ref)
	h.Set("Etag", `"`+q.ref+`"`)
	f, err := m.store.Blob(d)
	if err == nil {
		h.Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, f)
		m.close(r.Context(), f, q)
		return
	}
	if !errors.Is(err, fs.ErrNotExist) {
		m.fail(w, r, q, codeBlobUnknown, err)
		return
	}
	size, err := m.size(r.Context(), q, d)
	if err != nil {
		m.fail(w, r, q, codeBlobUnknown, err)
		return
	}
	etag := h.Get("Etag")
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	spec := r.Header.Get("Range")
	if cond := r.Header.Get("If-Range"); cond != "" && cond != etag {
		spec = ""
	}
	off, end, partial, ok := byteRange(spec, size)
	if !ok {
		h.Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		m.refuse(w, r, http.StatusRequestedRangeNotSatisfiable, codeSizeInvalid, fmt.Errorf("range %q of %d bytes", spec, size))
		return
	}
	if r.Method == http.MethodHead && m.reg.Dark() {
		m.fail(w, r, q, codeBlobUnknown, errLate) // a GET would wait; a HEAD asks what is to be had
		return
	}
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Accept-Ranges", "bytes")
	h.Set("Content-Length", strconv.FormatInt(end-off, 10))
	status := http.StatusOK
	if partial {
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, end-1, size))
		status = http.StatusPartialContent
	}
	if r.Method == http.MethodHead {
		w.WriteHeader(status)
		return
	}
	m.follow(w, r, q, status, size, off, end)
}

// size returns how many bytes a blob has that is not here. The registry is
// asked only for what no manifest has told of, and for a client that has its
// own credentials, which the fetcher needs, too.
func (m *Mirror) size(ctx context.Context, q request, d digest.Digest) (int64, error) {
	size, err := m.catalog.BlobSize(d)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	known := err == nil
	if !known {
		m.mu.Lock()
		size, known = m.sizes[d]
		m.mu.Unlock()
	}
	if known && (q.login.ID() == "" || m.reg.Granted(q.from, q.login)) {
		return size, nil
	}
	if m.locked(q) {
		return 0, errLocked
	}
	asked, err := question(m, q, "size "+q.ref, true, func(ctx context.Context) (int64, error) {
		return m.reg.Size(ctx, q.from, d)
	}).wait(ctx, m.limit())
	switch {
	case known && (errors.Is(err, errLate) || registry.Temporary(err)):
		return size, nil // the link's trouble is waited for where the bytes are
	case err != nil:
		return 0, err
	case known:
		return size, nil // as the manifest says, which was verified
	case asked < 0:
		return 0, fmt.Errorf("mirror: blob %s: %w: the registry does not say how large it is", q.name(), registry.ErrContent)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.sizes) > maxListed {
		clear(m.sizes)
	}
	m.sizes[d] = asked
	return asked, nil
}

// follow sends bytes [off, end) of a blob as they cross.
func (m *Mirror) follow(w http.ResponseWriter, r *http.Request, q request, status int, size, off, end int64) {
	blob, err := m.fetcher.Blob(r.Context(), fetcher.Prefetch, q.from, digest.Digest(q.ref), size)
	if err == nil {
		err = blob.Skip(off)
	}
	if err != nil {
		m.fail(w, r, q, codeBlobUnknown, err)
		return
	}
	defer m.close(r.Context(), blob, q)
	m.log.InfoContext(r.Context(), "a whole blob crosses the link", slog.String("blob", q.ref), slog.Int64("bytes", size), slog.String("repo", q.from.Host+"/"+q.from.Repo))
	begun, err := copyFlush(w, status, m.pace.answer, io.LimitReader(blob, end-off))
	if err != nil && !begun {
		m.fail(w, r, q, codeBlobUnknown, err)
		return
	}
	if err != nil {
		m.log.WarnContext(r.Context(), "a blob was cut off; asking again goes on where it was", slog.String("blob", q.ref), slog.Any("error", err))
		panic(http.ErrAbortHandler) // the length is promised: only a cut tells the client
	}
}

func (m *Mirror) close(ctx context.Context, c io.Closer, q request) {
	if err := c.Close(); err != nil {
		m.log.WarnContext(ctx, "closing a blob", slog.String("blob", q.ref), slog.Any("error", err))
	}
}

// copyFlush sends each piece as it comes: on a thin link a buffer would hold
// bytes back for minutes, and the client would take it for a stall. begun tells
// that the answer has begun, which it does without a first byte after limit:
// until then an error can still be told as one, but containerd waits for 30 s and no longer for an answer to begin, and
// then for as long as it takes.
func copyFlush(w http.ResponseWriter, status int, limit time.Duration, r io.Reader) (begun bool, err error) {
	rc := http.NewResponseController(w)
	buf := make([]byte, 32<<10)
	type piece struct {
		n   int
		err error
	}
	first := make(chan piece, 1)
	go func() { // it ends with the read, which obeys the request's context, and is waited for
		n, err := r.Read(buf)
		first <- piece{n, err}
	}()
	late := time.NewTimer(limit)
	defer late.Stop()
	var p piece
	select {
	case p = <-first:
		if p.err != nil && !errors.Is(p.err, io.EOF) && p.n == 0 {
			return false, p.err
		}
		w.WriteHeader(status)
	case <-late.C:
		w.WriteHeader(status)
		err := rc.Flush()
		if p = <-first; err != nil {
			return true, err
		}
	}
	for {
		if p.n > 0 {
			if _, err := w.Write(buf[:p.n]); err != nil {
				return true, err
			}
			if err := rc.Flush(); err != nil {
				return true, err
			}
		}
		if errors.Is(p.err, io.EOF) {
			return true, nil
		}
		if p.err != nil {
			return true, p.err
		}
		p.n, p.err = r.Read(buf)
	}
}
