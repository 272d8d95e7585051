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
	"github.com/airstream-io/airstream/internal/reference"
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
	h := Header{ChunkSize: size, IDs: o.IDs, Wanted: len(want)}
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
	h.Files, h.Memory = len(items), memoryOf(size)
	stats.Same, stats.Files, stats.Bytes = same, h.Files, h.Bytes
	e := &encoder{have: bases, header: h, stats: &stats, ids: sha256.New()}
	e.frames = &frameWriter{w: w, behind: e.catchUp}
	err = e.run(ctx, groups(bases, items))
	stats.Written = e.frames.written
	return stats, err
}

type encoder struct {
	have     []*File
	header   Header
	stats    *Stats
	frames   *frameWriter
	code     *code
	literals *zstd.Encoder // nil until there are any
	ids      hash.Hash     // of all chunk IDs
	index    int           // of the last file
	base     int           // behind the last base
}

func (e *encoder) run(ctx context.Context, all []group) error {
	if err := e.frames.put(e.header.append(nil)); err != nil {
		return err
	}
	e.code = newCode(entropy.NewEncoder(e.frames.part(streamModel)))
	for i := range all {
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

// rewrittenAtOnce is how many bytes of bases are aligned a second time at a
// time, but one base in any case: that takes 5 bytes of memory for each.
const rewrittenAtOnce = 24 << 20

// aligned is a piece with its content and what it resembles.
type aligned struct {
	content  []byte
	segments []bindiff.Segment
	file     *reference.File  // the likest base, nil unless references are predicted
	loads    []reference.Load // how the content is mapped
}

// group codes a group. Pieces are aligned concurrently, and coded in order.
func (e *encoder) group(ctx context.Context, g *group) error {
	text, err := g.read(ctx, e.have)
	if err != nil {
		return err
	}
	old, err := bindiff.NewOld(text)
	if err != nil {
		return err
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
				return crew.Wait()
			}
			crew.Go(func() error {
				defer close(done)
				a, err := alignPiece(ctx, g, &g.pieces[i], text, old, room)
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

func alignPiece(ctx context.Context, g *group, p *piece, text []byte, old *bindiff.Old, room *semaphore.Weighted) (a aligned, err error) {
	if a.content, err = readFile(ctx, p.item.file, p.off, int64(p.size)); err != nil {
		return a, err
	}
	start := g.start(p.likest)
	if a.segments, err = old.Align(ctx, a.content, start); err != nil {
		return a, err
	}
	if p.predictable() && p.likest >= 0 {
		if a.loads = reference.Loads(a.content); a.loads != nil {
			base := text[start : start+int(g.bases[p.likest].length)]
			a.file = reference.Find(base)
			if a.file != nil {
				weight := min(int64(len(base)), rewrittenAtOnce)
				if err := room.Acquire(ctx, weight); err != nil {
					return a, err
				}
				defer room.Release(weight)
				err = a.again(ctx, base, start, old, len(g.pieces) == 1 && len(g.bases) == 1)
			}
		}
	}
	a.segments = bindiff.Longest(a.segments, maxSegments)
	return a, err
}

// again aligns the content with the base once more after the base's references
// were made what they probably are in the content. What then has no counterpart
// is looked for in all bases, unless this is the sole one: then old is not
// needed any more, and its memory is used.
func (a *aligned) again(ctx context.Context, base []byte, start int, old *bindiff.Old, sole bool) (err error) {
	p := newPredictor(a.file, a.loads, start, len(base), a.segments)
	rewritten := old
	if sole {
		err = old.Reset(p.rewrite(base))
	} else {
		rewritten, err = bindiff.NewOld(p.rewrite(base))
	}
	if err != nil {
		return err
	}
	second, err := rewritten.Align(ctx, a.content, 0)
	if err != nil {
		return err
	}
	if sole {
		a.segments = second
		return nil
	}
	const gap = 64 // bytes; what is shorter is not worth a search
	var all []bindiff.Segment
	end := 0
	fill := func(to int) error {
		if to-end < gap {
			return nil
		}
		found, err := old.Align(ctx, a.content[end:to], start+end)
		for _, s := range found {
			s.New += end
			all = append(all, s)
		}
		return err
	}
	for _, s := range second {
		if err := fill(s.New); err != nil {
			return err
		}
		s.Old += start
		all = append(all, s)
		end = s.New + s.Len
	}
	if err := fill(len(a.content)); err != nil {
		return err
	}
	a.segments = all
	return nil
}

func (e *encoder) groupHead(g *group) error {
	k := e.code
	if _, err := k.number(fieldPieces, int64(len(g.pieces)), int64(len(g.pieces))); err != nil {
		return err
	}
	_, err := k.bases(g.bases, e.have, &e.base)
	return err
}

// piece codes one piece.
func (e *encoder) piece(ctx context.Context, g *group, p *piece, text []byte, a aligned) error {
	k := e.code
	if p.off == 0 {
		if err := e.file(p); err != nil {
			return err
		}
	}
	if _, err := k.number(fieldLikest, int64(p.likest)+1, int64(len(g.bases))); err != nil {
		return err
	}
	if _, err := k.segments(a.segments, p.size, len(text), g.start(p.likest)); err != nil {
		return err
	}
	likest, size := g.start(p.likest), 0
	if p.likest >= 0 {
		size = int(g.bases[p.likest].length)
	}
	pr, err := k.predict(ctx, a.file != nil, a.loads, likest, size, a.segments, func(context.Context) (*reference.File, error) { return a.file, nil })
	if err != nil {
		return err
	}
	k.startResidual()
	end := 0
	predicted := make([]byte, 0, e.header.ChunkSize)
	for _, s := range a.segments {
		e.stats.Literal += int64(s.New - end)
		if err := e.literal(a.content[end:s.New]); err != nil {
			return err
		}
		end = s.New + s.Len
		e.stats.Aligned += int64(s.Len)
		for done := 0; done < s.Len; {
			// As far as the receiver's chunk goes.
			at := p.off + int64(s.New+done)
			n := min(s.Len-done, e.header.ChunkSize-int(at%int64(e.header.ChunkSize)))
			predicted = append(predicted[:0], text[s.Old+done:s.Old+done+n]...)
			missed, err := k.stretch(pr, predicted, a.content[s.New+done:s.New+done+n], s.Old+done, at)
			if err != nil {
				return err
			}
			e.stats.Missed += int64(missed)
			done += n
		}
	}
	k.encodeEnd()
	e.stats.Literal += int64(p.size - end)
	if err := e.literal(a.content[end:]); err != nil {
		return err
	}
	return k.c.Err()
}

// file codes what stands before a file's first piece.
func (e *encoder) file(p *piece) error {
	f := p.item.file
	if _, err := e.code.signed(fieldIndex, int64(p.item.index-e.index)); err != nil {
		return err
	}
	e.index = p.item.index + 1
	if _, err := e.code.number(fieldSize, f.Size, f.Size); err != nil {
		return err
	}
	for i := range f.Chunks {
		e.ids.Write(f.Chunks[i][:])
		if e.header.IDs {
			if err := e.literal(f.Chunks[i][:]); err != nil {
				return err
			}
		}
	}
	return nil
}
