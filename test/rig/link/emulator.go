package link

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/test/rig/netns"
)

// The addresses at both ends, of a network that each link has for itself.
// They are private ones (RFC 1918), so that image tools use plain HTTP there
// unless they are told otherwise. The rest of Network is the shore's: give an
// address of it to the shore's loopback to have another host there.
var (
	Network   = netip.MustParsePrefix("10.18.0.0/24")
	ShoreAddr = netip.MustParseAddr("10.18.0.1")
	NodeAddr  = netip.MustParseAddr("10.18.0.2")
)

// DefaultCongestionControl is what servers on the Internet use, and therefore
// what a registry that we don't control uses, whatever this machine's default.
const DefaultCongestionControl = "cubic"

// EmulatorOptions describes an emulator.
type EmulatorOptions struct {
	Profile Profile
	Seed    uint64 // of losses and delays: the same seed and packets, the same fate

	// TCP congestion control of connections across the link, for sockets that
	// don't choose their own; empty means DefaultCongestionControl.
	ShoreCongestionControl string
	NodeCongestionControl  string
}

// Emulator carries packets between two namespaces until Close. It is safe for
// concurrent use.
type Emulator struct {
	shore, node *tun
	down, up    *worker
	start       time.Time

	mu      sync.Mutex // held by commands: both directions change together
	profile Profile    // guarded by mu
	mode    Mode       // guarded by mu
}

// OpenEmulator makes a device in each namespace, gives them addresses and
// routes, and begins to carry packets between them.
func OpenEmulator(shore, node *netns.NS, opts EmulatorOptions) (*Emulator, error) {
	if err := opts.Profile.Validate(); err != nil {
		return nil, err
	}
	e := &Emulator{start: time.Now(), profile: opts.Profile.clone(), mode: ModeOpen}
	var err error
	if e.shore, err = openSide(shore, ShoreAddr, opts.ShoreCongestionControl, opts.Profile.MTU); err != nil {
		return nil, err
	}
	if e.node, err = openSide(node, NodeAddr, opts.NodeCongestionControl, opts.Profile.MTU); err != nil {
		e.shore.close()
		return nil, err
	}
	clock := func() time.Duration { return time.Since(e.start) }
	e.down, err = newWorker(e.shore, e.node, opts.Seed, clock)
	if err == nil {
		if e.up, err = newWorker(e.node, e.shore, opts.Seed+1, clock); err != nil {
			unix.Close(e.down.wakeFD) //nolint:errcheck // nothing is in it
		}
	}
	if err != nil {
		e.shore.close()
		e.node.close()
		return nil, fmt.Errorf("link: open emulator: %w", err)
	}
	e.down.shaper.set(0, e.profile, e.profile.Down)
	e.up.shaper.set(0, e.profile, e.profile.Up)
	go e.down.run()
	go e.up.run()
	return e, nil
}

// openSide makes one end of the link.
func openSide(ns *netns.NS, address netip.Addr, congestion string, mtu int) (*tun, error) {
	if congestion == "" {
		congestion = DefaultCongestionControl
	}
	t, err := openTUN(ns, mtu)
	if err != nil {
		return nil, err
	}
	err = ns.AddAddress(Device, address)
	if err == nil {
		err = ns.AddRoute(netns.Route{To: Network, Device: Device, CongestionControl: congestion})
	}
	if err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

// Close ends the link and takes its devices away.
func (e *Emulator) Close() error {
	err := errors.Join(e.down.end(), e.up.end())
	<-e.down.stopped
	<-e.up.stopped
	e.shore.close()
	e.node.close()
	err = errors.Join(err, unix.Close(e.down.wakeFD), unix.Close(e.up.wakeFD))
	if err != nil {
		return fmt.Errorf("link: close emulator: %w", err)
	}
	return nil
}

// SetProfile changes the link. Its timetable of outages starts anew. What is
// in the air arrives as it would have.
func (e *Emulator) SetProfile(p Profile) error {
	if err := p.Validate(); err != nil {
		return err
	}
	p = p.clone()
	e.mu.Lock()
	defer e.mu.Unlock()
	if p.MTU != e.profile.MTU {
		if err := errors.Join(e.shore.ns.SetMTU(Device, p.MTU), e.node.ns.SetMTU(Device, p.MTU)); err != nil {
			return err
		}
	}
	err := errors.Join(
		e.down.do(func(now time.Duration) { e.down.shaper.set(now, p, p.Down) }),
		e.up.do(func(now time.Duration) { e.up.shaper.set(now, p, p.Up) }))
	if err != nil {
		return err
	}
	e.profile = p
	return nil
}

// SetMode cuts the link, turns it into a blackhole, makes it answer TCP with
// resets, or restores it. The timetable of outages goes on meanwhile.
func (e *Emulator) SetMode(m Mode) error {
	switch m {
	case ModeOpen, ModeCut, ModeBlackhole, ModeReset:
	default:
		return fmt.Errorf("link: unknown mode %q", m)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	err := e.both(func(w *worker, now time.Duration) { w.shaper.command(now, m) })
	if err != nil {
		return err
	}
	e.mode = m
	return nil
}

// Schedule replaces the timetable of outages; it starts now. None is allowed.
func (e *Emulator) Schedule(outages []Outage) error {
	if err := validateOutages(outages); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.profile
	p.Outages = outages
	p = p.clone()
	err := e.both(func(w *worker, now time.Duration) { w.shaper.schedule(now, p.Outages) })
	if err != nil {
		return err
	}
	e.profile = p
	return nil
}

// Stats returns the counters.
func (e *Emulator) Stats() (Stats, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := Stats{Profile: e.profile.clone(), Mode: e.mode}
	for _, d := range []struct {
		worker *worker
		stats  *DirectionStats
	}{{e.down, &s.Down}, {e.up, &s.Up}} {
		err := d.worker.do(func(now time.Duration) {
			*d.stats = d.worker.shaper.stats(now)
			d.stats.KernelDropped = d.worker.writeErrors
			s.Elapsed, s.Dark, s.Priority = now, d.worker.shaper.dark(now), d.worker.priority
		})
		if err != nil {
			return Stats{}, err
		}
		dropped, err := d.worker.in.ns.Dropped(Device)
		if err != nil {
			return Stats{}, err
		}
		d.stats.KernelDropped += dropped
	}
	return s, nil
}

// both runs fn on the threads of both directions, and waits.
func (e *Emulator) both(fn func(w *worker, now time.Duration)) error {
	var errs [2]error
	var wg sync.WaitGroup
	for i, w := range []*worker{e.down, e.up} {
		wg.Go(func() { errs[i] = w.do(func(now time.Duration) { fn(w, now) }) })
	}
	wg.Wait()
	return errors.Join(errs[:]...)
}

// Serve carries packets and takes commands on a unix socket at path until ctx
// ends. It calls ready once both work.
func Serve(ctx context.Context, shore, node *netns.NS, opts EmulatorOptions, path string, ready func() error) (err error) {
	e, err := OpenEmulator(shore, node, opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	return e.serve(ctx, path, ready)
}
