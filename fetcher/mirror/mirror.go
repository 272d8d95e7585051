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
// registry: containerd names the host in the query parameter "ns". Other
// clients put it before the repository's name, or mean Options.Default.
//
// Who may ask: the mirror listens on loopback, and whoever reaches it may pull
// what the node may pull. Where the node has no credentials and the registry
// wants some, the client's own are asked for, by a 401; they are used for that client's questions
// and, since a lazy image is fetched long after its pull, for the content of
// that repository, until the process ends. They are held in memory only. What
// is cached is served to every client, as containerd's own content store
// serves it: while the link is up a tag of a repository that wants credentials
// is answered to those alone who have them; by digest, and when the link is
// dark, to all.
package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

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
	Patience time.Duration // how long a registry may take to say what a tag means; 0: DefaultPatience
	// Default is the registry host that requests without an ns parameter mean,
	// as "registry.example:5000". Empty: such a request must name the host as
	// the first part of its path.
	Default string
	// Rewrite says where images are fetched from in place of where their names
	// say. The rule with the longest From that fits is used, once.
	Rewrite []Rule
	// Refresh has tags that were answered from the cache asked again when the
	// link is back.
	Refresh bool
	// Referrers has registries asked for an image's referrers (signatures,
	// SBOMs). False: what is cached is all there is.
	Referrers bool
	// Tables has layers served from their own tables of contents also where the
	// image has an artifact whose root says the same: a proxy sends tables.
	Tables bool
	// Settle, if set, waits until it is known which layers of an image are lazy, of
	// which its manifest doesn't say. The manifest is stored; the image is learned
	// afterwards. An error means that it is not known, and fails the request.
	Settle func(ctx context.Context, src catalog.Source, man registry.Manifest) error
	Logger *slog.Logger
}

// Rule maps the repositories below From to those below To: both are
// "HOST" or "HOST/PATH", compared by whole parts of the path. Names in the
// catalog, and in what clients see, stay as clients say them.
type Rule struct{ From, To string }

// Mirror is an http.Handler.
type Mirror struct {
	store   *store.Store
	catalog *catalog.Catalog
	reg     *registry.Client
	fetcher *fetcher.Fetcher
	opts    Options
	log     *slog.Logger

	pace pace

	run     context.Context //nolint:containedctx // work that outlives the request that began it
	cancel  context.CancelFunc
	work    sync.WaitGroup
	refresh refresh

	mu      sync.Mutex
	flights map[string]any                       // guarded by mu; questions under way, *flight[T] each
	places  map[string]chan struct{}             // guarded by mu; for questions, by registry host
	quiet   map[string]bool                      // guarded by mu; registry hosts that did not answer when last asked
	silent  time.Time                            // guarded by mu; when the link last said nothing at all
	holds   map[string]hold                      // guarded by mu; registry hosts that asked to be left alone
	private map[catalog.Source]time.Time         // guarded by mu; what the node was refused, and when
	learned map[digest.Digest]bool               // guarded by mu; images that this process has told the catalog of
	listed  map[digest.Digest]ocispec.Descriptor // guarded by mu; what indexes have told of manifests
	sizes   map[digest.Digest]int64              // guarded by mu; of blobs that no manifest has told of
	closing bool                                 // guarded by mu
}

// New returns a Mirror.
func New(s *store.Store, c *catalog.Catalog, reg *registry.Client, f *fetcher.Fetcher, opts Options) *Mirror {
	return open(s, c, reg, f, opts, defaultPace)
}

func open(s *store.Store, c *catalog.Catalog, reg *registry.Client, f *fetcher.Fetcher, opts Options, p pace) *Mirror {
	if opts.Patience == 0 {
		opts.Patience = DefaultPatience
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	run, cancel := context.WithCancel(context.Background()) //nolint:forbidigo // the mirror's own life, ended by Close
	m := &Mirror{
		store: s, catalog: c, reg: reg, fetcher: f, opts: opts, log: opts.Logger, pace: p, run: run, cancel: cancel,
		flights: map[string]any{}, places: map[string]chan struct{}{}, quiet: map[string]bool{}, holds: map[string]hold{}, private: map[catalog.Source]time.Time{},
		learned: map[digest.Digest]bool{}, listed: map[digest.Digest]ocispec.Descriptor{}, sizes: map[digest.Digest]int64{},
	}
	m.refresh.wake = make(chan struct{}, 1)
	m.opts.Rewrite = nil
	for _, r := range opts.Rewrite {
		if err := r.Validate(); err != nil {
			m.log.Error("a rewrite rule is ignored", slog.Any("error", err))
			continue
		}
		m.opts.Rewrite = append(m.opts.Rewrite, r)
	}
	if opts.Refresh {
		m.work.Go(func() { m.refreshTags(run) })
	}
	return m
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
