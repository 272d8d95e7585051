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
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/fetcher"
)

// serveBlob answers with a blob: from the cache if it is there, else as it
// crosses the link, from where it was interrupted.
func (m *Mirror) serveBlob(w http.ResponseWriter, r *http.Request, q request) {
	d := digest.Digest(q.ref)
	w.Header().Set("Docker-Content-Digest", q.ref)
	w.Header().Set("Etag", `"`+q.ref+`"`)
	f, err := m.store.Blob(d)
	if err == nil {
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, f)
		m.close(r.Context(), f, q)
		return
	}
	if !errors.Is(err, fs.ErrNotExist) {
		m.fail(w, r, err)
		return
	}
	size, err := m.catalog.BlobSize(d)
	if errors.Is(err, fs.ErrNotExist) {
		// Every blob that containerd asks for stands in a manifest that passed
		// here. Without it there is no size, and nothing to bound the answer.
		m.refuse(w, r, http.StatusNotFound, "BLOB_UNKNOWN", fmt.Errorf("no manifest that the mirror has seen names blob %s; pull the image through it", d))
		return
	}
	if err != nil {
		m.fail(w, r, err)
		return
	}
	off, end, partial, ok := byteRange(r.Header.Get("Range"), size)
	if !ok {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		m.refuse(w, r, http.StatusRequestedRangeNotSatisfiable, "SIZE_INVALID", fmt.Errorf("range %q of %d bytes", r.Header.Get("Range"), size))
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Accept-Ranges", "bytes")
	w.Header().Set("Content-Length", strconv.FormatInt(end-off, 10))
	status := http.StatusOK
	if partial {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, end-1, size))
		status = http.StatusPartialContent
	}
	if r.Method == http.MethodHead {
		w.WriteHeader(status)
		return
	}
	m.follow(w, r, q, status, size, off, end)
}

// follow sends bytes [off, end) of a blob as they cross.
func (m *Mirror) follow(w http.ResponseWriter, r *http.Request, q request, status int, size, off, end int64) {
	blob, err := m.fetcher.Blob(r.Context(), fetcher.Prefetch, q.src, digest.Digest(q.ref), size)
	if err != nil {
		w.Header().Del("Content-Length")
		w.Header().Del("Content-Range")
		m.fail(w, r, err)
		return
	}
	defer m.close(r.Context(), blob, q)
	m.log.InfoContext(r.Context(), "a whole blob crosses the link", slog.String("blob", q.ref), slog.Int64("bytes", size), slog.String("repo", q.src.Host+"/"+q.src.Repo))
	if err = blob.Skip(off); err == nil {
		_, err = copyFlush(w, status, io.LimitReader(blob, end-off))
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
// bytes back for minutes, and the client would take it for a stall.
func copyFlush(w http.ResponseWriter, status int, r io.Reader) (n int64, err error) {
	w.WriteHeader(status)
	rc := http.NewResponseController(w)
	buf := make([]byte, 32<<10)
	for {
		k, err := r.Read(buf)
		if k > 0 {
			if _, err := w.Write(buf[:k]); err != nil {
				return n, err
			}
			if err := rc.Flush(); err != nil {
				return n, err
			}
			n += int64(k)
		}
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// byteRange reads a Range header with one range. Headers that it doesn't
// understand mean the whole, as HTTP has it; ok is false for a range outside.
func byteRange(h string, size int64) (off, end int64, partial, ok bool) {
	spec, isBytes := strings.CutPrefix(h, "bytes=")
	if !isBytes || strings.Contains(spec, ",") {
		return 0, size, false, true
	}
	first, last, dash := strings.Cut(spec, "-")
	if !dash {
		return 0, size, false, true
	}
	if first == "" {
		n, err := strconv.ParseInt(last, 10, 64)
		if err != nil || n <= 0 {
			return 0, size, false, err != nil
		}
		return max(0, size-n), size, true, size > 0
	}
	off, err := strconv.ParseInt(first, 10, 64)
	if err != nil || off < 0 {
		return 0, size, false, true
	}
	end = size
	if last != "" {
		n, err := strconv.ParseInt(last, 10, 64)
		if err != nil || n < off {
			return 0, size, false, true
		}
		if n < size-1 {
			end = n + 1
		}
	}
	return off, end, true, off < size
}
