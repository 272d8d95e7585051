package uplink

import (
	"context"
	"log/slog"
	"time"
)

// Phase is how the link is.
type Phase string

// The phases.
const (
	Up Phase = "up"
	// Slow: it works, but what streams has come at less than a tenth of the
	// best of the last hour, for slowAfter. It is over at a fifth.
	Slow Phase = "slow"
	// Dark: requests fail and nothing arrives. It is over with the first
	// byte, or answer of any kind, from any host.
	Dark Phase = "dark"
)

// Bounds of the phases. Guesses, except that a handover between beams, which
// is no outage yet, takes about a second.
const (
	slowAfter  = 10 * time.Second
	alibi      = 10 * time.Minute // how long one host's answers excuse another's failures
	flapping   = 4                // changes within flapWindow after which they are not said one by one
	flapWindow = 10 * time.Minute
)

// health is what the phase is made of. It is guarded by Meter.mu.
type health struct {
	heard     time.Time            // when anything arrived last
	answered  map[string]time.Time // by host
	failing   map[string]time.Time // by host, since when; gone with its next answer
	best      extreme              // rates, by hour/epochs
	slowSince time.Time            // of what may become Slow; zero: it is not
	spoken    []time.Time          // when changes were logged, the last few
	silenced  int                  // changes since that were not
}

// maxHosts bounds how many hosts are remembered: names come from references.
const maxHosts = 256

// Failed tells that a request to a host failed for want of a link: its name
// can't be resolved, nobody is there, nothing comes.
//
// The link is dark then, unless something arrived just now, or another host has
// answered since this one fails: then it is the host's own trouble.
func (m *Meter) Failed(host string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	since, ok := m.health.failing[host]
	if !ok {
		if len(m.health.failing) >= maxHosts {
			clear(m.health.failing)
		}
		since = now
		m.health.failing[host] = now
	}
	if m.state.Phase == Dark || now.Sub(m.health.heard) < 2*m.state.RTT {
		return
	}
	for other, at := range m.health.answered {
		if other != host && !at.Before(since) && now.Sub(at) < alibi {
			return
		}
	}
	m.enter(Dark, slog.Any("error", err))
}

// Alive tells that a host answered, whatever it said.
func (m *Meter) Alive(host string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.health.answered) >= maxHosts {
		clear(m.health.answered)
	}
	m.health.answered[host] = m.now()
	delete(m.health.failing, host)
	m.alive()
}

// alive notes a sign of life. m.mu is held.
func (m *Meter) alive() {
	m.health.heard = m.now()
	if m.state.Phase == Dark {
		m.enter(Up, slog.Duration("dark", m.now().Sub(m.state.Since).Round(time.Second)))
	}
}

// judge compares a round's rate with what the link has shown. m.mu is held.
func (m *Meter) judge(rate float64) {
	now := m.now()
	epoch := now.UnixNano() / int64(time.Hour/epochs)
	m.health.best.add(epoch, rate)
	best, _ := m.health.best.get(epoch)
	switch {
	case m.state.Phase == Slow && rate > best/5:
		m.health.slowSince = time.Time{}
		m.enter(Up, slog.Int64("rate", int64(rate)))
	case rate > best/10:
		m.health.slowSince = time.Time{}
	case m.health.slowSince.IsZero():
		m.health.slowSince = now
	case m.state.Phase == Up && now.Sub(m.health.slowSince) >= slowAfter:
		m.enter(Slow, slog.Int64("rate", int64(rate)), slog.Int64("best", int64(best)))
	}
}

// enter begins a phase. m.mu is held.
func (m *Meter) enter(p Phase, with ...slog.Attr) {
	now := m.now()
	m.state.Phase, m.state.Dark, m.state.Since = p, p == Dark, now
	m.changed()
	say := m.log.Warn
	if p == Up {
		say = m.log.Info
	}
	for len(m.health.spoken) > 0 && now.Sub(m.health.spoken[0]) > flapWindow {
		m.health.spoken = m.health.spoken[1:]
	}
	attrs := []any{}
	for _, a := range with {
		attrs = append(attrs, a)
	}
	if len(m.health.spoken) >= flapping {
		m.health.silenced++
		say = m.log.Debug
	} else {
		m.health.spoken = append(m.health.spoken, now)
		if m.health.silenced > 0 {
			attrs = append(attrs, slog.Int("changes_not_logged", m.health.silenced))
			m.health.silenced = 0
		}
	}
	switch p {
	case Up:
		say("the link is up", attrs...)
	case Slow:
		say("the link is slow", attrs...)
	case Dark:
		say("the link is dark; what is cached goes on, the rest waits", attrs...)
	}
}

// Changed returns a channel that is closed when the phase, the policy or what
// it admits changes next.
func (m *Meter) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.change
}

func (m *Meter) changed() {
	close(m.change)
	m.change = make(chan struct{})
}

// WaitUp returns when the link is not dark. The error is ctx's.
func (m *Meter) WaitUp(ctx context.Context) error {
	for {
		m.mu.Lock()
		dark, change := m.state.Dark, m.change
		m.mu.Unlock()
		if !dark {
			return ctx.Err()
		}
		select {
		case <-change:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
