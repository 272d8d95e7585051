package fetcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/airstream-io/airstream/internal/store"
	"github.com/airstream-io/airstream/internal/toc"
)

// Content is the content of one regular file, here or not. It is safe for
// concurrent use until Close.
type Content struct {
	f      *Fetcher
	l      *layer
	entry  uint32
	size   int64
	object atomic.Pointer[store.Object] // nil if the disk has no room even for an empty one
}

// Open opens the regular file at entry of the layer in slot. It waits, until
// ctx ends, while the layer's table, or what it says of this file, is still crossing.
func (f *Fetcher) Open(ctx context.Context, slot, entry uint32) (*Content, error) {
	l, err := f.layer(slot, false)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(l.inQuarantine(), f.await(ctx, l)); err != nil {
		return nil, err
	}
	if int(entry) >= l.tree.Len() || l.tree.Attr(entry).Mode&toc.TypeMask != toc.TypeRegular {
		return nil, fmt.Errorf("fetcher: entry %d of layer %s: %w: not a regular file", entry, l.Blob, fs.ErrInvalid)
	}
	if l, err = f.knowing(ctx, l, entry); err != nil {
		return nil, err
	}
	f.mu.Lock()
	if l.gone {
		f.mu.Unlock()
		return nil, fmt.Errorf("fetcher: layer %s was just forgotten: %w", l.Blob, ErrBusy)
	}
	l.opens++
	f.mu.Unlock()
	first, end := l.tree.Chunks(entry)
	c := &Content{f: f, l: l, entry: entry, size: l.tree.Attr(entry).Size}
	object, err := f.store.Object(l.objectID(entry), c.size, end-first)
	if err == nil {
		c.object.Store(object)
	} else if !isFull(err) {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Close gives the content back.
func (c *Content) Close() error {
	c.f.mu.Lock()
	c.l.opens--
	c.f.mu.Unlock()
	if o := c.object.Load(); o != nil {
		return o.Close()
	}
	return nil
}

// recordFor is how long reads of a layer that is new on the node all come here,
// so that a trace of its first start has them. It costs that start nothing
// that would count beside the link.
const recordFor = 10 * time.Minute

// Complete returns the file that holds the content if all of it is here and
// verified, else nil. It is valid until Close and must only be read.
func (c *Content) Complete() *os.File {
	o := c.object.Load()
	if o == nil || !c.l.fresh.IsZero() && time.Since(c.l.fresh) < recordFor {
		return nil
	}
	return o.Complete()
}

// ReadAt fills p from byte off on, unless the file ends before: then it
// returns io.EOF as io.ReaderAt does. It waits, until ctx ends, for what is
// still on the other side of the link. All bytes were verified.
func (c *Content) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := c.l.inQuarantine(); err != nil {
		return 0, err
	}
	if off >= c.size {
		return 0, io.EOF
	}
	end := min(off+int64(len(p)), c.size)
	unstored, err := c.ensure(ctx, off, end)
	if err != nil {
		return 0, err
	}
	n, err := c.read(p[:end-off], off, unstored)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// read reads what is here; unstored are the chunks that are in memory only.
func (c *Content) read(p []byte, off int64, unstored map[uint32][]byte) (int, error) {
	if len(unstored) == 0 {
		return c.object.Load().ReadAt(p, off)
	}
	n := 0
	for n < len(p) {
		k, _ := c.l.tree.FindChunk(c.entry, off+int64(n))
		at := c.l.tree.Chunk(k)
		skip := off + int64(n) - at.Offset
		part := p[n:min(len(p), n+int(int64(at.Size)-skip))]
		if data := unstored[k]; data != nil {
			n += copy(part, data[skip:])
			continue
		}
		m, err := c.object.Load().ReadAt(part, off+int64(n))
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

// ensure returns when bytes [off, end) are here and verified. What could not be
// stored is returned, by chunk.
func (c *Content) ensure(ctx context.Context, off, end int64) (unstored map[uint32][]byte, err error) {
	from, _ := c.l.tree.FindChunk(c.entry, off)
	to, _ := c.l.tree.FindChunk(c.entry, end-1)
	for first := true; ; first = false {
		var missing []uint32
		for k := from; k <= to; k++ {
			if unstored[k] != nil {
				continue
			}
			switch err := c.check(k); {
			case errors.Is(err, store.ErrDamaged):
				c.f.log.WarnContext(ctx, "stored content is damaged; it is fetched again", slog.String("layer", c.l.Blob.String()), slog.Any("error", err))
				c.f.Recount() // others may share it
				missing = append(missing, k)
			case errors.Is(err, fs.ErrNotExist):
				missing = append(missing, k)
			case err != nil:
				return nil, err
			}
		}
		if first {
			c.f.used(c.l, from, to)
		}
		if len(missing) == 0 {
			return unstored, nil
		}
		got, err := c.f.demand(ctx, c, missing)
		if err != nil {
			return nil, err
		}
		for k, data := range got {
			if unstored == nil {
				unstored = map[uint32][]byte{}
			}
			unstored[k] = data
		}
	}
}

// check tells whether a chunk is on disk and sound.
func (c *Content) check(k uint32) error {
	first, end := c.l.tree.Chunks(c.entry)
	o := c.object.Load()
	if o == nil { // there may be room by now
		var err error
		if o, err = c.f.store.Object(c.l.objectID(c.entry), c.size, end-first); err != nil {
			return fs.ErrNotExist
		}
		if !c.object.CompareAndSwap(nil, o) {
			if err := o.Close(); err != nil {
				return err
			}
			o = c.object.Load()
		}
	}
	return o.Check(k-first, c.l.tree.Chunk(k))
}

// demand waits until chunks of a file, which are not here, are. It may return
// before that without an error: the caller looks again. What could not be
// stored is returned.
func (f *Fetcher) demand(ctx context.Context, c *Content, chunks []uint32) (unstored map[uint32][]byte, err error) {
	l := c.l
	keep := func(k uint32, data []byte) {
		if unstored == nil {
			unstored = map[uint32][]byte{}
		}
		unstored[k] = data
	}
	f.mu.Lock()
	if f.closing {
		f.mu.Unlock()
		return nil, fmt.Errorf("fetcher: stopping: %w", context.Canceled)
	}
	var spare []uint32
	flights := make(map[uint32]*flight, len(chunks))
	for _, k := range chunks {
		l.census.unset(l, k) // whatever was believed
		p, _ := l.pieceOf(k)
		if data := f.spare.chunks[p]; data != nil {
			keep(k, data)
			spare = append(spare, k)
		}
	}
	if len(spare) < len(chunks) && f.opts.FailFast && f.meter.State().Dark {
		f.mu.Unlock()
		return nil, fmt.Errorf("fetcher: layer %s: %w", l.Blob, ErrDark)
	}
	for _, k := range chunks {
		if unstored[k] == nil {
			flights[k] = f.want(l, k)
		}
	}
	w := &wait{time.Now()}
	if len(flights) > 0 {
		f.queue.waits[w] = struct{}{}
		f.missed(l, chunks[len(chunks)-1])
		f.counts.Waits++
		f.dispatch()
	}
	f.mu.Unlock()
	for _, k := range spare {
		c.storeSpare(k, unstored[k])
	}
	for _, fl := range flights {
		if err != nil {
			break
		}
		select {
		case <-fl.done:
			err = fl.err
		case <-ctx.Done():
			err = fmt.Errorf("fetcher: waiting for layer %s: %w", l.Blob, ctx.Err())
		case <-f.run.Done():
			err = fmt.Errorf("fetcher: stopping: %w", context.Canceled)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.queue.waits, w)
	for k, fl := range flights {
		f.unwant(fl)
		if fl.data != nil {
			keep(k, fl.data)
		}
	}
	return unstored, err
}

// storeSpare stores a chunk that there was no room for before, if there is now.
func (c *Content) storeSpare(k uint32, data []byte) {
	o := c.object.Load()
	if o == nil {
		return
	}
	first, _ := c.l.tree.Chunks(c.entry)
	if o.Put(k-first, c.l.tree.Chunk(k), data) != nil {
		return // next time, perhaps
	}
	f := c.f
	f.mu.Lock()
	defer f.mu.Unlock()
	p, _ := c.l.pieceOf(k)
	f.spare.drop(p)
	c.l.census.set(c.l, k)
	f.arrived(p)
}
