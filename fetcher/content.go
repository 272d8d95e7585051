package fetcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
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
	object *store.Object
}

// Open opens the regular file at entry of the layer in slot. It waits, until
// ctx ends, while the layer's table is still crossing.
func (f *Fetcher) Open(ctx context.Context, slot, entry uint32) (*Content, error) {
	l, err := f.layer(slot, false)
	if err != nil {
		return nil, err
	}
	if err := f.await(ctx, l); err != nil {
		return nil, err
	}
	if int(entry) >= l.tree.Len() || l.tree.Attr(entry).Mode&toc.TypeMask != toc.TypeRegular {
		return nil, fmt.Errorf("fetcher: entry %d of layer %s: %w: not a regular file", entry, l.Blob, fs.ErrInvalid)
	}
	first, end := l.tree.Chunks(entry)
	c := &Content{f: f, l: l, entry: entry, size: l.tree.Attr(entry).Size}
	if c.object, err = f.store.Object(l.objectID(entry), c.size, end-first); err != nil {
		return nil, err
	}
	return c, nil
}

// Close gives the content back.
func (c *Content) Close() error { return c.object.Close() }

// recordFor is how long reads of a layer that is new on the node all come here,
// so that a trace of its first start has them. It costs that start nothing
// that would count beside the link.
const recordFor = 10 * time.Minute

// Complete returns the file that holds the content if all of it is here and
// verified, else nil. It is valid until Close and must only be read.
func (c *Content) Complete() *os.File {
	if !c.l.fresh.IsZero() && time.Since(c.l.fresh) < recordFor {
		return nil
	}
	return c.object.Complete()
}

// ReadAt fills p from byte off on, unless the file ends before: then it
// returns io.EOF as io.ReaderAt does. It waits, until ctx ends, for what is
// still on the other side of the link. All bytes were verified.
func (c *Content) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off >= c.size {
		return 0, io.EOF
	}
	end := min(off+int64(len(p)), c.size)
	if err := c.ensure(ctx, off, end); err != nil {
		return 0, err
	}
	n, err := c.object.ReadAt(p[:end-off], off)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// ensure returns when bytes [off, end) are here and verified.
func (c *Content) ensure(ctx context.Context, off, end int64) error {
	begin, _ := c.l.tree.Chunks(c.entry)
	from, _ := c.l.tree.FindChunk(c.entry, off)
	to, _ := c.l.tree.FindChunk(c.entry, end-1)
	for first := true; ; first = false {
		var missing []uint32
		for k := from; k <= to; k++ {
			switch err := c.object.Check(k-begin, c.l.tree.Chunk(k)); {
			case errors.Is(err, store.ErrDamaged):
				c.f.log.WarnContext(ctx, "stored content is damaged; it is fetched again", slog.String("layer", c.l.Blob.String()), slog.Any("error", err))
				missing = append(missing, k)
			case errors.Is(err, fs.ErrNotExist):
				missing = append(missing, k)
			case err != nil:
				return err
			}
		}
		if first {
			c.f.used(c.l, from, to)
		}
		if len(missing) == 0 {
			return nil
		}
		if err := c.f.demand(ctx, c.l, missing); err != nil {
			return err
		}
	}
}

// demand waits until the chunks of a layer are here. It may return before that
// without an error: the caller looks again.
func (f *Fetcher) demand(ctx context.Context, l *layer, chunks []uint32) error {
	f.mu.Lock()
	if f.closing {
		f.mu.Unlock()
		return fmt.Errorf("fetcher: stopping: %w", context.Canceled)
	}
	flights := make([]*flight, 0, len(chunks))
	for _, c := range chunks {
		p, _ := l.pieceOf(c)
		flights = append(flights, f.want(p, l, l.tree.Chunk(c).Member))
	}
	f.missed(l, chunks[len(chunks)-1])
	f.counts.Waits++
	f.dispatch()
	f.mu.Unlock()

	var err error
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
	for _, fl := range flights {
		f.unwant(fl)
	}
	return err
}
