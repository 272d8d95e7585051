package uplink

import "time"

// How the windows are divided: measured over geo-vsat (docs/benchmarks.md), Nov
// 2026.
const (
	usualGain  = 1.15 // bandwidth-delay products that long transfers may have on their way, and delay that is aimed at
	minGain    = 1.0  // and what they may have while somebody has just waited and may again
	bulkGain   = 1.5
	lossyGain  = 2.5 // where losses keep senders from using what they are granted
	lossyDelay = 1.3 // delay that is aimed at then
	startGain  = 2.2 // while the rate still grows: slow start doubles what is on its way
	drainGain  = 0.5 // for a moment, to see the delay without the queue

	// besideUrgent is what all that is less urgent gets together, in
	// bandwidth-delay products, while something more urgent is under way: the
	// urgent one spends most of its time waiting for its first bytes, or in
	// the sender's slow start, and the link would be idle.
	besideUrgent = 0.5

	// shortest is the time that a window is for at least: below it, schedulers
	// and delayed acknowledgments count for more than the way.
	shortest = 50 * time.Millisecond

	caution     = 10 * time.Second // after something urgent
	startWindow = 96 << 10         // bytes that are granted at least before the rate is known
	drainAfter  = 25 * time.Second // without a short delay
	trickle     = 20 * time.Second // a paused stream reads a little this often: servers close what stands still
	packetBytes = 1460             // of payload, until the socket knows
	minPackets  = 2                // that a window has at least: TCP acknowledges every other packet
)

// share is how much bulk may have on its way. It is guarded by Meter.mu.
type share struct {
	gain     float64   // bandwidth-delay products
	cautious time.Time // until then somebody may wait again
	drain    int       // rounds left in which it is drainGain
	leads    int       // long streams of the first rank
	total    float64   // bytes that long streams of the first rank were granted; 0: not bounded
}

// steer sets how much more than the link holds is granted: more while no
// queue stands and it might bring more, less when a queue stands. r is the
// round that ended, q how many times the shortest delay its packets took (0:
// unknown). m.mu is held.
func (m *Meter) steer(now time.Time, r round, q float64, limited bool) {
	sh := &m.share
	if sh.drain > 0 {
		sh.drain--
		return
	}
	most, aim := bulkGain, usualGain
	if r.late > 0 || m.lossy() {
		most, aim = lossyGain, lossyDelay
	}
	switch {
	case r.held || now.Before(sh.cautious):
		sh.gain = min(sh.gain, minGain)
	case !m.est.settled:
	case q == 0:
		sh.gain = usualGain
	case q < 1.05 && limited && r.late == 0:
		sh.gain = min(sh.gain*1.3, lossyGain)
	case q > aim || limited || m.lossy():
		sh.gain = min(sh.gain*min(max(1+0.3*(aim-q), 0.7), 1.15), most)
	default:
		sh.gain += (usualGain - sh.gain) / 4
	}
	sh.gain = max(sh.gain, minGain)
	if m.est.settled && sh.total > 0 && q > 0 && now.Sub(m.est.near) > max(drainAfter, 10*m.minRTT()) {
		sh.drain = 2
		m.est.near = now // again in as long
	}
}

// lossy tells whether packets are lost more than now and then. m.mu is held.
func (m *Meter) lossy() bool { return m.state.Loss > 0.005 }

// limited tells whether the round brought what was granted, so that more might
// have come. m.mu is held.
func (m *Meter) limited(r round) bool {
	if m.share.total == 0 {
		return false
	}
	return r.bytes >= 0.75*m.share.total*(r.time.Seconds()/m.minRTT().Seconds())
}

// rank orders streams: by class, and within one those that have gone on for
// long behind those that have not. m.mu is held.
func (m *Meter) rank(s *Stream) int {
	rank := 2 * int(s.class)
	if m.long(s) {
		rank++
	}
	return rank
}

