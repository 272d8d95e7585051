package uplink

import (
	"net"
	"slices"
	"time"
)

// Session is a connection on which a proxy pushes. It is no request: it is there for
// days, brings things of several classes, and its other end is told the policy and
// keeps to it. So no window is granted to it. What it shows of the link counts as
// what requests show, while something is expected of it. Its methods may be called
// concurrently.
type Session struct{ s *Stream }

// Session begins to count a connection. The caller closes it.
func (m *Meter) Session(conn net.Conn) *Session {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &Stream{m: m, class: Demand, pushed: true, window: openWindow, sock: tapOf(conn), read: m.now(), heard: m.now()}
	if c, ok := s.look(); ok {
		s.seen, s.total = c, float64(c.received)
		m.rules.usage.add(s.class, c.wire) // of making it
	}
	m.alive()
	return &Session{s}
}

// Busy tells that something is expected from now on, or nothing any more.
func (p *Session) Busy(is bool) {
	s, m := p.s, p.s.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.ended || is == s.body {
		return
	}
	if !is {
		m.look()
		m.dropStream(s)
		s.body = false
		return
	}
	s.body, s.began, s.heard = true, m.now(), m.now()
	if c, ok := s.look(); ok { // what came meanwhile came in no time that was measured
		m.rules.usage.add(s.class, max(0, c.wire-s.seen.wire))
		s.seen, s.total = c, float64(c.received)
	}
	m.addStream(s)
}

// Came tells that n bytes of a class were read.
func (p *Session) Came(class Class, n int64) {
	s, m := p.s, p.s.m
	m.mu.Lock()
	defer m.mu.Unlock()
	m.alive()
	m.state.Bytes += n
	m.state.ByClass[class] += n
	s.unseen += n
	s.read, s.heard = m.now(), m.now()
	s.class = class // and so is what the socket has counted since the last time
	m.count(s)
	m.bucket.take(s.read, int(n), m.rules.policy.Rate)
	if s.body && s.read.Sub(m.looked) >= m.lookEvery() {
		m.look()
	}
}

// Answered tells that the first byte of an answer came d after its question.
func (p *Session) Answered(d time.Duration) { p.s.m.FirstByte(d) }

// Close ends the count.
func (p *Session) Close() {
	p.Busy(false)
	m := p.s.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if !p.s.ended {
		m.count(p.s)
		p.s.ended = true
	}
}

// Begin is Meter.Begin for what comes on the session: its bytes are counted there.
func (p *Session) Begin(class Class) *Stream {
	s := p.s.m.Begin(class)
	p.s.m.mu.Lock()
	defer p.s.m.mu.Unlock()
	s.on = p
	return s
}

// addStream puts a stream among those that are looked at. m.mu is held.
func (m *Meter) addStream(s *Stream) {
	if m.bodies() == 0 {
		m.looked = m.now()
	}
	m.streams = append(m.streams, s)
	if m.timer == nil {
		m.looked = m.now()
		m.timer = time.AfterFunc(m.lookEvery(), m.tick)
	}
}

// dropStream takes a stream away. m.mu is held.
func (m *Meter) dropStream(s *Stream) {
	m.streams = slices.DeleteFunc(m.streams, func(o *Stream) bool { return o == s })
	if len(m.streams) == 0 && m.timer != nil {
		m.timer.Stop()
		m.timer = nil
	}
}
