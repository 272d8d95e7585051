package proxy

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/toc"
)

// What was sent
//
// Several pulls of a session may come to the same content: two images share a
// layer, or a tag is asked for again while its image is on its way. The ledger is
// the session's, and knows content by what it is and not by where an image has it.
// So whichever pull comes to it first sends it, and the others leave it out.
//
// Whether something has arrived follows from one number. What crosses is in order,
// so the node counts the records that came whole and says the count with what it
// wants; the Sender counts the same records when it sends them.

// pieceID names a chunk of an object, or a layer's table: 16 bytes of the object's
// ID or the table's digest, and the chunk's number in the object, tablePiece for a
// table.
type pieceID [20]byte

const tablePiece = ^uint32(0)

func chunkPiece(object toc.ObjectID, index uint32) (id pieceID) {
	copy(id[:16], object[:])
	binary.BigEndian.PutUint32(id[16:], index)
	return id
}

func tableOf(d digest.Digest) (id pieceID) {
	b, err := hex.DecodeString(d.Encoded())
	if err == nil {
		copy(id[:16], b)
	}
	binary.BigEndian.PutUint32(id[16:], tablePiece)
	return id
}

// stage is how far a piece is on its way.
type stage uint8

const (
	making  stage = iota + 1 // it is being read and compressed
	waiting                  // it is with the Sender
	sent                     // it has gone to the last byte
)

// parcel is a piece that some pull sends or has sent. Its fields are guarded by
// ledger.mu.
type parcel struct {
	pull   uint32
	stage  stage
	urgent bool   // somebody waits for it
	nth    uint64 // record of the connection, from 1 on; once it is sent
	ticket uint64 // which of the ledger's order it is
}

// maxEntries is how many pieces a ledger remembers, the latest: 2 GB in chunks of
// the usual size, 3 MB of memory. What it has forgotten may cross twice if another
// pull comes to it.
const maxEntries = 1 << 15

// ledger is what the pulls of one session send and have sent. Use newLedger.
type ledger struct {
	mu      sync.Mutex
	entries map[pieceID]*parcel // guarded by mu
	order   []ordered           // guarded by mu; the oldest first
	tickets uint64              // guarded by mu
	changed chan struct{}       // guarded by mu; closed and replaced when a piece is not being made any more
}

type ordered struct {
	id     pieceID
	ticket uint64
}

func newLedger() *ledger {
	return &ledger{entries: map[pieceID]*parcel{}, changed: make(chan struct{})}
}

// arrived says of whom a piece is wanted again although it has come.
type arrived uint64

// never is for plans: what has come need not come again, whenever that was.
const never = ^arrived(0)

// take has pull send a piece, and returns its entry. If somebody sends it already,
// or has sent it and the node had not got it when it had seen so many records, ok is
// false, and urgent is noted.
func (l *ledger) take(id pieceID, pull uint32, seen arrived, urgent bool) (e *parcel, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e = l.entries[id]; e != nil && (e.stage != sent || seen == never || e.nth > uint64(seen)) {
		e.urgent = e.urgent || urgent
		return e, false
	}
	e = &parcel{pull: pull, stage: making}
	l.add(id, e)
	return e, true
}

// underWay is take for who only asks.
func (l *ledger) underWay(id pieceID, seen arrived, urgent bool) (*parcel, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entries[id]
	if e == nil || e.stage == sent && e.nth <= uint64(seen) {
		return nil, false
	}
	e.urgent = e.urgent || urgent
	return e, true
}

// here notes that a node has a piece from an earlier connection, through a pull.
func (l *ledger) here(id pieceID, pull uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.entries[id] == nil {
		l.add(id, &parcel{pull: pull, stage: sent})
	}
}

// add adds an entry and forgets the oldest. l.mu is held.
func (l *ledger) add(id pieceID, e *parcel) {
	l.tickets++
	e.ticket = l.tickets
	l.entries[id] = e
	l.order = append(l.order, ordered{id, e.ticket})
	for len(l.order) > maxEntries {
		old := l.order[0]
		l.order = l.order[1:]
		if o := l.entries[old.id]; o != nil && o.ticket == old.ticket {
			delete(l.entries, old.id)
		}
	}
}

// handed notes that a piece goes to the Sender now.
func (l *ledger) handed(e *parcel) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.stage == making { // else it is sent already
		e.stage = waiting
	}
	l.wake()
}

// isUrgent tells whether somebody waits for a piece.
func (l *ledger) isUrgent(e *parcel) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return e.urgent
}

// gone notes that a piece was sent as the nth record.
func (l *ledger) gone(e *parcel, nth uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.stage, e.nth = sent, nth
	l.wake()
}

// drop notes that a piece is not sent after all.
func (l *ledger) drop(id pieceID, e *parcel) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.entries[id] == e {
		delete(l.entries, id)
	}
	e.stage = sent // for who waits in made
	l.wake()
}

// wake has made look again. l.mu is held.
func (l *ledger) wake() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// made waits until a piece is with the Sender, or will not be.
func (l *ledger) made(ctx context.Context, e *parcel) error {
	for {
		l.mu.Lock()
		stage, changed := e.stage, l.changed
		l.mu.Unlock()
		if stage != making {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// leave forgets all that a pull has sent: the node throws away what is still on its
// way, and says nothing of what has come.
func (l *ledger) leave(pull uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, e := range l.entries {
		if e.pull == pull {
			delete(l.entries, id)
		}
	}
}

// coming tells whether a piece may not have come when the node had seen so many
// records.
func (l *ledger) coming(e *parcel, seen arrived) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return e.stage != sent || e.nth > uint64(seen)
}