// long tells whether a stream is one that fills the link if it is let.
func (m *Meter) long(s *Stream) bool {
	return s.class >= Prefetch || s.came > 4*int64(m.bandwidthDelay()) && s.came > 256<<10
}

// lively tells whether a stream gets on, or may yet: what waits for a server
// that says nothing uses none of the link. m.mu is held.
func (m *Meter) lively(s *Stream, now time.Time) bool {
	return now.Sub(s.heard) < max(3*m.minRTT(), time.Second)
}

// divide grants each stream its window. What is most urgent and short is not
// bounded at all. m.mu is held.
func (m *Meter) divide() {
	m.share.total, m.share.leads = 0, 0
	if len(m.streams) == 0 {
		return
	}
	now := m.now()
	first := 2*NumClasses + 1
	for _, s := range m.streams {
		if m.lively(s, now) && !s.pushed {
			first = min(first, m.rank(s))
		}
	}
	bdp := m.bandwidthDelay()
	rate := m.capped(m.peak())
	var lead, rest []*Stream
	for _, s := range m.streams {
		switch rank := m.rank(s); {
		case s.pushed:
		case rank > first && (m.est.rated || m.rules.policy.Rate > 0):
			rest = append(rest, s)
		case rank%2 == 1 || m.rules.policy.Rate > 0:
			lead = append(lead, s)
		default:
			m.grant(s, openWindow)
		}
	}
	m.share.leads = len(lead)
	gain := m.share.gain
	if m.share.drain > 0 {
		gain = drainGain
	}
	if !m.est.settled {
		gain = startGain
	}
	if len(lead) > 0 {
		m.share.total = max(gain*bdp, rate*shortest.Seconds())
		if !m.est.settled && m.rules.policy.Rate == 0 {
			m.share.total = max(m.share.total, startWindow)
		}
		// Never nothing: after a silence no rate is known, and only what is read
		// shows one.
		each := max(1, int64(m.share.total)/int64(len(lead)))
		m.share.total = 0
		for _, s := range lead {
			m.grant(s, each)
			m.share.total += float64(s.useful())
		}
	}
	if len(rest) > 0 {
		m.divideRest(rest, max(besideUrgent*bdp, rate*shortest.Seconds()/2))
	}
}

// divideRest divides what is left beside something more urgent: equally, and
// the least urgent go without if there is not enough for all. m.mu is held.
func (m *Meter) divideRest(rest []*Stream, total float64) {
	m.est.round.held = true
	m.share.cautious = m.now().Add(caution)
	for n := len(rest); n > 0; n-- {
		each := int64(total) / int64(n)
		if each >= minPackets*rest[0].packet() {
			for _, s := range rest {
				m.grant(s, each)
			}
			return
		}
		// One less, of the least urgent class the one that began last.
		worst := 0
		for i, s := range rest[:n] {
			if m.rank(s) >= m.rank(rest[worst]) {
				worst = i
			}
		}
		m.grant(rest[worst], 0)
		rest = append(rest[:worst:worst], rest[worst+1:]...)
	}
}

// grant bounds what a stream may have on its way; 0 pauses it. m.mu is held.
func (m *Meter) grant(s *Stream, window int64) {
	if window > 0 {
		window = max(window, minPackets*s.packet())
	}
	was := s.window
	s.window = window
	if was == 0 && window > 0 || was > 0 && window == 0 {
		m.wake()
	}
	if s.sock == nil || window >= openWindow && was >= openWindow {
		return
	}
	s.sock.clamp(max(window, minPackets*s.packet()))
}

// useful returns how much of its window a sender can use: whole packets.
func (s *Stream) useful() int64 {
	if s.window >= 8*s.packet() {
		return s.window // a part of a packet doesn't count
	}
	return s.window - s.window%s.packet()
}

// packet returns how many bytes of payload a full packet of the stream has.
func (s *Stream) packet() int64 {
	if s.seen.mss >= 500 {
		return s.seen.mss
	}
	return packetBytes
}
