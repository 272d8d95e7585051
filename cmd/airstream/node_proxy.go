package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/config"
	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/database"
	"github.com/airstream-io/airstream/internal/enrol"
	"github.com/airstream-io/airstream/internal/link"
)

// onShore is the node's end of a session with a proxy: it gives the mirror what
// references mean, and the fetcher what it asks for. It implements registry.Shore
// and fetcher.Pusher.
type onShore struct {
	n        *node
	cfg      config.NodeProxy
	log      *slog.Logger
	identity *enrol.Identity
	session  *link.Session
	cookies  *database.DB
	run      context.Context //nolint:containedctx // of its own work, ended by close
	stop     context.CancelFunc
	work     sync.WaitGroup

	mu      sync.Mutex
	pulls   []*shorePull          // guarded by mu; in use, the oldest first
	bySlot  map[uint32]shorePlace // guarded by mu
	waking  map[uint32]*waking    // guarded by mu; slots whose images are asked for again
	closed  bool                  // guarded by mu; no work begins any more
	given   bool                  // guarded by mu; the proxy was given up for now: registries are asked
	turned  chan struct{}         // guarded by mu; closed and replaced when given changes
	spent   int64                 // guarded by mu; bytes of the session that the meter was told of
	meter   *uplink.Session       // guarded by mu; of the latest connection; nil: there was none
	have    []haveImage           // guarded by mu; images that are here
	byTable map[[8]byte]uint32    // guarded by mu; their layers' slots, by how the digests of their tables begin
	tables  []digest.Digest       // guarded by mu; that are here of others
}

// shorePlace is where a layer is in what was asked for.
type shorePlace struct {
	pull  *shorePull
	layer int
}

// maxShorePulls is how many images the proxy is asked to have at hand; it allows
// 64 unless told otherwise. The oldest are asked for again when they are wanted.
const maxShorePulls = 48

// openProxy prepares the session, if the configuration names a proxy.
func (n *node) openProxy(cfg config.Node) error {
	if cfg.Proxy.Address == "" {
		return nil
	}
	id, err := enrol.Load(filepath.Join(cfg.Root, identityDir))
	if err != nil {
		return exitWith(exitUsage, fmt.Errorf("proxy.address is set, and this node has not enrolled: airstream enrol --proxy %s TOKEN (%w)", cfg.Proxy.Address, err))
	}
	run, stop := context.WithCancel(context.Background())
	s := &onShore{
		n: n, cfg: cfg.Proxy, log: n.log, identity: id, run: run, stop: stop,
		bySlot: map[uint32]shorePlace{}, waking: map[uint32]*waking{}, turned: make(chan struct{}),
	}
	if err := s.openCookies(cfg.Root); err != nil {
		stop()
		return err
	}
	n.closers = append(n.closers, s.cookies.Close)
	n.shore = s
	return nil
}

// options are those of connections to the proxy.
func (s *onShore) options() link.Options {
	host, _, err := net.SplitHostPort(s.cfg.Address)
	if err != nil {
		host = s.cfg.Address // config has checked it
	}
	return link.Options{Address: s.cfg.Address, TLS: s.identity.TLS(host), Logger: s.log}
}

// begin opens the session; the fetcher is there now.
func (s *onShore) begin() {
	opts := s.options()
	opts.Traffic, opts.Failed = s.traffic, s.failed
	s.session = link.Open(opts)
	s.work.Go(s.watch)
	s.work.Go(s.keepTerms)
	s.work.Go(s.keepIdentity)
	s.work.Go(s.keepInventory)
	s.work.Go(s.keepCookies)
}

func (s *onShore) close() error {
	s.stop()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.session.Close()
	s.work.Wait()
	return s.saveCookies()
}

// watch gives the proxy up for now when it is out of reach for too long, and
// comes back to it.
func (s *onShore) watch() {
	for {
		state, changed := s.session.State()
		var late <-chan time.Time
		timer := time.NewTimer(max(0, time.Duration(s.cfg.Patience)-time.Since(state.Since)))
		switch {
		case state.Up:
			s.turn(false)
		case s.cfg.Registries:
			late = timer.C
		}
		select {
		case <-changed:
		case <-late:
			s.turn(true)
			select {
			case <-changed:
			case <-s.run.Done():
			}
		case <-s.run.Done():
		}
		timer.Stop()
		if s.run.Err() != nil {
			return
		}
	}
}

// turn says whether registries are asked in place of the proxy.
func (s *onShore) turn(given bool) {
	s.mu.Lock()
	if s.given == given {
		s.mu.Unlock()
		return
	}
	s.given = given
	close(s.turned)
	s.turned = make(chan struct{})
	pulls := slices.Clone(s.pulls)
	s.mu.Unlock()
	if given {
		s.log.Warn("the proxy is out of reach; registries are asked in its place", slog.String("proxy", s.cfg.Address))
	} else {
		s.log.Info("the proxy is asked again", slog.String("proxy", s.cfg.Address))
	}
	for _, p := range pulls {
		if given {
			s.n.fetcher.Uncover(p.slots()...)
		} else {
			s.cover(p)
		}
	}
}

// cover has the fetcher leave the layers of a pull to the proxy.
func (s *onShore) cover(p *shorePull) {
	pushed, pushing := s.divide(p)
	s.n.fetcher.Cover(s, true, pushing...)
	s.n.fetcher.Cover(s, false, pushed...)
}

