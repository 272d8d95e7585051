package uplink

import "time"

// Bounds and weights of the estimates.
const (
	// Guesses that hold until something was measured: a satellite link.
	assumedRTT  = 600 * time.Millisecond
	assumedRate = 256_000 / 8 // bytes/s

	rttWeight  = 0.25 // of a new sample, as in SRTT but quicker: samples are few
	rateWeight = 0.3
	lossWeight = 0.2

	minRound = 200 * time.Millisecond // shorter ones measure the scheduler

	// silence is how many round trips in which nothing comes say nothing of the
	// link's rate: it is an outage, or a server that has nothing to say.
	silence = 4

	// matureRounds is how many round trips a body streams before what it
	// brings is the link's doing and not that of the sender's slow start: 10
	// packets become more than 100 in four.
	matureRounds = 4

	delayEpoch = 5 * time.Second // a delay counts as short for 8 of them
)

// estimate is what is measured of the link. It is guarded by Meter.mu.
//
// The rate is the greatest that was delivered in a round trip lately, as BBR
// has it: what is delivered in others is less for reasons of this end's own.
// Lately means rounds, not seconds, and only those count in which something
// had streamed for long and nothing here held it back, so that neither a
// pause, nor a cap, nor a row of small requests makes the link look slower
// than it is. Bytes are those of packets that arrived, in whatever order and
// whether or not anybody has read them: what was held up by a lost packet, by
// an outage or by a slow disk is no burst.
type estimate struct {
	measured int               // samples of the time to the first byte
	recent   [16]time.Duration // the last of them, in a ring

	delay   extreme   // -seconds, of packets across the link; by time
	epoch0  time.Time // where epochs of delay count from
	near    time.Time // when a delay close to the shortest was last seen
	rates   extreme   // bytes/s; by rounds that count
	rounds  int64     // that count
	settled bool      // the rate is the link's and not a slow start's
	growth  float64   // the best rate when it last grew well; before settled
	flat    int       // rounds since
	rated   bool      // State.Rate is no guess
	queued  int       // rounds in a row that a queue stood and less than the peak came

	round round
}

// round is what came in a round trip's time of streaming.
type round struct {
	time     time.Duration // while something streamed
	bytes    float64       // of data packets' payload
	segments int64
	late     int64
	delay    float64 // seconds, sum over segments that tell it
	delays   int64   // how many
	held     bool    // something here held something back
	capped   bool    // a rate cap did
}

// count adds what came on a stream's socket since the last look. m.mu is held.
func (m *Meter) count(s *Stream) {
	r := &m.est.round
	c, ok := s.look()
	if !ok {
		r.bytes += float64(s.unseen)
		m.rules.usage.add(s.class, s.unseen)
		s.unseen = 0
		return
	}
	s.unseen = 0
	m.rules.usage.add(s.class, max(0, c.wire-s.seen.wire))
	before := s.seen
	segments, late := c.segments-before.segments, c.late-before.late
	s.seen = c
	if segments > 0 {
		s.heard = m.now()
	}
	if !s.body || segments <= 0 {
		return
	}
	bytes := s.reached(before, c)
	s.came += int64(bytes)
	r.bytes += bytes
	r.segments += segments
	r.late += late
	if c.rtt > 0 {
		r.delay += c.rtt.Seconds() * float64(segments)
		r.delays += segments
		m.sampleDelay(c.rtt)
	}
	if c.minRTT > 0 {
		m.sampleDelay(c.minRTT)
	}
}

// reached returns how many bytes of payload reached this node between two
// looks. What the kernel calls received is in order: behind a lost packet it
// stands still, and then it leaps. So while packets come out of order they are
// counted, and what is received later is not counted again.
func (s *Stream) reached(before, c counters) float64 {
	was := s.total
	if segments := float64(c.segments - before.segments); c.late > before.late {
		s.total += segments * max(s.each, 1)
		return s.total - was
	}
	if c.received > before.received && float64(before.received) >= s.total {
		each := float64(c.received-before.received) / float64(c.segments-before.segments)
		if s.each == 0 {
			s.each = each
		}
		s.each += (each - s.each) / 8
	}
	s.total = max(s.total, float64(c.received))
	return s.total - was
}

// sampleDelay notes how long packets took across the link. m.mu is held.
func (m *Meter) sampleDelay(d time.Duration) {
	e := &m.est
	now := m.now()
	if e.epoch0.IsZero() {
		e.epoch0 = now
	}
	e.delay.add(m.delayEpochNow(), -d.Seconds())
	if short, _ := m.shortDelay(); d.Seconds() <= 1.08*short {
		e.near = now
	}
}

