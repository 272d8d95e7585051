package uplink

import (
	"context"
	"net"
	"time"
)

// Stream is one request and its answer, from when it is made to when its body
// was read. It has one reader; SetClass may be called by anybody.
type Stream struct {
	m *Meter

	// guarded by Meter.mu
	class  Class
	pushed bool     // it is a Session's: its other end sees to how much comes
	on     *Session // that it comes on, and that counts its bytes; nil: none
	sock   tap      // that it arrives on; nil: not known
	seen   counters // of it at the last look
	body   bool     // the answer has begun
	began  time.Time
	total  float64   // bytes of payload that reached this node on sock
	each   float64   // of these, in one packet, lately; 0: unknown
	came   int64     // bytes of the body that reached this node, read or not
	unseen int64     // bytes that were read since the last look
	read   time.Time // when something was last read
	heard  time.Time // when something last came, or it was begun
	window int64     // bytes that it may have on its way; 0: it is paused
	waits  int       // 1 + the class as which it waits for the bucket; 0: it doesn't
	ended  bool
}

// Begin tells that a request of a class is made. From now on what is less
// urgent gives way. End must be called.
func (m *Meter) Begin(class Class) *Stream {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &Stream{m: m, class: class, window: openWindow, read: m.now(), heard: m.now()}
	m.addStream(s)
	m.divide()
	return s
}

// tick looks when nothing has arrived that would have led to a look.
func (m *Meter) tick() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.timer == nil {
		return
	}
	if m.now().Sub(m.looked) >= m.lookEvery() {
		m.look()
	}
	m.timer.Reset(2 * m.lookEvery())
}

// On tells which connection the request uses, before it is sent; reused is
// whether others used it before.
func (s *Stream) On(conn net.Conn, reused bool) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.sock = nil
	if conn == nil || s.ended {
		return
	}
	s.sock = tapOf(conn)
	if c, ok := s.look(); ok {
		s.seen, s.total = c, float64(c.received)
		s.each = s.total / float64(max(1, c.segments))
		if !reused {
			s.m.rules.usage.add(s.class, c.wire) // of making it
		}
		if c.minRTT > 0 {
			s.m.sampleDelay(c.minRTT)
		}
	}
	if s.sock != nil {
		s.window = 0 // whatever the last one had
		s.m.grant(s, openWindow)
		s.m.divide()
	}
}

// Answered tells that the answer has begun: what comes now is its body.
func (s *Stream) Answered() {
	m := s.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.body || s.ended {
		return
	}
	m.alive()
	if m.bodies() == 0 {
		m.looked = m.now()
	}
	if c, ok := s.look(); ok {
		m.rules.usage.add(s.class, max(0, c.wire-s.seen.wire))
		s.seen, s.total = c, float64(c.received) // what came with the headers came in no time that was measured
	}
	s.body, s.began, s.heard = true, m.now(), m.now()
	m.divide()
}

// SetClass changes how urgent the stream is from now on, also while it waits:
// somebody waits now for what it brings, or no longer does.
func (s *Stream) SetClass(class Class) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if class == s.class || s.ended {
		return
	}
	s.m.count(s) // what came so far is of the old class
	s.class = class
	s.m.divide()
	s.m.wake()
}

// Wait returns when the stream may be read on: at once, unless something more
// urgent has the link, or a rate cap leaves nothing now. The error is ctx's,
// or a *NotNow if the policy doesn't let the class use the link at all.
func (s *Stream) Wait(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		wait, gate, err := s.mayRead()
		if err != nil || wait <= 0 {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-gate:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// mayRead tells how long the stream should wait at most, and what ends that
// earlier.
func (s *Stream) mayRead() (wait time.Duration, gate <-chan struct{}, err error) {
	m := s.m
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	if no := m.admit(now, s.class); no != nil {
		m.bucket.leave(s)
		return 0, nil, no
	}
	if s.window == 0 {
		if wait = trickle - now.Sub(s.read); wait > 0 {
			m.bucket.leave(s)
			return wait, m.gate, nil
		}
	}
	if wait = m.bucket.wait(now, s, m.rules.policy.Rate); wait > 0 {
		m.est.round.capped = true
	}
	return wait, m.gate, nil
}

// Piece returns how many bytes, at most want, to read at a time, so that what
// is urgent need not wait long behind it.
func (s *Stream) Piece(want int) int {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	most := int64(32 << 10)
	if s.window < openWindow {
		most = max(s.window/4, s.packet())
	}
	if limit := s.m.rules.policy.Rate; limit > 0 {
		most = min(most, max(limit/8, 256))
	}
	return int(min(int64(want), most))
}

// Arrived tells that n bytes of the body were read.
func (s *Stream) Arrived(n int) {
	m := s.m
	m.mu.Lock()
	defer m.mu.Unlock()
	m.alive()
	m.state.Bytes += int64(n)
	m.state.ByClass[s.class] += int64(n)
	if s.on == nil {
		s.unseen += int64(n)
	} else if !s.on.s.ended {
		s.on.s.class = s.class
		s.on.s.unseen += int64(n)
		m.count(s.on.s)
	}
	s.read = m.now()
	s.heard = s.read
	if s.sock == nil {
		s.came += int64(n)
	}
	m.bucket.take(s.read, n, m.rules.policy.Rate)
	if s.read.Sub(m.looked) >= m.lookEvery() {
		m.look()
	}
}

// End tells that the body ended, or that nobody reads it any more.
func (s *Stream) End() {
	m := s.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.ended {
		return
	}
	m.look()
	m.bucket.leave(s)
	s.ended = true
	m.dropStream(s)
	m.divide()
}

// look returns what the stream's connection counted.
func (s *Stream) look() (c counters, ok bool) {
	if s.sock == nil {
		return c, false
	}
	return s.sock.read()
}

// wake has all that wait look again. m.mu is held.
func (m *Meter) wake() {
	close(m.gate)
	m.gate = make(chan struct{})
}
