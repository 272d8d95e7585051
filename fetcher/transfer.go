package fetcher

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/store"
	"github.com/airstream-io/airstream/internal/toc"
)

// transfer is one request for a range of a layer blob.
type transfer struct {
	l      *layer
	class  Class
	first  uint32             // member
	end    uint32             // member behind the last
	walk   *walk              // that it is a step of, or nil
	pieces map[piece]struct{} // what it is to bring and has not yet; guarded by Fetcher.mu
}

// plan makes the transfer that begins with member first of a layer and goes on
// through what is missing, up to span bytes and before member limit. What is
// here or on its way ends it: nothing crosses twice. The transfer is empty if
// that is so of the first member. f.mu is held.
func (f *Fetcher) plan(l *layer, first uint32, limit int, span int64, class Class) *transfer {
	t := &transfer{l: l, class: class, first: first, end: first, pieces: map[piece]struct{}{}}
	begin := l.tree.Member(first).Offset
	for t.end < uint32(limit) {
		if t.end > first && l.tree.Member(t.end).End-begin > span {
			break
		}
		missing := f.missing(l, t.end)
		if len(missing) == 0 {
			break
		}
		for _, p := range missing {
			fl, ok := f.queue.flights[p]
			if !ok {
				fl = &flight{piece: p, l: l, member: t.end, done: make(chan struct{})}
				f.queue.flights[p] = fl
			}
			fl.active = true
			t.pieces[p] = struct{}{}
		}
		t.end++
	}
	return t
}

// missing returns the pieces of a member that are neither here nor on their
// way. f.mu is held.
func (f *Fetcher) missing(l *layer, member uint32) []piece {
	var out []piece
	first, end := l.tree.MemberChunks(member)
	for c := first; c < end; c++ {
		p, chunks := l.pieceOf(c)
		if fl := f.queue.flights[p]; fl != nil && fl.active {
			continue
		}
		if !f.store.HasChunk(p.object, chunks, p.index) {
			out = append(out, p)
		}
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

// objectID remembers the last ID that it computed: callers go through a file's
// chunks one by one, and a large file's ID is a hash over all of them.
func (l *layer) objectID(entry uint32) toc.ObjectID {
	if last := l.lastID.Load(); last != nil && last.entry == entry {
		return last.id
	}
	id := l.tree.ObjectID(entry)
	l.lastID.Store(&entryID{entry, id})
	return id
}

// transfer gets what t is to bring, hands it on piece by piece, and settles
// what did not come.
func (f *Fetcher) transfer(ctx context.Context, t *transfer) {
	err := f.receive(ctx, t)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err == nil:
		f.alive(f.source(t.l).Host)
	case ctx.Err() != nil:
	case isLocal(err):
		// The disk is what failed: those who wait are told, for it may not
		// mend by itself, and other images go on.
		f.log.ErrorContext(ctx, "what arrived cannot be stored", slog.String("layer", t.l.Blob.String()), slog.Any("error", err))
		for p := range t.pieces {
			f.land(p, err)
		}
		t.pieces = nil
		t.l.pause.failed(time.Now(), time.Second)
	default:
		t.l.pause.failed(time.Now(), registry.RetryAfter(err))
		if !registry.Temporary(err) {
			t.l.source++
			f.log.WarnContext(ctx, "a layer's content cannot be fetched; trying again", slog.String("layer", t.l.Blob.String()), slog.Any("error", err))
		}
	}
	if t.class == Hot && len(t.pieces) > 0 {
		f.again(t)
	}
	for p := range t.pieces {
		fl := f.queue.flights[p]
		if fl == nil {
			continue
		}
		if fl.active = false; fl.waiters == 0 {
			delete(f.queue.flights, p)
		} else {
			f.queue.waiting = append(f.queue.waiting, fl)
		}
	}
	f.settle(t, err)
}

// alive ends the pauses of all layers that a registry host has: if one request
// got through, the others may. f.mu is held.
func (f *Fetcher) alive(host string) {
	for _, l := range f.layers {
		if f.source(l).Host == host {
			l.pause.succeeded()
		}
	}
}

// source returns where a layer is asked for now. f.mu is held.
func (f *Fetcher) source(l *layer) catalog.Source { return l.sources[l.source%len(l.sources)] }

// errLocal marks failures of the node itself.
var errLocal = errors.New("the node cannot store it")

func isLocal(err error) bool { return errors.Is(err, errLocal) }

// receive makes the request and reads its answer.
func (f *Fetcher) receive(ctx context.Context, t *transfer) (err error) {
	tree := t.l.tree
	from, to := tree.Member(t.first).Offset, tree.Member(t.end-1).End
	src := f.sourceOf(t.l)
	rc, err := f.part(ctx, t.class, t.l, src, from, to-from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rc.Close()) }()
	in := &input{r: bufio.NewReaderSize(rc, 32<<10)}
	d := decoder{f: f, t: t}
	defer func() { err = errors.Join(err, d.close()) }()
	for member := t.first; member < t.end; member++ {
		m := tree.Member(member)
		in.left = m.End - m.Offset
		if err := d.member(in, member); err != nil {
			return err
		}
		if err := in.drain(); err != nil {
			return err
		}
	}
	if d.bad > 0 {
		return fmt.Errorf("fetcher: layer %s from %s/%s: %d of the chunks are not what the table of contents says: %w", t.l.Blob, src.Host, src.Repo, d.bad, chunk.ErrMismatch)
	}
	return nil
}

