// Package mirror is the registry endpoint on a node's loopback interface.
//
// containerd's hosts.toml points here for every registry, so that resolving a
// tag, which comes before any snapshotter is asked, works without a link. The
// mirror asks the registry when the link is up and remembers what it answered;
// what it has seen once it answers from its cache from then on. Because
// manifests and configs pass through it, it can tell the catalog the chain ID
// of every layer, and let the layers' tables of contents begin to cross, before
// containerd prepares the first snapshot.
//
// It speaks the pull half of the OCI distribution API, for images of any
// registry: containerd names the host in the query parameter "ns".
package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/store"
)

// DefaultPatience is how long a registry may take to say what a tag means
// before the cached meaning is used. A guess: several round trips by satellite
// with a login, and no more than a person waits.
const DefaultPatience = 10 * time.Second

// Options configure a Mirror; the zero value works.
type Options struct {
	Patience time.Duration // 0: DefaultPatience
	Logger   *slog.Logger
}

// Mirror is an http.Handler.
type Mirror struct {
	store   *store.Store
	catalog *catalog.Catalog
	reg     *registry.Client
	fetcher *fetcher.Fetcher
	opts    Options
	log     *slog.Logger

	run    context.Context //nolint:containedctx // work that outlives the request that began it
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu      sync.Mutex
	flights map[string]*flight     // guarded by mu; questions under way
	learned map[digest.Digest]bool // guarded by mu; images that this process has told the catalog of
	closing bool                   // guarded by mu
}

// New returns a Mirror.
func New(s *store.Store, c *catalog.Catalog, reg *registry.Client, f *fetcher.Fetcher, opts Options) *Mirror {
	if opts.Patience == 0 {
		opts.Patience = DefaultPatience
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	run, cancel := context.WithCancel(context.Background()) //nolint:forbidigo // the mirror's own life, ended by Close
	return &Mirror{store: s, catalog: c, reg: reg, fetcher: f, opts: opts, log: opts.Logger, run: run, cancel: cancel, flights: map[string]*flight{}, learned: map[digest.Digest]bool{}}
}

// Close ends what requests have begun and waits for it.
func (m *Mirror) Close() {
	m.mu.Lock()
	m.closing = true
	m.mu.Unlock()
	m.cancel()
	m.work.Wait()
}

// Serve answers requests on lis until ctx ends, then lets those under way
// finish for a moment. It closes lis.
func (m *Mirror) Serve(ctx context.Context, lis net.Listener) error {
	srv := &http.Server{
		Handler:           m,
		ReadHeaderTimeout: 10 * time.Second, // loopback
		ErrorLog:          slog.NewLogLogger(m.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		err := srv.Shutdown(grace)
		if errors.Is(err, context.DeadlineExceeded) {
			err = srv.Close() // a pull under way is taken up by the next daemon
		}
		stopped <- err
	}()
	if err := srv.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("mirror: serve: %w", err)
	}
	return <-stopped
}

// request is what a URL of the API asks for.
type request struct {
	src  catalog.Source
	kind string // "manifests" or "blobs"
	ref  string // a tag or a digest
}

// ServeHTTP implements http.Handler.
func (m *Mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		m.refuse(w, r, http.StatusMethodNotAllowed, "UNSUPPORTED", errors.New("the mirror is for pulling; push to the registry itself"))
		return
	}
	if r.URL.Path == "/v2/" || r.URL.Path == "/v2" {
		w.Header().Set("Content-Type", "application/json")
		if _, err := w.Write([]byte("{}")); err != nil {
			m.log.DebugContext(r.Context(), "client went away", slog.Any("error", err))
		}
		return
	}
	q, err := parse(r)
	if err != nil {
		m.refuse(w, r, http.StatusBadRequest, "NAME_INVALID", err)
		return
	}
	switch q.kind {
	case "manifests":
		m.serveManifest(w, r, q)
	case "blobs":
		m.serveBlob(w, r, q)
	}
}

func parse(r *http.Request) (request, error) {
	var q request
	path, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	for _, kind := range []string{"manifests", "blobs"} {
		if i := strings.LastIndex(path, "/"+kind+"/"); i > 0 {
			q.kind, q.src.Repo, q.ref = kind, path[:i], path[i+len(kind)+2:]
		}
	}
	if !ok || q.kind == "" {
		return q, fmt.Errorf("%s is not a part of the registry API that the mirror has", r.URL.Path)
	}
	q.src.Host = r.URL.Query().Get("ns")
	if q.src.Host == "" {
		return q, errors.New("no ns parameter says which registry is meant; point containerd here by a hosts.toml in its config_path")
	}
	if !validHost(q.src.Host) || !validRepo(q.src.Repo) {
		return q, fmt.Errorf("invalid name %s/%s", q.src.Host, q.src.Repo)
	}
	if strings.Contains(q.ref, ":") || q.kind == "blobs" {
		if err := digest.Digest(q.ref).Validate(); err != nil {
			return q, fmt.Errorf("invalid digest %q", q.ref)
		}
	} else if !validTag(q.ref) {
		return q, fmt.Errorf("invalid tag %q", q.ref)
	}
	return q, nil
}

func only(s, more string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte(more, c) < 0 {
			return false
		}
	}
	return s != ""
}

func validHost(s string) bool { return len(s) < 300 && only(strings.ToLower(s), ".-:[]") }

func validTag(s string) bool {
	return len(s) <= 128 && only(strings.ToLower(s), "_.-") && s[0] != '.' && s[0] != '-'
}

func validRepo(s string) bool {
	for part := range strings.SplitSeq(s, "/") {
		if !only(part, "._-") || part[0] == '.' || strings.Contains(part, "..") {
			return false
		}
	}
	return len(s) < 256
}

// refuse answers with an error as the distribution API has them.
func (m *Mirror) refuse(w http.ResponseWriter, r *http.Request, status int, code string, err error) {
	m.log.DebugContext(r.Context(), "refused", slog.String("path", r.URL.Path), slog.Int("status", status), slog.Any("error", err))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	type entry struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	if err := json.NewEncoder(w).Encode(map[string][]entry{"errors": {{code, err.Error()}}}); err != nil {
		m.log.DebugContext(r.Context(), "client went away", slog.Any("error", err))
	}
}

// fail translates an error into an answer.
func (m *Mirror) fail(w http.ResponseWriter, r *http.Request, err error) {
	var remote *registry.Error
	switch {
	case r.Context().Err() != nil: // nobody is listening
	case errors.Is(err, catalog.ErrConflict):
		m.refuse(w, r, http.StatusConflict, "DENIED", err)
	case registry.NotFound(err):
		m.refuse(w, r, http.StatusNotFound, "NOT_FOUND", err)
	case errors.As(err, &remote) && !remote.Temporary():
		// The client's own credentials are not passed on yet, so a 401 would
		// only make it try them here.
		m.refuse(w, r, http.StatusForbidden, "DENIED", err)
	case registry.Temporary(err):
		w.Header().Set("Retry-After", "5")
		m.refuse(w, r, http.StatusServiceUnavailable, "UNAVAILABLE", err)
	default:
		m.refuse(w, r, http.StatusInternalServerError, "UNKNOWN", err)
	}
}
