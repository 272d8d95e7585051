// Package proxy is the shore end of the link: it reads any registry and sends
// nodes what they lack, in the order in which they will want it.
//
// A node opens a session (package link) and names an image and what it has.
// The proxy resolves the reference with credentials that never leave the shore,
// makes a plan of what is missing, and sends it. Nothing that it does for a
// session outlives it: plans are computed, not stored, and the same everywhere,
// so that any proxy behind a load balancer can go on where another one broke
// off. What it had to read is cached on disk, within a limit; how much memory it
// takes depends on how many nodes are busy, not on the size of their images.
//
// Three things happen in a session beside each other, and meet in its Sender:
// the pulls produce the items of their plans one by one, each when there is
// room for it; the demands produce what somebody waits for, which overtakes; and
// the Sender writes small pieces of whatever is most urgent.
//
// What is sent was verified here, too, against the table of contents. That is no
// substitute for the node's own check; it keeps rubbish off an expensive link.
package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"golang.org/x/sync/semaphore"

	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/internal/link/wire"
)

// Options configure a Server.
type Options struct {
	Dir        string // of the cache
	CacheLimit int64  // bytes; 0: none
	Registries map[string]Registry
	Keychain   authn.Keychain // nil: docker's configuration and helpers
	Limits     Limits
	// Revoked tells whether a node's certificate is no longer good, by its name;
	// nil: none is.
	Revoked func(node string) bool
	// Enroller gives nodes their certificates.
	Enroller link.Enroller
	// Reassure is how long a node that waits is told nothing at most, unless the
	// link is what it waits for; 0: DefaultReassure.
	Reassure time.Duration
	Logger   *slog.Logger
}

// Limits bound what one node may take. Zero values are the defaults.
type Limits struct {
	Sessions int   // at a time; the oldest ends for a new one
	Pulls    int   // at a time, in one session
	Rate     int64 // bytes/s of each session; 0: none
}

// Defaults of Limits: a node that came back before its old session was noticed
// to be dead, and a start of everything at once. Guesses.
const (
	DefaultSessions = 4
	DefaultPulls    = 64
)

// DefaultReassure is well below link.DefaultMinStall.
const DefaultReassure = 3 * time.Second

const (
	maxReads   = 16       // parts of blobs that are read from registries at a time; 1 MiB each
	treeMemory = 48 << 20 // bytes of trees that stay in memory
)

// Server is a proxy. Use New.
type Server struct {
	opts     Options
	log      *slog.Logger
	cache    *cache
	trees    *trees
	upstream *upstream
	reads    *semaphore.Weighted
	metrics  *metrics

	indexings *semaphore.Weighted
	indexed   sync.Map // digest of a blob that is being read to *progress

	run  context.Context //nolint:containedctx // ends what sessions share
	stop context.CancelFunc

	mu       sync.Mutex
	sessions map[string][]*session // guarded by mu; by node, the oldest first
}

// New returns a Server over the cache in opts.Dir.
func New(opts Options) (*Server, error) {
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	if opts.Limits.Sessions == 0 {
		opts.Limits.Sessions = DefaultSessions
	}
	if opts.Limits.Pulls == 0 {
		opts.Limits.Pulls = DefaultPulls
	}
	if opts.Reassure == 0 {
		opts.Reassure = DefaultReassure
	}
	c, err := openCache(filepath.Join(opts.Dir, "cache"), opts.CacheLimit)
	if err != nil {
		return nil, err
	}
	run, stop := context.WithCancel(context.Background()) //nolint:forbidigo // the server's own life, ended by Close
	s := &Server{
		opts: opts, log: opts.Logger, cache: c, trees: newTrees(treeMemory), upstream: newUpstream(opts.Registries, opts.Keychain),
		reads: semaphore.NewWeighted(maxReads), indexings: semaphore.NewWeighted(maxIndexings), run: run, stop: stop, sessions: map[string][]*session{},
	}
	s.metrics = newMetrics(s)
	return s, nil
}

// Close ends what is under way.
func (s *Server) Close() {
	s.stop()
	s.upstream.close()
}

// Listen serves nodes on l until ctx ends. conf has the proxy's certificate and
// the authority of its nodes'.
func (s *Server) Listen(ctx context.Context, l net.Listener, conf *tls.Config) error {
	return link.NewServer(conf, s, s.opts.Enroller).Serve(ctx, l)
}

// Serve implements link.Handler.
func (s *Server) Serve(ctx context.Context, p *link.Peer) error {
	node := p.Node()
	if s.revoked(node) {
		return refuse(wire.Reason_REASON_NODE, "node %q is not enrolled here: its certificate was revoked", node)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ss := &session{s: s, peer: p, end: cancel, began: time.Now(), pulls: map[uint32]*pull{}, ledger: newLedger(), log: s.log.With(slog.String("node", node))}
	p.Pace(s.opts.Limits.Rate)
	s.enter(node, ss)
	defer s.leave(node, ss)
	ss.log.InfoContext(ctx, "a node is here", slog.String("from", p.Addr.String()), slog.String("control", p.TCP().Control))
	err := ss.serve(ctx)
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	ss.log.InfoContext(ctx, "a node is gone", slog.Duration("took", time.Since(ss.began).Round(time.Millisecond)), slog.Any("error", err))
	return err
}

func (s *Server) revoked(node string) bool {
	return node == "" || s.opts.Revoked != nil && s.opts.Revoked(node)
}

// enter counts a session in. A node has few: the oldest one ends.
func (s *Server) enter(node string, ss *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := append(s.sessions[node], ss)
	if len(all) > s.opts.Limits.Sessions {
		all[0].end(refuse(wire.Reason_REASON_LIMIT, "the node has opened a newer session"))
	}
	s.sessions[node] = all
	s.metrics.sessions.Inc()
}

func (s *Server) leave(node string, ss *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var left []*session
	for _, o := range s.sessions[node] {
		if o != ss {
			left = append(left, o)
		}
	}
	if s.sessions[node] = left; len(left) == 0 {
		delete(s.sessions, node)
	}
}

// Expel ends the sessions of nodes whose certificates were revoked meanwhile.
func (s *Server) Expel() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for node, all := range s.sessions {
		if !s.revoked(node) {
			continue
		}
		for _, ss := range all {
			ss.end(refuse(wire.Reason_REASON_NODE, "node %q is not enrolled here: its certificate was revoked", node))
		}
	}
}

// Down returns the registries that don't answer, and since when.
func (s *Server) Down() map[string]time.Time { return s.upstream.Down() }
