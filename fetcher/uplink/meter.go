// Package uplink knows the node's link, and sees to it that it is shared well:
// whether it is up, slow or dark and since when, its round-trip time and its
// rate, as seen by the requests that cross it; who may use it, when, and how
// much of it. Nothing is sent to find out.
//
// One Meter serves a node. Everything that must be sized for the link asks it:
// how far to read ahead, how many requests to make at a time, when a request
// that says nothing has stalled, how long what is missing will take.
//
// # How a link is shared that somebody else fills
//
// The registry at the other end sends as fast as its congestion control
// allows, and what the link can't carry at once waits in a modem, in front of
// what somebody urgently wants. This end has one lever, the receive window: a
// sender has no more on its way than it was granted. So transfers that go on
// for long together get what the link holds in a round trip, and a little
// (share.go); while somebody waits for something they get less, and those
// least urgent nothing. That needs a rate that isn't what the windows have
// made of it, and a delay that isn't the queue's (estimate.go).
package uplink

import (
	"log/slog"
	"sync"
	"time"
)

// DefaultMinStall is the shortest silence that ends a request. Below it a slow
// link is mistaken for a dead one (measured on emulated outages, Nov 2026).
const DefaultMinStall = 8 * time.Second

// State is what is known of the link at one moment.
type State struct {
	Phase Phase
	Dark  bool      // Phase is Dark: requests fail and nothing has arrived since
	Since time.Time // when the phase began

	RTT    time.Duration // smoothed time to a request's first byte
	MinRTT time.Duration // a round trip with nothing queued before it
	Rate   float64       // bytes/s that arrive while something streams
	Peak   float64       // bytes/s that the link brings when nothing here holds it back, as far as was seen lately
	Loss   float64       // share of data packets that came late because others were lost, lately
	Known  Known         // of these, what was measured

	Bytes   int64             // bytes of bodies that arrived since the start
	ByClass [NumClasses]int64 // of these, by class
	Today   [NumClasses]int64 // bytes that count for the day's budget

	BudgetLeft int64     // bytes of the day that are left; < 0: no budget
	NextWindow time.Time // when the next contact window opens; zero: it is open, or there is none
}

// Known tells which values of a State were measured. The others are what is
// reckoned with meanwhile: a guess that nobody should be told as a fact.
type Known struct {
	Rate bool // and Peak
	RTT  bool
	Min  bool // MinRTT
}

// Meter is safe for concurrent use. Use NewMeter.
type Meter struct {
	// MinStall is the least that StallLimit returns; it is set before use.
	MinStall time.Duration

	log *slog.Logger
	now func() time.Time

	mu      sync.Mutex
	state   State // guarded by mu; RTT, Rate, Loss, phase and counts
	health  health
	est     estimate
	share   share
	crowd   crowd
	bucket  bucket
	rules   rules
	streams []*Stream     // guarded by mu; requests under way, in order of their beginning
	looked  time.Time     // guarded by mu; when the sockets were last asked
	timer   *time.Timer   // guarded by mu; looks again while nothing arrives; nil: no streams
	change  chan struct{} // guarded by mu; see Changed
	gate    chan struct{} // guarded by mu; closed and replaced when Wait should look again
}

// NewMeter returns a Meter that knows nothing yet and takes the link for up.
func NewMeter(log *slog.Logger) *Meter {
	m := &Meter{MinStall: DefaultMinStall, log: log, now: time.Now, change: make(chan struct{}), gate: make(chan struct{})}
	m.state = State{Phase: Up, Since: m.now(), RTT: assumedRTT, Rate: assumedRate}
	m.health = health{answered: map[string]time.Time{}, failing: map[string]time.Time{}}
	m.share.gain, m.crowd.n = usualGain, minCrowd
	m.rules.usage = newUsage(time.Now, bootTime)
	return m
}

// State returns what is known now.
func (m *Meter) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.state
	s.MinRTT, s.Peak = m.minRTT(), m.peak()
	_, packets := m.shortDelay()
	s.Known = Known{Rate: m.est.rated, RTT: m.est.measured > 0, Min: packets || m.est.measured > 0}
	m.rules.describe(m.now(), &s)
	return s
}

// FirstByte tells that a request on a warm connection had its first byte
// after d.
func (m *Meter) FirstByte(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.est.measured == 0 {
		m.state.RTT = d
	} else {
		m.state.RTT += time.Duration(rttWeight * float64(d-m.state.RTT))
	}
	m.est.recent[m.est.measured%len(m.est.recent)] = d
	m.est.measured++
}

// StallLimit returns how long a request may say nothing, with queued bytes
// ahead of its answer, before it is taken for dead: never a limit on the whole.
func (m *Meter) StallLimit(queued int64) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := 4 * m.state.RTT
	if rate := m.capped(m.state.Rate); rate > 1 {
		d += time.Duration(min(float64(queued)/rate, 3600) * float64(time.Second))
	}
	return max(m.MinStall, min(d, time.Hour))
}

// BandwidthDelay returns how many bytes the link carries in one round trip:
// the shortest of late, for the others have waited in a queue that more bytes
// would only make longer.
func (m *Meter) BandwidthDelay() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return int64(m.bandwidthDelay())
}

// look asks the sockets what has come, and acts on it once in a round trip.
// m.mu is held.
func (m *Meter) look() {
	now := m.now()
	for _, s := range m.streams {
		m.count(s)
	}
	if m.bodies() > 0 {
		m.est.round.time += now.Sub(m.looked)
	}
	m.looked = now
	if m.est.round.time >= m.roundTime() {
		m.endRound(now)
	}
	m.divide()
}

// lookEvery is how often to look while something is under way.
func (m *Meter) lookEvery() time.Duration {
	return min(max(m.minRTT()/4, 20*time.Millisecond), 500*time.Millisecond)
}

// bodies returns how many streams bring a body.
func (m *Meter) bodies() (n int) {
	for _, s := range m.streams {
		if s.body {
			n++
		}
	}
	return n
}
