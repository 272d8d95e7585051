package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/internal/catalog"
)

// Codes of the distribution API.
const (
	codeBlobUnknown     = "BLOB_UNKNOWN"
	codeDenied          = "DENIED"
	codeDigestInvalid   = "DIGEST_INVALID"
	codeManifestUnknown = "MANIFEST_UNKNOWN"
	codeNameInvalid     = "NAME_INVALID"
	codeNameUnknown     = "NAME_UNKNOWN"
	codeSizeInvalid     = "SIZE_INVALID"
	codeTooMany         = "TOOMANYREQUESTS"
	codeUnauthorized    = "UNAUTHORIZED"
	codeUnsupported     = "UNSUPPORTED"

	// Not of the specification, which has none for a registry's own trouble;
	// other registries use these.
	codeUnavailable = "UNAVAILABLE"
	codeUnknown     = "UNKNOWN"
)

// retryAfter is what clients are told while the link is dark, in seconds.
const retryAfter = "5"

// privateFor is how long it is remembered that a registry refuses the node's
// own credentials: clients are asked for theirs then without a question across
// the link.
const privateFor = time.Minute

// errLocked says that a client must send credentials.
var errLocked = errors.New("the registry wants credentials that the node does not have")

// ServeHTTP implements http.Handler.
func (m *Mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		m.refuse(w, r, http.StatusMethodNotAllowed, codeUnsupported, errors.New("the mirror is for pulling; push to the registry itself"))
		return
	}
	if m.reg.Looped(r.Header.Values("Via")) {
		m.refuse(w, r, http.StatusLoopDetected, codeUnsupported, errors.New("the request was made by this mirror: what is configured as a registry, or as a mirror of one, leads back here"))
		return
	}
	if r.URL.Path == "/v2/" || r.URL.Path == "/v2" {
		w.Header().Set("Content-Type", "application/json")
		m.write(w, r, []byte("{}"))
		return
	}
	q, err := parse(r, m.opts.Default)
	if err != nil {
		code := codeNameInvalid
		if errors.Is(err, errDigest) {
			code = codeDigestInvalid
		}
		m.refuse(w, r, http.StatusBadRequest, code, err)
		return
	}
	q.from = rewrite(m.opts.Rewrite, q.src)
	q.via = r.Header.Values("Via")
	if user, password, ok := r.BasicAuth(); ok {
		q.offered = true
		if q.from.Host == q.src.Host { // a password is not for another registry that a rule names
			q.login = registry.Login{Username: user, Password: password}
		}
	}
	switch q.kind {
	case "manifests":
		m.serveManifest(w, r, q)
	case "blobs":
		m.serveBlob(w, r, q)
	case "tags":
		m.serveTags(w, r, q)
	case "referrers":
		m.serveReferrers(w, r, q)
	}
}

// locks tells whether err says that a client must send credentials: the
// registry has refused a question without any, and the node has none to give.
// If it has some, they are what somebody must look at, and the client is told so.
func (m *Mirror) locks(ctx context.Context, q request, err error) bool {
	return registry.Refused(err) && q.login.ID() == "" && !q.self && !m.reg.HasCredentials(ctx, q.from.Host)
}

// locked tells whether a registry has lately refused what a request without
// credentials can offer.
func (m *Mirror) locked(q request) bool {
	if q.login.ID() != "" || q.self {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	since, ok := m.private[q.from]
	return ok && time.Since(since) < privateFor
}

func (m *Mirror) write(w http.ResponseWriter, r *http.Request, b []byte) {
	if _, err := w.Write(b); err != nil {
		m.log.DebugContext(r.Context(), "client went away", slog.Any("error", err))
	}
}

// refuse answers with an error as the distribution API has them.
func (m *Mirror) refuse(w http.ResponseWriter, r *http.Request, status int, code string, err error) {
	m.log.DebugContext(r.Context(), "refused", slog.String("path", r.URL.Path), slog.Int("status", status), slog.Any("error", err))
	h := w.Header()
	for _, name := range []string{"Content-Length", "Content-Range", "Docker-Content-Digest", "Etag"} {
		if name != "Content-Range" || status != http.StatusRequestedRangeNotSatisfiable {
			h.Del(name)
		}
	}
	h.Set("Content-Type", "application/json")
	type entry struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	b, jerr := json.Marshal(map[string][]entry{"errors": {{code, err.Error()}}})
	if jerr != nil {
		b = []byte("{}")
	}
	w.WriteHeader(status)
	m.write(w, r, b)
}

// fail translates an error into an answer. unknown is the code for what the
// registry does not have.
func (m *Mirror) fail(w http.ResponseWriter, r *http.Request, q request, unknown string, err error) {
	switch {
	case r.Context().Err() != nil: // nobody is listening
	case errors.Is(err, catalog.ErrConflict):
		m.refuse(w, r, http.StatusConflict, codeDenied, err)
	case registry.NotFound(err):
		m.refuse(w, r, http.StatusNotFound, unknown, err)
	case !q.offered && (errors.Is(err, errLocked) || m.locks(r.Context(), q, err)):
		// containerd has the credentials of a pull secret and sends them only
		// to who asks. Basic is what needs no token service here.
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Basic realm="%s through the Airstream mirror"`, q.src.Host))
		m.refuse(w, r, http.StatusUnauthorized, codeUnauthorized, err)
	case registry.Refused(err), errors.Is(err, errLocked):
		m.refuse(w, r, http.StatusForbidden, codeDenied, err)
	case errors.Is(err, registry.ErrContent):
		m.refuse(w, r, http.StatusBadGateway, codeUnknown, err)
	case errors.Is(err, errLate), registry.Temporary(err):
		after := registry.RetryAfter(err)
		w.Header().Set("Retry-After", retryAfter)
		if after > 0 {
			w.Header().Set("Retry-After", fmt.Sprint(int(after.Seconds()+0.999)))
		}
		if registry.TooMany(err) {
			m.refuse(w, r, http.StatusTooManyRequests, codeTooMany, err)
			return
		}
		if m.reg.Dark() {
			err = fmt.Errorf("the link is dark and this is not cached: %w", err)
		}
		m.refuse(w, r, http.StatusServiceUnavailable, codeUnavailable, err)
	case errors.As(err, new(*registry.Error)):
		m.refuse(w, r, http.StatusBadGateway, codeUnknown, err)
	default:
		m.refuse(w, r, http.StatusInternalServerError, codeUnknown, err)
	}
}
