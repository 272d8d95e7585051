package link

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/airstream-io/airstream/internal/link/wire"
)

// lookEvery is how often the kernel is asked for the rate.
const lookEvery = 200 * time.Millisecond

// Record is one record to be sent.
type Record struct {
	Head    *wire.Head // Size is set by Put
	Payload []byte     // what is left of it after Head.Offset
	Key     any        // by which Promote finds it; nil: it doesn't
	// Sent, if set, is called when the last byte has gone, with how many records
	// have gone by then: the node counts the same. It must not call back.
	Sent func(nth uint64)
}

// Sender orders the records of one session: the most urgent lane goes first, and
// is asked again after every piece. It hands gRPC no more than the kernel is
// about to send, because what gRPC has taken can't be overtaken. Its methods may
// be called concurrently.
type Sender struct {
	send  func(*wire.Down) error
	size  func(*wire.Down) int64 // bytes that a message has on the stream
	sock  *socket
	brake brake // of the goroutine that runs

	mu      sync.Mutex
	lanes   [NumLanes]laneOut // guarded by mu
	changed chan struct{}     // guarded by mu; closed and replaced when a lane has more, or room
	err     error             // guarded by mu; why the Sender has ended
	last    time.Time         // guarded by mu; when a piece was sent last
	records uint64            // guarded by mu; that were sent whole
	held    uint32            // guarded by mu; bit 1<<lane: no content of that lane is sent
	bucket  bucket            // guarded by mu
}

// laneOut is a lane at the sending end: the record that is crossing, and the
// next one, so that the link doesn't wait while it is made.
type laneOut struct {
	records []*Record
	begun   bool // the first one's Head was sent
	sent    int  // bytes of its payload
	urgent  bool // somebody waits for the first one
}

// depth is how many records a lane holds.
const depth = 2

// ErrEnded says that a session is over: nothing more can be sent in it.
var ErrEnded = errors.New("the session has ended")

func newSender(sock *socket, send func(*wire.Down) error, size func(*wire.Down) int64) *Sender {
	return &Sender{send: send, size: size, sock: sock, changed: make(chan struct{}), last: time.Now()}
}

// Put hands a record over, and waits while its lane is full.
func (s *Sender) Put(ctx context.Context, lane Lane, r Record) error {
	r.Head.Size = r.Head.GetOffset() + uint64(len(r.Payload))
	for {
		s.mu.Lock()
		if s.err != nil {
			defer s.mu.Unlock()
			return s.err
		}
		if l := &s.lanes[lane]; len(l.records) < depth {
			l.records = append(l.records, &r)
			s.wake()
			s.mu.Unlock()
			return nil
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// wake has everybody look again. s.mu is held.
func (s *Sender) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Promote makes a record that waits or is crossing as urgent as a demand, and
// tells whether there is one with that key.
func (s *Sender) Promote(key any) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.lanes {
		for _, r := range s.lanes[i].records {
			if r.Key != nil && r.Key == key {
				s.lanes[i].urgent = true // and so what is before it in the lane: one record at most
				s.wake()
				return true
			}
		}
	}
	return false
}

// Quiet returns for how long nothing was sent.
func (s *Sender) Quiet() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.last)
}

// Pace bounds how fast the session sends, in bytes/s with all headers; 0: not at all.
func (s *Sender) Pace(rate int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bucket.set(time.Now(), rate)
	s.wake()
}

// Hold says in which lanes nothing is sent from now on: bit 1<<lane. What is no
// content, and what somebody waits for, is sent all the same.
func (s *Sender) Hold(lanes uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = lanes
	s.wake()
}

