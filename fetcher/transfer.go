package fetcher

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/airstream-io/airstream/internal/chunk"
)

// transfer is one request for a range of a layer blob.
type transfer struct {
	l      *layer
	class  Class
	ticket *ticket
	first  uint32        // member
	end    uint32        // member behind the last
	walk   *walk         // that it is a step of, or nil
	done   chan struct{} // closed when it has ended
	place  *place        // in the hot blob, if it goes with one; else nil (see stream.go)

	// guarded by Fetcher.mu
	grown  bool               // it brought more of a member that is not whole yet
	cancel context.CancelFunc // nil before it has begun
	pieces map[piece]uint32   // what it is to bring and has not yet, and in which member
	at     uint32             // the member that arrives now
	landed int                // chunks that it brought
	riders int                // flights that it goes as urgently as a demand for
	came   chan struct{}      // closed when all of it has come, of a transfer that a Pusher brings; nil: a registry does
	stream promotable         // the answer's body; nil before it begins
}

// plan makes the transfer that begins with member first of a layer and goes on
// through what is missing, up to span bytes and before member limit. What is
// here or on its way ends it: nothing crosses twice. The transfer is empty if
// that is so of the first member; waited is a piece that is brought even so, if
// it is on its way but too far off. f.mu is held.
func (f *Fetcher) plan(l *layer, first uint32, limit int, span int64, class Class, waited piece) *transfer {
	t := &transfer{l: l, class: class, first: first, end: first, at: first, pieces: map[piece]uint32{}}
	begin := l.tree.Member(first).Offset
	for t.end < uint32(limit) {
		if t.end > t.first && l.tree.Member(t.end).End-begin > span {
			break
		}
		chunks := f.missing(l, t.end, waited)
		if len(chunks) == 0 {
			break
		}
		for _, c := range chunks {
			p, _ := l.pieceOf(c)
			f.board(t, p, c)
		}
		t.end++
	}
	return t
}

// missing returns the chunks of a member that are neither here nor on their
// way. f.mu is held.
func (f *Fetcher) missing(l *layer, member uint32, waited piece) []uint32 {
	var out []uint32
	first, end := l.tree.MemberChunks(member)
	for c := first; c < end; c++ {
		if l.census.has(c) || !l.identified(c) {
			continue
		}
		p, chunks := l.pieceOf(c)
		if p != waited && f.carried(p) || l.wrong.until(c).After(time.Now()) {
			continue
		}
		if f.store.HasChunk(p.object, chunks, p.index) {
			l.census.set(l, c)
			continue
		}
		out = append(out, c)
	}
	return out
}

// pieceOf returns the piece that a chunk of the layer is, and how many its
// object has.
func (l *layer) pieceOf(c uint32) (p piece, chunks uint32) {
	entry := l.tree.ChunkFile(c)
	first, end := l.tree.Chunks(entry)
	return piece{l.objectID(entry), c - first}, end - first
}

