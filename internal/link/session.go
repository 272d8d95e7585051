package link

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/airstream-io/airstream/internal/link/wire"
)

// Options configure a Session.
type Options struct {
	Address string      // host:port of the proxy, or of what balances several
	TLS     *tls.Config // the node's certificate and the proxy's authority
	// Dial makes connections; nil: from where this process is.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// MinStall is the shortest silence that ends a connection on which something
	// is expected; 0: DefaultMinStall. MaxPause bounds pauses between attempts;
	// 0: DefaultMaxPause.
	MinStall, MaxPause time.Duration
	// Traffic, if set, is told what happens on each connection of a Session, and
	// Failed of each attempt that came to nothing.
	Traffic func(conn net.Conn) Traffic
	Failed  func(err error)
	Logger  *slog.Logger
}

// Traffic learns of a link from one connection. Calls come with locks held: they
// return at once and don't call back.
type Traffic interface {
	Busy(is bool)             // something is expected from now on, or nothing
	Answered(d time.Duration) // from a question on a silent connection to the first byte
	Close()
}

// Defaults of Options.
const (
	DefaultMinStall = 8 * time.Second // below it a slow link is taken for a dead one (facts, links)
	DefaultMaxPause = 30 * time.Second
	firstPause      = 250 * time.Millisecond // most outages are short
)

// defaults fills in what was left out.
func (o *Options) defaults() {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.MinStall == 0 {
		o.MinStall = DefaultMinStall
	}
	if o.MaxPause == 0 {
		o.MaxPause = DefaultMaxPause
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
}

// State is how a session is.
type State struct {
	Up    bool
	Since time.Time
	Err   error // why it is down
	Bytes int64 // that came, of all connections
}

// Session is a node's session with a proxy, which is opened again whenever it
// breaks, for ever. Its methods may be called concurrently.
type Session struct {
	opts Options
	log  *slog.Logger
	stop context.CancelFunc
	work sync.WaitGroup
	kick chan struct{} // somebody wants something: try now

	// received counts the records that came whole on this connection; each has a
	// counter of its own. It is loaded before what depends on it is said.
	received atomic.Pointer[atomic.Uint64]

	mu      sync.Mutex
	terms   *wire.Terms      // guarded by mu; nil: none
	pulls   map[uint32]*Pull // guarded by mu; by ID
	blobs   map[uint32]*Blob // guarded by mu; by ID, of this connection
	next    uint32           // guarded by mu
	out     []*wire.Up       // guarded by mu; to be sent on this connection
	more    chan struct{}    // guarded by mu; closed and replaced when out grows
	watch   *watch           // guarded by mu; of this connection, or nil
	state   State            // guarded by mu
	changed chan struct{}    // guarded by mu; closed and replaced when state changes
}

// Open begins a session. It returns at once.
func Open(opts Options) *Session {
	opts.defaults()
	run, stop := context.WithCancel(context.Background()) //nolint:forbidigo // the session's own life, ended by Close
	s := &Session{
		opts: opts, log: opts.Logger, stop: stop, kick: make(chan struct{}, 1), pulls: map[uint32]*Pull{}, blobs: map[uint32]*Blob{},
		more: make(chan struct{}), state: State{Since: time.Now()}, changed: make(chan struct{}),
	}
	s.work.Go(func() { s.run(run) })
	return s
}

// Close ends the session, and all pulls with context.Canceled.
func (s *Session) Close() {
	s.stop()
	s.work.Wait()
	s.mu.Lock()
	pulls := s.pulls
	s.pulls = map[uint32]*Pull{}
	s.mu.Unlock()
	for _, p := range pulls {
		p.end(context.Canceled)
	}
}

// State returns how the session is, and a channel that is closed when that
// changes.
func (s *Session) State() (State, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.state
	if s.watch != nil {
		st.Bytes += s.watch.bytes()
	}
	return st, s.changed
}

// Pull asks for an image. It returns at once; what comes goes to sink.
func (s *Session) Pull(req Request, sink Sink) *Pull {
	m := &wire.Pull{Reference: req.Reference, Platform: req.Platform, Depth: req.Depth, Have: req.Have[:min(len(req.Have), maxHave)], Warm: req.Warm[:min(len(req.Warm), maxWarm)], Outlines: req.Outlines}
	for _, d := range req.Tables[:min(len(req.Tables), maxTables)] {
		m.Tables = append(m.Tables, prefix(d)...)
	}
	p := &Pull{s: s, sink: sink, done: make(chan struct{}), req: m, demanded: map[chunkKey]Lane{}, taking: noChunk}
	p.know(req.Manifest)
	s.add(p)
	return p
}

// Resume goes on with a pull of an earlier process. here are chunks that are here, by
// layer: more may have come since the cookie was made. The error is ErrCookie; then the
// caller begins anew.
func (s *Session) Resume(cookie []byte, here map[int][]uint32, sink Sink) (*Pull, error) {
	p := &Pull{s: s, sink: sink, done: make(chan struct{}), demanded: map[chunkKey]Lane{}, taking: noChunk}
	if err := p.restore(cookie); err != nil {
		return nil, err
	}
	if p.state.got == nil {
		p.state.got = map[chunkKey]uint64{}
	}
	for layer, chunks := range here {
		for _, c := range chunks[:min(len(chunks), maxGot)] {
			p.state.got[chunkKey{uint32(layer), c}] = 0 //nolint:gosec // few
		}
	}
	s.add(p)
	return p, nil
}

// prefix is how Pull.tables names a table.
func prefix(d digest.Digest) []byte {
	if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
		return nil
	}
	b, err := hex.DecodeString(d.Encoded()[:2*8])
	if err != nil {
		return nil
	}
	return b
}

