package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/internal/store"
)

func (m *Mirror) serveManifest(w http.ResponseWriter, r *http.Request, q request) {
	d := digest.Digest(q.ref)
	if d.Validate() != nil {
		d = ""
	}
	man, stale, err := m.manifest(r.Context(), q, d)
	if late, ok := m.expected(d); ok && (errors.Is(err, errLate) || registry.Unreached(err)) && r.Method == http.MethodGet {
		m.promise(w, r, q, registry.Manifest{Digest: d, MediaType: late.MediaType}, late.Size)
		return
	}
	if errors.Is(err, errLate) && man.Digest != "" { // it is here; what is in its layers isn't known yet
		if r.Method == http.MethodGet {
			m.promise(w, r, q, man, int64(len(man.Body)))
			return
		}
		err = nil // who only wants its digest asks again before anything is prepared
	}
	if err != nil {
		m.fail(w, r, q, codeManifestUnknown, err)
		return
	}
	if err := m.catalog.Used(man.Digest, time.Now()); err != nil {
		m.log.WarnContext(r.Context(), "the use of an image is not noted", slog.String("image", q.name()), slog.Any("error", err))
	}
	if stale {
		w.Header().Set("Warning", `299 - "the registry does not answer; this is what the tag meant last"`)
	}
	setManifestHeaders(w, man.Digest, man.MediaType)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(man.Body))
}

func setManifestHeaders(w http.ResponseWriter, d digest.Digest, mediaType string) {
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Etag", `"`+d.String()+`"`)
}

// manifest returns what q names: by digest, d, from the cache if it is there;
// by tag, if d is empty, from the registry, and from the cache if that takes too
// long, which stale tells. With errLate it may be here, and not be known yet what is
// in the image.
func (m *Mirror) manifest(ctx context.Context, q request, d digest.Digest) (man registry.Manifest, stale bool, err error) {
	if d == "" {
		man, stale, err = m.resolve(ctx, q)
	} else {
		man, err = m.byDigest(ctx, q, d, m.limit())
	}
	if err != nil {
		return registry.Manifest{}, false, err
	}
	return man, stale, m.know(ctx, q, man, m.limit())
}

// byDigest returns a manifest whose meaning can't change: from the cache if it
// is there, else from the registry, waiting for at most limit.
func (m *Mirror) byDigest(ctx context.Context, q request, d digest.Digest, limit time.Duration) (registry.Manifest, error) {
	man, err := m.cached(d)
	if err == nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, store.ErrDamaged) {
		return man, err
	}
	if m.locked(q) {
		return man, errLocked
	}
	fl := question(m, q, "manifest "+q.name(), true, func(ctx context.Context) (registry.Manifest, error) {
		if man, err := m.cached(d); err == nil {
			return man, nil // it came between the look and the question
		}
		man, err := m.reg.Manifest(ctx, fetcher.Demand, q.from, q.ref)
		if err != nil {
			return man, err
		}
		return man, m.keep(q, man)
	})
	return fl.wait(ctx, limit)
}

// late is a manifest that an index has told of.
type late struct {
	MediaType string
	Size      int64 // bytes
}

// expected returns what is known of a manifest that is not here.
func (m *Mirror) expected(d digest.Digest) (late, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	desc, ok := m.listed[d]
	return late{desc.MediaType, desc.Size}, ok
}

// promise begins the answer to a request for a manifest whose size is known,
// and ends it when the manifest is here and its image known, however long that takes:
// containerd gives up a request without an answer after 30 s, but one that has begun
// never. A manifest without a body is not here.
func (m *Mirror) promise(w http.ResponseWriter, r *http.Request, q request, man registry.Manifest, size int64) {
	setManifestHeaders(w, man.Digest, man.MediaType)
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	w.WriteHeader(http.StatusOK)
	if err := http.NewResponseController(w).Flush(); err != nil {
		panic(http.ErrAbortHandler)
	}
	var err error
	if man.Body == nil {
		man, err = m.insist(r.Context(), q, man.Digest)
	}
	if err == nil {
		err = m.know(r.Context(), q, man, -1)
	}
	if err == nil && int64(len(man.Body)) != size {
		err = fmt.Errorf("mirror: manifest %s has %d bytes; the index says %d", q.name(), len(man.Body), size)
	}
	if err != nil {
		m.log.WarnContext(r.Context(), "a manifest was cut off", slog.String("image", q.name()), slog.Any("error", err))
		panic(http.ErrAbortHandler) // the length is promised: only a cut tells the client
	}
	m.write(w, r, man.Body)
}

// insist asks until the link brings the manifest, or the registry refuses it.
func (m *Mirror) insist(ctx context.Context, q request, d digest.Digest) (registry.Manifest, error) {
	for {
		man, err := m.byDigest(ctx, q, d, -1)
		if err == nil || ctx.Err() != nil || !registry.Temporary(err) {
			return man, err
		}
		t := time.NewTimer(max(insistPause, registry.RetryAfter(err)))
		select {
		case <-t.C:
		case <-m.reg.Changed():
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// insistPause is how often a question is begun anew on a dark link. Each has
// pauses of its own that grow.
const insistPause = 5 * time.Second