func (m *Meter) delayEpochNow() int64 {
	return int64(m.now().Sub(m.est.epoch0) / max(delayEpoch, 4*m.state.RTT))
}

// shortDelay returns the shortest delay of late, in seconds.
func (m *Meter) shortDelay() (s float64, ok bool) {
	s, ok = m.est.delay.get(m.delayEpochNow())
	return -s, ok
}

// minRTT returns the shortest round trip of late. What packets take is
// better than what requests take, for servers think; but where something on
// the way answers in the server's place, as satellite modems do, packets are
// quick and the server is far. m.mu is held.
func (m *Meter) minRTT() time.Duration {
	answer := m.state.RTT
	for _, d := range m.est.recent[:min(m.est.measured, len(m.est.recent))] {
		answer = min(answer, d)
	}
	s, ok := m.shortDelay()
	if !ok {
		return answer
	}
	packets := time.Duration(s * float64(time.Second))
	if m.est.measured > 0 && answer > 3*packets && answer > packets+100*time.Millisecond {
		return answer
	}
	return packets
}

// peak returns the link's rate, bytes/s. m.mu is held.
func (m *Meter) peak() float64 {
	if r, ok := m.est.rates.get(m.est.rounds); ok {
		return r
	}
	return m.state.Rate
}

// capped returns rate, or the policy's if that is less.
func (m *Meter) capped(rate float64) float64 {
	if limit := m.rules.policy.Rate; limit > 0 {
		return min(rate, float64(limit))
	}
	return rate
}

func (m *Meter) bandwidthDelay() float64 { return m.capped(m.peak()) * m.minRTT().Seconds() }

func (m *Meter) roundTime() time.Duration { return max(m.minRTT(), minRound) }

// inflation returns how many times the shortest delay the round's packets
// took: 1 is no queue. ok is false if they didn't tell.
func (r *round) inflation(short float64) (q float64, ok bool) {
	if r.delays == 0 || short <= 0 {
		return 0, false
	}
	return r.delay / float64(r.delays) / short, true
}

// endRound draws the conclusions of a round trip. m.mu is held.
func (m *Meter) endRound(now time.Time) {
	e := &m.est
	r := e.round
	if r.bytes == 0 && r.segments == 0 && r.time < silence*m.roundTime() {
		return // on a thin link a packet takes longer than a round trip
	}
	e.round = round{}
	if r.bytes == 0 && r.segments == 0 {
		return
	}
	rate := r.bytes / r.time.Seconds()
	short, _ := m.shortDelay()
	q, known := r.inflation(short)
	if !known {
		q = 0
	}
	limited := m.est.settled && m.limited(r)
	if r.segments > 0 {
		m.state.Loss += lossWeight * (float64(r.late)/float64(r.segments) - m.state.Loss)
	}
	mature := m.mature(now)
	free := !r.held && !limited
	if mature && free {
		e.rounds++
	}
	e.rates.add(e.rounds, rate)
	// A queue stands: what comes is what the link can carry, and no more.
	if e.queued++; q < 2 || r.held || rate > 0.7*m.peak() {
		e.queued = 0
	}
	if e.queued >= 2 {
		e.rates = extreme{}
		e.rates.add(e.rounds, rate)
		e.queued = 0
	}
	if !r.held {
		m.state.Rate += rateWeight * (rate - m.state.Rate)
		if !e.rated {
			e.rated, m.state.Rate = true, rate
		}
	}
	m.settle(rate, q)
	if mature && !r.held && m.rules.policy.Rate == 0 {
		m.judge(rate)
	}
	m.steer(now, r, q, limited)
	m.gather(now, r, rate, q, limited)
}

// mature tells whether something has streamed for long enough to show what
// the link can do. m.mu is held.
func (m *Meter) mature(now time.Time) bool {
	for _, s := range m.streams {
		if s.body && now.Sub(s.began) >= matureRounds*m.roundTime() {
			return true
		}
	}
	return false
}

// settle ends the time in which much is granted because little is known:
// a queue stands, or the rate has stopped to grow. m.mu is held.
func (m *Meter) settle(rate, q float64) {
	e := &m.est
	if e.settled || m.share.leads == 0 {
		return
	}
	if rate > 1.2*e.growth {
		e.growth, e.flat = rate, 0
	} else {
		e.flat++
	}
	e.settled = q > 1.3 || e.flat >= 3
}