// divide returns the slots of a pull's layers: those of which nothing comes unasked
// any more, with whatever pull, and the others.
func (s *onShore) divide(p *shorePull) (pushed, pushing []uint32) {
	s.mu.Lock()
	pulls := append(slices.Clone(s.pulls), p) // it may be forgotten by now, or not known yet
	s.mu.Unlock()
	coming := map[uint32]bool{}
	for _, o := range pulls {
		if o.pull == nil || !o.pull.Progress().Complete {
			for _, slot := range o.slots() {
				coming[slot] = true
			}
		}
	}
	for _, slot := range p.slots() {
		if coming[slot] {
			pushing = append(pushing, slot)
		} else {
			pushed = append(pushed, slot)
		}
	}
	return pushed, pushing
}

// givenUp tells whether registries are asked now, and returns a channel that is
// closed when that changes.
func (s *onShore) givenUp() (bool, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.given, s.turned
}

// status tells how the session is; nil if there is no proxy.
func (s *onShore) status() *proxyStatus {
	if s == nil {
		return nil
	}
	state, _ := s.session.State()
	p := &proxyStatus{Address: s.cfg.Address, Node: s.identity.Name(), Up: state.Up, Since: state.Since, Until: s.identity.Until()}
	if state.Err != nil {
		p.Error = state.Err.Error()
	}
	p.Instead, _ = s.givenUp()
	return p
}

// Ask implements fetcher.Pusher.
func (s *onShore) Ask(class fetcher.Class, slot uint32, chunks []uint32) {
	s.mu.Lock()
	at, ok := s.bySlot[slot]
	if !ok {
		s.wake(class, slot, chunks)
	}
	s.mu.Unlock()
	if !ok {
		return
	}
	at.pull.asked(class, at.layer, chunks)
	at.pull.pull.Demand(laneOf(class), at.layer, chunks...)
}

// Came implements fetcher.Pusher.
func (s *onShore) Came(slot, chunk uint32) {
	s.mu.Lock()
	at, ok := s.bySlot[slot]
	s.mu.Unlock()
	if ok {
		at.pull.classOf(chunkOf{at.layer, chunk})
		at.pull.pull.Withdraw(at.layer, chunk)
	}
}

// Manifest implements registry.Shore: the proxy says what a reference means, and
// begins to send the image.
func (s *onShore) Manifest(ctx context.Context, src catalog.Source, ref string) (m registry.Manifest, ok bool, err error) {
	if given, _ := s.givenUp(); given {
		return m, false, nil
	}
	d := digest.Digest(ref)
	if d.Validate() == nil {
		if m, ok, err = s.expected(ctx, src, d); ok || err != nil {
			return m, ok, err
		}
	}
	return s.await(ctx, s.ask(src, ref, s.known(src, ref)), "")
}

// expected waits for a manifest that an index on its way, or just come, lists.
func (s *onShore) expected(ctx context.Context, src catalog.Source, d digest.Digest) (m registry.Manifest, ok bool, err error) {
	s.mu.Lock()
	pulls := slices.Clone(s.pulls)
	s.mu.Unlock()
	for _, p := range slices.Backward(pulls) {
		if p.src != src || !p.mayBe(d) {
			continue
		}
		if m, ok, err = s.await(ctx, p, d); ok && err == nil && m.Digest == d || ctx.Err() != nil {
			return m, ok, err
		}
	}
	return registry.Manifest{}, false, nil
}

// await waits for what a pull was asked for, or for the manifest d of it.
func (s *onShore) await(ctx context.Context, p *shorePull, d digest.Digest) (registry.Manifest, bool, error) {
	for {
		given, turned := s.givenUp()
		if given {
			return registry.Manifest{}, false, nil
		}
		m, done, changed, err := p.state(d)
		switch {
		case err != nil && s.cfg.Registries:
			return m, false, nil // the node's own credentials may do
		case err != nil:
			return m, true, s.refused(p, err)
		case done:
			return m, true, nil
		}
		select {
		case <-changed:
		case <-turned:
		case <-ctx.Done():
			return registry.Manifest{}, true, ctx.Err()
		}
	}
}

// refused says what the proxy said as a registry would say it.
func (s *onShore) refused(p *shorePull, err error) error {
	e := &registry.Error{Source: p.src, What: "manifest " + p.ref, Status: http.StatusNotFound, Detail: err.Error()}
	if r, ok := errors.AsType[*link.Refusal](err); !ok || r.Temporary() {
		e.Status = http.StatusBadGateway
	}
	return e
}

// keepIdentity renews the node's certificate in time.
func (s *onShore) keepIdentity() {
	for {
		if s.identity.Due(time.Now()) {
			if err := renew(s.run, s.identity, s.options()); err != nil && s.run.Err() == nil {
				s.log.Warn("the node's certificate is not renewed", slog.Any("error", err))
			}
		}
		if !s.rest(24 * time.Hour) {
			return
		}
	}
}

// rest waits, and tells whether to go on.
func (s *onShore) rest(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.run.Done():
		return false
	}
}

// renew gets a new certificate. The one that the node has is good for long enough
// to try again.
func renew(ctx context.Context, id *enrol.Identity, opts link.Options) error {
	key, request, err := enrol.Request()
	if err != nil {
		return err
	}
	cert, ca, err := link.Renew(ctx, opts, request)
	if err != nil {
		return fmt.Errorf("the certificate of %s ends on %s: %w", id.Name(), id.Until().Format(time.DateOnly), err)
	}
	return id.Renewed(key, cert, ca)
}
