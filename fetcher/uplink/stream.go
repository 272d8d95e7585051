package uplink

import (
	"context"
	"net"
)

// Stream is one body that arrives. It has one reader.
type Stream struct {
	m     *Meter
	class Class
	conn  net.Conn // that it arrives on
	ended bool
}

// Stream tells that a body of a class begins to arrive on conn, which may be
// nil if it is not known. End must be called.
func (m *Meter) Stream(class Class, conn net.Conn) *Stream {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.streams == 0 {
		m.begun = m.now()
	}
	m.streams++
	return &Stream{m: m, class: class, conn: conn}
}

// Wait returns when the stream may be read on: at once, unless something more
// urgent has the link. The error is ctx's.
func (s *Stream) Wait(ctx context.Context) error { return ctx.Err() }

// Arrived tells that n bytes of the body arrived.
func (s *Stream) Arrived(n int) { s.m.arrivedBytes(n) }

// End tells that the body ended, or that nobody reads it any more.
func (s *Stream) End() {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.ended {
		return
	}
	s.ended = true
	if s.m.streams--; s.m.streams == 0 {
		s.m.busy += s.m.now().Sub(s.m.begun)
		s.m.sample()
	}
}
