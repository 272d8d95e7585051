package delta

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"runtime"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/airstream-io/airstream/internal/bindiff"
	"github.com/airstream-io/airstream/internal/entropy"
)

// literalWindow is how far back literals may refer to others, in bytes.
const literalWindow = 8 << 20

// Encode writes the delta from have to want to w. Files of equal content cross
// once, under the first one's index in want. It takes up to about 1 GiB of memory
// and reads each file at most three times.
func Encode(ctx context.Context, have []Set, want []File, o Options, w io.Writer) (Stats, error) {
	var stats Stats
	size, err := o.chunkSize()
	if err != nil {
		return stats, err
	}
	if o.Profile >= profiles {
		return stats, fmt.Errorf("delta: there is no profile %d", o.Profile)
	}
	h := Header{Profile: o.Profile, ChunkSize: size, IDs: o.IDs, Wanted: len(want)}
	for _, s := range have {
		if len(s.Name) > 255 {
			return stats, fmt.Errorf("delta: set %.40s…: the name has %d bytes, at most 255 are allowed", s.Name, len(s.Name))
		}
		h.Sets = append(h.Sets, SetName{s.Name, len(s.Files)})
	}
	wanted := flatten([]Set{{Files: want}})
	for _, f := range wanted {
		if n := (f.Size + int64(size) - 1) / int64(size); f.Size < 0 || int64(len(f.Chunks)) != n {
			return stats, fmt.Errorf("delta: %s: %d chunks of %d bytes for a file of %d bytes", f.Path, len(f.Chunks), size, f.Size)
		}
	}
	bases := flatten(have)
	items, same, err := plan(ctx, bases, wanted)
	if err != nil {
		return stats, err
	}
	for _, it := range items {
		h.Bytes += it.file.Size
	}
	h.Files, h.Memory = len(items), memoryOf(o.Profile, size)
	stats.Same, stats.Files, stats.Bytes = same, h.Files, h.Bytes
	e := &encoder{have: bases, header: h, stats: &stats, report: o.Report, ids: sha256.New()}
	e.frames = &frameWriter{w: w, behind: e.catchUp}
	err = e.run(ctx, groups(bases, items))
	stats.Written = e.frames.written
	return stats, err
}

type encoder struct {
	have     []*File
	header   Header
	stats    *Stats
	report   func(Piece) // may be nil
	frames   *frameWriter
	code     *code
	literals *zstd.Encoder // nil until there are any
	ids      hash.Hash     // of all chunk IDs
	index    int           // of the last file
	base     int           // behind the last base

	predicted []byte // of a stretch
	modelled  int64  // literals that may yet be modelled in the default profile
}

func (e *encoder) run(ctx context.Context, all []group) error {
	if err := e.frames.put(e.header.append(nil)); err != nil {
		return err
	}
	e.code = newCode(entropy.NewEncoder(e.frames.part(streamModel)), e.header.Profile)
	for i := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := e.group(ctx, &all[i]); err != nil {
			return err
		}
	}
	if _, err := e.code.number(fieldPieces, 0, 0); err != nil {
		return err
	}
	if err := e.code.c.Close(); err != nil {
		return err
	}
	if e.literals != nil {
		if err := e.literals.Close(); err != nil {
			return err
		}
	}
	return e.frames.end(e.ids.Sum(nil)[:checkSize])
}

// catchUp lets a stream come out that others have got ahead of.
func (e *encoder) catchUp(stream byte) error {
	if stream == streamLiterals && e.literals != nil {
		if err := e.literals.Flush(); err != nil {
			return err
		}
	}
	return e.frames.flush(stream)
}

// literal puts bytes into the stream of literals.
func (e *encoder) literal(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if e.literals == nil {
		z, err := zstd.NewWriter(e.frames.part(streamLiterals), zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(literalWindow), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
		if err != nil {
			return fmt.Errorf("delta: %w", err)
		}
		e.literals = z
	}
	_, err := e.literals.Write(p)
	return err
}

// group codes a group. Pieces are aligned concurrently, and coded in order.
func (e *encoder) group(ctx context.Context, g *group) error {
	text, err := g.read(ctx, e.have)
	if err != nil {
		return err
	}
	old := bindiff.NewOldSampled(text)
	if e.header.Profile != Fast {
		if old, err = bindiff.NewOld(text); err != nil {
			return err
		}
	}
	if err := e.groupHead(g); err != nil {
		return err
	}
	room := semaphore.NewWeighted(rewrittenAtOnce)
	workers, ctx := errgroup.WithContext(ctx)
	n := min(runtime.GOMAXPROCS(0), 4)
	queue := make(chan chan aligned, n)
	workers.Go(func() error {
		defer close(queue)
		crew, ctx := errgroup.WithContext(ctx)
		crew.SetLimit(n)
		for i := range g.pieces {
			done := make(chan aligned, 1)
			select {
			case queue <- done:
			case <-ctx.Done():
				if err := crew.Wait(); err != nil {
					return err
				}
				return ctx.Err()
			}
			crew.Go(func() error {
				defer close(done)
				a, err := e.alignPiece(ctx, g, &g.pieces[i], text, old, room)
				if err == nil {
					done <- a
				}
				return err
			})
		}
		return crew.Wait()
	})
	workers.Go(func() error {
		i := 0
		for done := range queue {
			a, ok := <-done
			if !ok {
				return ctx.Err() // whoever failed says why
			}
			if err := e.piece(ctx, g, &g.pieces[i], text, a); err != nil {
				return err
			}
			i++
		}
		return nil
	})
	return workers.Wait()
}

func (e *encoder) groupHead(g *group) error {
	k := e.code
	if _, err := k.number(fieldPieces, int64(len(g.pieces)), groupPieces); err != nil {
		return err
	}
	_, err := k.bases(g.bases, e.have, &e.base)
	return err
}
