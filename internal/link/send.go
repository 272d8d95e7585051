package link

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/airstream-io/airstream/internal/link/wire"
)

const (
	// Pieces are as large as the link carries in pieceTime, within bounds: the
	// smallest still spends less than 3% on headers, and the largest is one
	// record of TLS.
	minPiece   = 1400
	maxPiece   = 16<<10 - 64
	usualPiece = 4 << 10
	pieceTime  = 20 * time.Millisecond

	// ahead is how many bytes of messages may wait between the Sender and the
	// kernel: enough that the writer never starves while the next piece is made.
	ahead = 8 << 10

	// lookEvery is how often the kernel is asked for the rate.
	lookEvery = 200 * time.Millisecond
)

// Record is one record to be sent.
type Record struct {
	Head    *wire.Head // Size is set by Put
	Payload []byte     // what is left of it after Head.Offset
	Key     any        // by which Promote finds it; nil: it doesn't
}

// Sender orders the records of one session: the most urgent lane goes first, and
// is asked again after every piece. It hands gRPC no more than the kernel is
// about to send, because what gRPC has taken can't be overtaken. Its methods may
// be called concurrently.
type Sender struct {
	send func(*wire.Down) error
	size func(*wire.Down) int64 // bytes that a message has on the stream
	sock *socket

	mu      sync.Mutex
	lanes   [NumLanes]laneOut // guarded by mu
	changed chan struct{}     // guarded by mu; closed and replaced when a lane has more, or room
	err     error             // guarded by mu; why the Sender has ended
	bytes   [NumLanes]int64   // guarded by mu; of payload that was sent
	last    time.Time         // guarded by mu; when a piece was sent last
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

// Sent returns how many bytes of payload were sent, by lane.
func (s *Sender) Sent() [NumLanes]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}

// run sends until ctx ends or the stream breaks. Whoever waits in Put gets the
// error.
func (s *Sender) run(ctx context.Context) error {
	err := s.pieces(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = ErrEnded
	if err != nil {
		s.err = fmt.Errorf("link: send: %w: %w", ErrEnded, err)
	}
	s.wake()
	return err
}

func (s *Sender) pieces(ctx context.Context) error {
	var sent int64
	var looked time.Time
	size := usualPiece
	for {
		if err := s.sock.room(ctx, sent, ahead); err != nil {
			return err
		}
		if time.Since(looked) > lookEvery {
			looked, size = time.Now(), pieceSize(s.sock.tcp().Rate)
		}
		m, changed := s.next(size)
		if m == nil {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := s.send(m); err != nil {
			return err
		}
		sent += s.size(m)
	}
}

// pieceSize is how large pieces are at a rate, in bytes/s.
func pieceSize(rate int64) int {
	if rate <= 0 {
		return usualPiece
	}
	return int(min(max(rate*int64(pieceTime)/int64(time.Second), minPiece), maxPiece))
}

// next takes the next piece, of the most urgent lane that has one.
func (s *Sender) next(size int) (*wire.Down, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	best := -1
	for i := range s.lanes {
		if l := &s.lanes[i]; len(l.records) > 0 && (best < 0 || l.urgent && !s.lanes[best].urgent && best > 0) {
			best = i
		}
	}
	if best < 0 {
		return nil, s.changed
	}
	l := &s.lanes[best]
	r := l.records[0]
	m := &wire.Down{Lane: uint32(best)} //nolint:gosec // few
	if !l.begun {
		m.Head, l.begun = r.Head, true
	}
	n := min(size, len(r.Payload)-l.sent)
	m.Data = r.Payload[l.sent : l.sent+n]
	l.sent += n
	s.bytes[best] += int64(n)
	s.last = time.Now()
	if l.sent == len(r.Payload) {
		l.records, l.begun, l.sent, l.urgent = l.records[1:], false, 0, false
		s.wake()
	}
	return m, nil
}