func (s *Session) add(p *Pull) {
	s.mu.Lock()
	s.next++
	p.req.Id = s.next
	s.pulls[p.req.GetId()] = p
	s.mu.Unlock()
	s.say(s.counter(), p.request()...)
}

// counter returns what counts the records of this connection.
func (s *Session) counter() *atomic.Uint64 {
	if c := s.received.Load(); c != nil {
		return c
	}
	s.received.CompareAndSwap(nil, new(atomic.Uint64))
	return s.received.Load()
}

// forget takes a pull out, and tells the proxy.
func (s *Session) forget(p *Pull) {
	id := p.req.GetId()
	s.mu.Lock()
	_, ok := s.pulls[id]
	delete(s.pulls, id)
	s.mu.Unlock()
	if ok {
		r := s.counter()
		s.say(r, &wire.Up{Kind: &wire.Up_Cancel{Cancel: &wire.Cancel{Pull: id, Records: r.Load()}}})
	}
}

// Terms tells what may cross from now on: bytes/s with all headers, 0 for any, and
// the lanes of which nothing may now. The proxy keeps to it.
func (s *Session) Terms(rate int64, held ...Lane) {
	m := &wire.Terms{Rate: uint64(max(0, rate))} //nolint:gosec // not negative
	for _, lane := range held {
		m.Held |= 1 << lane
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if proto.Equal(s.terms, m) || s.terms == nil && proto.Equal(m, &wire.Terms{}) {
		return
	}
	s.terms = m
	if s.watch != nil {
		s.out = append(s.out, &wire.Up{Kind: &wire.Up_Terms{Terms: m}})
		close(s.more)
		s.more = make(chan struct{})
	}
}

// say queues messages for the connection whose records are counted in on. If that is
// over, the next one says all that is wanted anyhow.
func (s *Session) say(on *atomic.Uint64, m ...*wire.Up) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watch != nil && s.counter() != on {
		return
	}
	if s.watch == nil {
		select {
		case s.kick <- struct{}{}:
		default:
		}
		return
	}
	s.out = append(s.out, m...)
	s.watch.expect()
	close(s.more)
	s.more = make(chan struct{})
}

// waiting tells whether anything is to come.
func (s *Session) waiting() bool {
	s.mu.Lock()
	all := make([]*Pull, 0, len(s.pulls))
	for _, p := range s.pulls {
		all = append(all, p)
	}
	blobs := len(s.blobs)
	s.mu.Unlock()
	if blobs > 0 {
		return true
	}
	for _, p := range all {
		if p.waiting() {
			return true
		}
	}
	return false
}

// run opens sessions, one after the other, until ctx ends.
func (s *Session) run(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		began := time.Now()
		progress, err := s.once(ctx, failures)
		if ctx.Err() != nil {
			return
		}
		if progress {
			failures = 0
		}
		if (!progress || errors.Is(err, errStalled)) && s.opts.Failed != nil {
			s.opts.Failed(err)
		}
		s.down(ctx, err)
		pause := min(firstPause<<min(failures, 10), s.opts.MaxPause)
		failures++
		pause = pause/2 + rand.N(pause/2+1) //nolint:gosec // jitter, no secret
		if errors.Is(err, errAgain) && time.Since(began) > pause {
			pause = 0
		}
		s.pause(ctx, pause)
	}
}

// pause waits, or less if something is wanted and nothing has been tried for a
// moment.
func (s *Session) pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	soon := time.NewTimer(min(d, firstPause))
	defer soon.Stop()
	select {
	case <-t.C:
		return
	case <-ctx.Done():
		return
	case <-soon.C:
	}
	select {
	case <-t.C:
	case <-s.kick:
	case <-ctx.Done():
	}
}

// up notes that the session is one.
func (s *Session) up(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.state.Up {
		s.log.InfoContext(ctx, "the proxy answers", slog.String("proxy", s.opts.Address), slog.Duration("took", time.Since(s.state.Since).Round(time.Millisecond)))
		s.set(true, nil)
	}
}

// down notes that it is none, once.
func (s *Session) down(ctx context.Context, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.Up || s.state.Err == nil {
		s.log.WarnContext(ctx, "the proxy does not answer; trying again", slog.String("proxy", s.opts.Address), slog.Any("error", err))
		s.set(false, err)
	}
	s.state.Err = err
}

// set changes the state. s.mu is held.
func (s *Session) set(up bool, err error) {
	s.state.Up, s.state.Since, s.state.Err = up, time.Now(), err
	close(s.changed)
	s.changed = make(chan struct{})
}

// told turns what gRPC says into what happened.
func told(err error) error {
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	switch st.Code() {
	case codes.PermissionDenied, codes.Unauthenticated:
		return &Refusal{Reason: wire.Reason_REASON_NODE, Text: st.Message()}
	case codes.ResourceExhausted:
		return &Refusal{Reason: wire.Reason_REASON_LIMIT, Text: st.Message()}
	case codes.InvalidArgument:
		return &Refusal{Reason: wire.Reason_REASON_REQUEST, Text: st.Message()}
	default:
		return err
	}
}