// transfer gets what t is to bring, hands it on piece by piece, and settles
// what did not come.
func (f *Fetcher) transfer(ctx context.Context, t *transfer) {
	err := f.receive(ctx, t)
	if errors.Is(err, chunk.ErrMismatch) && t.ticket.src != pushSource {
		f.reg.Distrust(t.ticket.src, t.l.Blob)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	t.l.active--
	switch {
	case errors.Is(err, errEnough):
		err = nil
		f.giveBack(t.ticket, &t.l.from, nil, true)
	case ctx.Err() != nil:
		err = ctx.Err()
		t.ticket.discard()
	default:
		f.giveBack(t.ticket, &t.l.from, err, t.landed > 0 || t.grown)
	}
	if isLocal(err) {
		f.cannotStore(err)
	}
	left := len(t.pieces) > 0
	if t.class == Hot && left {
		f.again(t)
	}
	for p := range t.pieces {
		if fl := f.queue.flights[p]; fl != nil {
			f.dropCarrier(fl, t)
		}
	}
	t.pieces = nil
	f.settle(t, left, err)
}

// maxFullPause is the longest time between attempts to store what nobody waits
// for on a full disk. A guess.
const maxFullPause = time.Minute

// cannotStore notes that the disk took nothing more. What nobody waits for is
// left alone for a while; what somebody waits for is served from memory.
func (f *Fetcher) cannotStore(err error) {
	now := time.Now()
	if f.fullUntil.Before(now) {
		f.log.Error("what arrives cannot be stored; only what is waited for is fetched", slog.Any("error", err))
	}
	f.full.failed(now, time.Second)
	f.fullUntil = f.full.until
}

// errEnough says that a request was ended because what is left of it is here,
// or far off.
var errEnough = errors.New("the rest is not needed now")

// receive makes the request and reads its answer.
func (f *Fetcher) receive(ctx context.Context, t *transfer) (err error) {
	if t.ticket.src == pushSource {
		return f.receivePushed(ctx, t)
	}
	tree := t.l.tree
	f.mu.Lock()
	head, broken := f.stash.take(stashKey{t.l, t.first})
	f.mu.Unlock()
	if int64(len(head)) >= memberSize(tree, t.first) {
		head = nil // it was whole, and not right
	}
	from, to := tree.Member(t.first).Offset+int64(len(head)), tree.Member(t.end-1).End
	rc, err := f.part(ctx, t.ticket, t.l, from, to-from)
	if err != nil {
		t.stash(f, t.first, head, broken)
		return err
	}
	defer func() { err = errors.Join(err, rc.Close()) }()
	f.mu.Lock()
	if s, ok := rc.(promotable); ok {
		if t.stream = s; t.riders > 0 {
			s.SetClass(Demand)
		}
	}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		t.stream = nil
	}()
	in := &input{r: bufio.NewReaderSize(io.MultiReader(bytes.NewReader(head), heard{rc, t.ticket}), 32<<10)}
	d := decoder{f: f, t: t}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := f.members(ctx, t, in, &d, head, broken); err != nil {
		return err
	}
	switch {
	case d.local != nil:
		return d.local
	case d.bad > 0:
		return fmt.Errorf("fetcher: layer %s from %s/%s: %d of the chunks are not what the table of contents says: %w", t.l.Blob, t.ticket.src.Host, t.ticket.src.Repo, d.bad, chunk.ErrMismatch)
	}
	return nil
}

// members reads what t is to bring, member by member. head is what it begins
// with that came before; broken says that the first member broke before.
func (f *Fetcher) members(ctx context.Context, t *transfer, in *input, d *decoder, head []byte, broken bool) error {
	tree := t.l.tree
	for member := t.first; ; {
		next, err := f.arriveAt(t, member)
		if err != nil {
			return err
		}
		if member == t.end {
			return nil
		}
		behind := tree.Member(t.end - 1).End
		if next < t.end {
			behind = tree.Member(next).Offset
		}
		in.part(behind-tree.Member(member).Offset, false) // the connection is worth it
		if err := in.drain(); err != nil {
			return err
		}
		if next == t.end {
			return nil
		}
		size := memberSize(tree, next)
		in.part(size, size <= maxTee || broken && next == t.first && size <= maxLateTee)
		if err := d.member(ctx, in, next); err != nil {
			if in.err != nil {
				t.grown = len(in.read) > len(head)
				t.stash(f, next, in.read, true)
			}
			return err
		}
		if err := in.drain(); err != nil {
			return err
		}
		member = next + 1
	}
}

// stash keeps what has arrived of a member that broke.
func (t *transfer) stash(f *Fetcher, member uint32, part []byte, broken bool) {
	if !broken {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stash.keep(stashKey{t.l, member}, part)
}

// arriveAt notes which member a transfer arrives at, and returns the next that
// it has to bring something of; t.end if there is none. The error is errEnough
// if that is too far off.
func (f *Fetcher) arriveAt(t *transfer, member uint32) (uint32, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t.at = min(member, t.end-1)
	next := t.nextNeeded(member)
	if member >= t.end {
		return t.end, nil
	}
	skip := t.l.tree.Member(t.end-1).End - t.l.tree.Member(member).Offset
	if next < t.end {
		skip = t.l.tree.Member(next).Offset - t.l.tree.Member(member).Offset
	}
	if skip > 0 && !f.worthSkipping(skip) {
		return next, errEnough
	}
	if next < t.end {
		t.at = next
	}
	return next, nil
}

// heard tells a ticket that bytes come.
type heard struct {
	r io.Reader
	t *ticket
}

func (h heard) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	if n > 0 {
		h.t.hear()
	}
	return n, err
}
