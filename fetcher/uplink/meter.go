// Package uplink knows the node's link: whether it is up or dark and since
// when, its round-trip time and its rate, as seen by the requests that cross
// it. Nothing is sent to find out.
//
// One Meter serves a node. Everything that must be sized for the link asks it:
// how far to read ahead, when a request that says nothing has stalled, how
// long what is missing will take.
package uplink

import (
	"log/slog"
	"sync"
	"time"
)

// DefaultMinStall is the shortest silence that ends a request. Below it a slow
// link is mistaken for a dead one (measured on emulated outages, Nov 2026).
const DefaultMinStall = 8 * time.Second

// Bounds and weights of the estimates.
const (
	// Guesses that hold until something was measured: a satellite link.
	assumedRTT  = 600 * time.Millisecond
	assumedRate = 256_000 / 8 // bytes/s

	rttWeight  = 0.25 // of a new sample, as in SRTT but quicker: samples are few
	rateWeight = 0.3
	window     = 500 * time.Millisecond // of streaming, for one sample of the rate
)

// State is what is known of the link at one moment.
type State struct {
	Dark  bool          // requests fail and nothing has arrived since
	Since time.Time     // when it became dark or up
	RTT   time.Duration // smoothed time to a request's first byte
	Rate  float64       // bytes/s that arrive while something streams
	Bytes int64         // bytes of bodies that arrived in all
}

// Meter is safe for concurrent use. Use NewMeter.
type Meter struct {
	// MinStall is the least that StallLimit returns; it is set before use.
	MinStall time.Duration

	log *slog.Logger
	now func() time.Time

	mu       sync.Mutex
	state    State             // guarded by mu
	measured int               // guarded by mu; samples of the RTT
	recent   [16]time.Duration // guarded by mu; the last of them, in a ring
	rated    bool              // guarded by mu; Rate is no guess
	streams  int               // guarded by mu; bodies being read
	begun    time.Time         // guarded by mu; of the current window
	busy     time.Duration
	arrived  int64 // guarded by mu; in the current window
}

// NewMeter returns a Meter that knows nothing yet and takes the link for up.
func NewMeter(log *slog.Logger) *Meter {
	m := &Meter{MinStall: DefaultMinStall, log: log, now: time.Now}
	m.state = State{Since: m.now(), RTT: assumedRTT, Rate: assumedRate}
	return m
}

// State returns what is known now.
func (m *Meter) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

// FirstByte tells that a request on a warm connection had its first byte
// after d.
func (m *Meter) FirstByte(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.measured == 0 {
		m.state.RTT = d
	} else {
		m.state.RTT += time.Duration(rttWeight * float64(d-m.state.RTT))
	}
	m.recent[m.measured%len(m.recent)] = d
	m.measured++
}

// Failed tells that a request failed for want of a link.
func (m *Meter) Failed(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.streams > 0 || m.state.Dark {
		return // others get through, or it is known already
	}
	m.state.Dark, m.state.Since = true, m.now()
	m.log.Warn("the link is dark; what is cached goes on, the rest waits", slog.Any("error", err))
}

// Alive tells that something answered.
func (m *Meter) Alive() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.alive()
}

func (m *Meter) alive() {
	if !m.state.Dark {
		return
	}
	now := m.now()
	m.log.Info("the link is up", slog.Duration("dark", now.Sub(m.state.Since).Round(time.Second)))
	m.state.Dark, m.state.Since = false, now
}

// arrivedBytes tells that n bytes of a body arrived.
func (m *Meter) arrivedBytes(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.alive()
	m.state.Bytes += int64(n)
	m.arrived += int64(n)
	if m.streams > 0 {
		now := m.now()
		m.busy += now.Sub(m.begun)
		m.begun = now
	}
	m.sample()
}

// sample closes a window that is long enough. Time in which nothing streamed
// is not in it: waiting for an answer says nothing of the rate.
func (m *Meter) sample() {
	if m.busy < window {
		return
	}
	rate := float64(m.arrived) / m.busy.Seconds()
	if !m.rated {
		m.rated, m.state.Rate = true, rate
	} else {
		m.state.Rate += rateWeight * (rate - m.state.Rate)
	}
	m.busy, m.arrived = 0, 0
}

// StallLimit returns how long a request may say nothing, with queued bytes
// ahead of its answer, before it is taken for dead: never a limit on the whole.
func (m *Meter) StallLimit(queued int64) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := 4 * m.state.RTT
	if m.state.Rate > 1 {
		d += time.Duration(float64(queued) / m.state.Rate * float64(time.Second))
	}
	return max(m.MinStall, min(d, time.Hour))
}

// BandwidthDelay returns how many bytes the link carries in one round trip:
// the shortest of late, for the others have waited in a queue that more bytes
// would only make longer.
func (m *Meter) BandwidthDelay() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	rtt := m.state.RTT
	for _, d := range m.recent[:min(m.measured, len(m.recent))] {
		rtt = min(rtt, d)
	}
	return int64(m.state.Rate * rtt.Seconds())
}