// input is a bounded part of a stream. It is a ByteReader, so that a
// decompressor takes no more than it needs.
type input struct {
	r    *bufio.Reader
	left int64
	err  error // of the stream, not of what reads it
}

func (i *input) Read(p []byte) (int, error) {
	if i.left <= 0 {
		return 0, io.EOF
	}
	n, err := i.r.Read(p[:min(int64(len(p)), i.left)])
	i.left -= int64(n)
	i.note(err)
	return n, err
}

func (i *input) ReadByte() (byte, error) {
	if i.left <= 0 {
		return 0, io.EOF
	}
	b, err := i.r.ReadByte()
	if err == nil {
		i.left--
	}
	i.note(err)
	return b, err
}

func (i *input) note(err error) {
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		i.err = err
	}
}

// drain skips the rest of the part.
func (i *input) drain() error {
	if i.err != nil {
		return i.err
	}
	_, err := io.Copy(io.Discard, io.LimitReader(i, i.left))
	return errors.Join(err, i.err)
}

// decoder turns members into stored pieces.
type decoder struct {
	f    *Fetcher
	t    *transfer
	zr   *gzip.Reader
	buf  []byte
	bad  int // chunks that were not what they should be
	id   toc.ObjectID
	open *store.Object // the last one: chunks of a file follow each other
}

func (d *decoder) close() error {
	if d.open == nil {
		return nil
	}
	o := d.open
	d.open = nil
	return o.Close()
}

// member decompresses one member as far as it holds chunks, and stores those
// that are missing. Wrong bytes are counted and passed over; errors are the
// stream's or the disk's.
func (d *decoder) member(in *input, m uint32) error {
	tree := d.t.l.tree
	first, end := tree.MemberChunks(m)
	var err error
	if d.zr == nil {
		d.zr, err = gzip.NewReader(in)
	} else {
		err = d.zr.Reset(in)
	}
	var at int64
	for c := first; c < end && err == nil; c++ {
		k := tree.Chunk(c)
		if _, err = io.CopyN(io.Discard, d.zr, int64(k.Inner)-at); err != nil {
			break
		}
		if cap(d.buf) < int(k.Size) {
			d.buf = make([]byte, k.Size)
		}
		p := d.buf[:k.Size]
		if _, err = io.ReadFull(d.zr, p); err != nil {
			break
		}
		at = int64(k.Inner) + int64(k.Size)
		if err := d.put(c, k, p); err != nil {
			return err
		}
	}
	if in.err != nil {
		return in.err
	}
	if err != nil { // the stream is well and its content is not
		d.wrong()
	}
	return nil
}

func (d *decoder) wrong() {
	d.bad++
	d.f.mu.Lock()
	defer d.f.mu.Unlock()
	d.f.counts.Bad++
}

func (d *decoder) put(c uint32, k toc.Chunk, p []byte) error {
	tree := d.t.l.tree
	pc, chunks := d.t.l.pieceOf(c)
	if d.open == nil || d.id != pc.object {
		if err := d.close(); err != nil {
			return err
		}
		o, err := d.f.store.Object(pc.object, tree.Attr(tree.ChunkFile(c)).Size, chunks)
		if err != nil {
			return fmt.Errorf("%w: %w", errLocal, err)
		}
		d.open, d.id = o, pc.object
	}
	switch err := d.open.Put(pc.index, k, p); {
	case errors.Is(err, chunk.ErrMismatch):
		d.wrong()
		return nil
	case err != nil:
		return fmt.Errorf("%w: %w", errLocal, err)
	}
	d.f.mu.Lock()
	defer d.f.mu.Unlock()
	d.f.counts.Chunks++
	delete(d.t.pieces, pc)
	d.f.land(pc, nil)
	return nil
}
