package fetcher

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/semaphore"

	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/store"
	"github.com/airstream-io/airstream/internal/toc"
)

// input is a bounded part of a stream. It is a ByteReader, so that a
// decompressor takes no more than it needs.
type input struct {
	r    *bufio.Reader
	left int64
	err  error // of the stream, not of what reads it
	tee  bool  // read keeps what was read of the part
	read []byte
}

// part begins a part of n bytes.
func (i *input) part(n int64, tee bool) { i.left, i.tee, i.read = n, tee, i.read[:0] }

func (i *input) Read(p []byte) (int, error) {
	if i.left <= 0 {
		return 0, io.EOF
	}
	n, err := i.r.Read(p[:min(int64(len(p)), i.left)])
	i.left -= int64(n)
	if i.tee {
		i.read = append(i.read, p[:n]...)
	}
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
		if i.tee {
			i.read = append(i.read, b)
		}
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
	f     *Fetcher
	t     *transfer
	zr    *gzip.Reader
	buf   []byte
	room  *semaphore.Weighted // that buf was taken from; nil: none
	bad   int                 // chunks that were not what they should be
	local error               // why chunks could not be stored
	id    toc.ObjectID
	open  *store.Object // the last one: chunks of a file follow each other
}

func (d *decoder) close() error {
	d.shrink()
	if d.open == nil {
		return nil
	}
	o := d.open
	d.open = nil
	return o.Close()
}

const (
	// smallChunk is the size up to which chunks need no leave to be in memory.
	// Ours are smaller by default; stargz' own have 4 MiB.
	smallChunk = 256 << 10
	// chunkRoom bounds what larger chunks take of the memory while they arrive,
	// in bytes: once for what is waited for and once for all else, because what
	// is not waited for may be paused for its sake.
	chunkRoom = 32 << 20
)

// grow returns a buffer for a chunk. It may wait until others need less.
func (d *decoder) grow(ctx context.Context, size int) ([]byte, error) {
	if size <= cap(d.buf) && (d.room == nil || size > smallChunk) {
		return d.buf[:size], nil
	}
	d.shrink()
	if size > smallChunk {
		room := d.f.bulkRoom
		if d.t.class == Demand {
			room = d.f.demandRoom
		}
		if err := room.Acquire(ctx, int64(size)); err != nil {
			return nil, err
		}
		d.room = room
	}
	d.buf = make([]byte, size)
	return d.buf, nil
}

// shrink gives the buffer back.
func (d *decoder) shrink() {
	if d.room != nil {
		d.room.Release(int64(cap(d.buf)))
	}
	d.room, d.buf = nil, nil
}

// member decompresses one member as far as it holds chunks, and stores those
// that are missing. Wrong bytes are counted and passed over; errors are the
// stream's or the disk's.
func (d *decoder) member(ctx context.Context, in *input, m uint32) error {
	tree := d.t.l.tree
	first, end := tree.MemberChunks(m)
	var err error
	if d.zr == nil {
		d.zr, err = gzip.NewReader(in)
	} else {
		err = d.zr.Reset(in)
	}
	var at int64
	c := first
	for ; c < end && err == nil; c++ {
		k := tree.Chunk(c)
		if k.ID == (chunk.ID{}) {
			continue // where it is isn't known either
		}
		if _, err = io.CopyN(io.Discard, d.zr, int64(k.Inner)-at); err != nil {
			break
		}
		p, noRoom := d.grow(ctx, int(k.Size))
		if noRoom != nil {
			return noRoom
		}
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
		for ; c < end; c++ {
			d.wrong(c)
		}
	}
	return nil
}

// wrong notes that a chunk arrived and was not what it should be.
func (d *decoder) wrong(c uint32) {
	d.bad++
	f := d.f
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts.Bad++
	d.t.l.wrong.arrived(c, time.Now(), f.opts.MaxPause)
}

// put verifies and stores a chunk and hands it on. If the disk doesn't take it,
// it goes to those who wait for it; the transfer ends when there is nobody left
// to bring something to.
func (d *decoder) put(c uint32, k toc.Chunk, p []byte) error {
	pc, chunks := d.t.l.pieceOf(c)
	d.f.mu.Lock()
	wanted := d.t.brings(pc)
	d.f.mu.Unlock()
	if !wanted {
		return nil // it is here
	}
	err := d.store(c, k, pc, chunks, p)
	if errors.Is(err, chunk.ErrMismatch) {
		d.wrong(c)
		return nil
	}
	f := d.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		f.counts.Chunks++
		d.t.landed++
		d.t.l.wrong.right(c)
		delete(d.t.pieces, pc)
		d.t.l.census.set(d.t.l, c)
		f.arrived(pc)
		f.settled(d.t.l)
		f.land(pc, nil, nil)
		return nil
	}
	d.local = fmt.Errorf("%w: %w", errLocal, err)
	if k.ID.Verify(p) != nil { // a full disk is found before wrong bytes are
		return d.local
	}
	delete(d.t.pieces, pc)
	if fl := f.queue.flights[pc]; fl != nil && fl.waiters > 0 {
		data := slices.Clone(p)
		f.spare.keep(pc, data)
		f.land(pc, data, nil)
	} else if fl != nil {
		f.dropCarrier(fl, d.t)
	}
	for p := range d.t.pieces {
		if fl := f.queue.flights[p]; fl != nil && fl.waiters > 0 {
			return nil
		}
	}
	return d.local
}

// store puts a chunk into its object.
func (d *decoder) store(c uint32, k toc.Chunk, pc piece, chunks uint32, p []byte) error {
	tree := d.t.l.tree
	if d.open == nil || d.id != pc.object {
		if err := d.close(); err != nil {
			return err
		}
		o, err := d.f.store.Object(pc.object, tree.Attr(tree.ChunkFile(c)).Size, chunks)
		if err != nil {
			return err
		}
		d.open, d.id = o, pc.object
	}
	return d.open.Put(pc.index, k, p)
}