// run sends until ctx ends or the stream breaks. Whoever waits in Put gets the
// error.
func (s *Sender) run(ctx context.Context) error {
	err := s.pieces(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = fmt.Errorf("link: send: %w: %w", ErrEnded, err)
	s.wake()
	return err
}

// pieces sends until it can't, and returns why.
func (s *Sender) pieces(ctx context.Context) error {
	var sent int64
	var looked time.Time
	warm := false
	s.brake.rested = time.Now()
	var paused time.Duration // before this piece
	p := portions{piece: usualPiece, ahead: mostAhead, lowWater: mostLowWater}
	for {
		if err := s.sock.room(ctx, sent, p.ahead); err != nil {
			return err
		}
		m, wait, changed := s.next(p.piece)
		if m == nil && wait == 0 && !warm {
			var err error
			if sent, warm, err = s.warm(ctx, sent); err != nil {
				return err
			}
			s.brake.rested = time.Now()
			continue
		}
		if m == nil {
			began := time.Now()
			if err := rest(ctx, wait, changed); err != nil {
				return err
			}
			paused += time.Since(began)
			continue
		}
		if time.Since(looked) > lookEvery {
			looked = time.Now()
			p = s.steer(p, paused)
		}
		paused = 0
		if err := s.send(m); err != nil {
			return err
		}
		n := s.size(m)
		sent += n
		s.mu.Lock()
		s.bucket.take(time.Now(), n)
		s.mu.Unlock()
	}
}

// rest waits until something changes, or for d if that is not 0.
func rest(ctx context.Context, d time.Duration, changed <-chan struct{}) error {
	var after <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		after = t.C
	}
	select {
	case <-changed:
	case <-after:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// steer asks the kernel how the link is, and sizes for it. A pause was before.
func (s *Sender) steer(was portions, paused time.Duration) portions {
	t := s.sock.tcp()
	s.mu.Lock()
	rate := s.bucket.rate
	s.mu.Unlock()
	if s.brake.renew(time.Now(), t, paused) {
		s.sock.pace(s.brake.rate(time.Now(), t, rate)) // before it begins
		s.sock.renew()
	} else {
		s.sock.pace(s.brake.rate(time.Now(), t, rate))
	}
	if rate > 0 && (t.Rate <= 0 || rate < t.Rate) {
		t.Rate = rate
	}
	p := portionsAt(t.Rate)
	if p.lowWater != was.lowWater {
		s.sock.keepLow(p.lowWater)
	}
	return p
}

// next takes the next piece, of the most urgent lane that has one. If there is none
// now, there may be after wait, if that is not 0, or when changed is closed.
func (s *Sender) next(size int) (m *wire.Down, wait time.Duration, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	best := -1
	for i := range s.lanes {
		l := &s.lanes[i]
		if len(l.records) == 0 || s.held&(1<<i) != 0 && !l.free() {
			continue
		}
		if best < 0 || l.urgent && !s.lanes[best].urgent && best > 0 {
			best = i
		}
	}
	if best < 0 {
		return nil, 0, s.changed
	}
	if wait = s.bucket.wait(time.Now()); wait > 0 {
		return nil, wait, s.changed
	}
	l := &s.lanes[best]
	r := l.records[0]
	m = &wire.Down{Lane: uint32(best)} //nolint:gosec // few
	if !l.begun {
		m.Head, l.begun = r.Head, true
	}
	n := min(size, len(r.Payload)-l.sent)
	m.Data = r.Payload[l.sent : l.sent+n]
	l.sent += n
	s.last = time.Now()
	if l.sent == len(r.Payload) {
		l.records, l.begun, l.sent, l.urgent = l.records[1:], false, 0, false
		if s.records++; r.Sent != nil {
			r.Sent(s.records)
		}
		s.wake()
	}
	return m, 0, nil
}

// free tells whether a lane gets on although it is held: something in it is urgent,
// or no content.
func (l *laneOut) free() bool {
	if l.urgent {
		return true
	}
	for _, r := range l.records {
		switch r.Head.GetKind().(type) {
		case *wire.Head_Chunk, *wire.Head_Part:
		default:
			return true
		}
	}
	return false
}
