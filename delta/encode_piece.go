package delta

import (
	"context"

	"golang.org/x/sync/semaphore"

	"github.com/airstream-io/airstream/internal/bindiff"
	"github.com/airstream-io/airstream/internal/reference"
)

// rewrittenAtOnce is how many bytes of bases are aligned a second time at a
// time, but one base in any case: that takes 5 bytes of memory for each.
const rewrittenAtOnce = 24 << 20

// aligned is a piece with its content and what it resembles.
type aligned struct {
	content  []byte
	segments []bindiff.Segment
	file     *reference.File // the likest base, and
	fresh    *fresh          // the content, both nil unless references are predicted
}

func (e *encoder) alignPiece(ctx context.Context, g *group, p *piece, text []byte, old *bindiff.Old, room *semaphore.Weighted) (a aligned, err error) {
	if a.content, err = readFile(ctx, p.item.file, p.off, int64(p.size)); err != nil {
		return a, err
	}
	start := g.start(p.likest)
	if a.segments, err = old.Align(ctx, a.content, start); err != nil {
		return a, err
	}
	if p.predictable() && p.likest >= 0 {
		base := text[start : start+int(g.bases[p.likest].length)]
		if a.file = reference.Find(base); a.file != nil {
			if a.fresh = freshOf(a.content); a.fresh != nil && e.header.Profile != Fast {
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
	p := newPredictor(a.file, a.fresh.loads, start, len(base), a.segments)
	p.correctAll(a.fresh)
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
	start := g.start(p.likest)
	if _, err := k.segments(a.segments, p.size, len(text), start); err != nil {
		return err
	}
	report := Piece{Index: p.item.index, Path: p.item.file.Path, Predicted: a.fresh != nil, Size: int64(p.size)}
	size := 0
	if p.likest >= 0 {
		size = int(g.bases[p.likest].length)
		report.Base = e.have[g.bases[p.likest].base].Path
	}
	pr, err := k.predict(ctx, a.fresh, start, size, a.segments, func(context.Context) (*reference.File, error) { return a.file, nil })
	if err != nil {
		return err
	}
	put := e.literal
	if modelled, err := k.number(fieldModelled, e.modelling(p, &a), 1); err != nil {
		return err
	} else if modelled == 1 {
		put = k.literals
	}
	k.startCount()
	for _, s := range a.segments {
		missed, err := e.segment(pr, s, p.off, text, a.content)
		if err != nil {
			return err
		}
		report.Aligned += int64(s.Len)
		report.Missed += missed
	}
	k.endCount()
	pr.forget()
	k.startResidual()
	end := 0
	for _, s := range a.segments {
		if err := put(a.content[end:s.New]); err != nil {
			return err
		}
		end = s.New + s.Len
		if _, err := e.segment(pr, s, p.off, text, a.content); err != nil {
			return err
		}
	}
	if err := k.endResidual(); err != nil {
		return err
	}
	if err := put(a.content[end:]); err != nil {
		return err
	}
	report.Literal = report.Size - report.Aligned
	e.stats.Aligned += report.Aligned
	e.stats.Missed += report.Missed
	e.stats.Literal += report.Literal
	if e.report != nil {
		e.report(report)
	}
	return k.c.Err()
}

// modelling decides whether the piece's literals are modelled: 1 if so. That makes
// them smaller by a fifth, and takes about a microsecond each to decode; in the
// default profile as many of them as one in modelledShare of what is rebuilt.
func (e *encoder) modelling(p *piece, a *aligned) int64 {
	literals := int64(p.size)
	for _, s := range a.segments {
		literals -= int64(s.Len)
	}
	e.modelled += int64(p.size) / modelledShare
	switch {
	case e.header.Profile == Slow:
	case e.header.Profile == Fast:
		return 0
	case literals == 0 || literals > e.modelled:
		return 0
	default:
		e.modelled -= literals
	}
	return 1
}

// modelledShare keeps decoding above 20 MB/s. (Measured November 2026.)
const modelledShare = 30

// segment codes what is different in a segment of a piece that begins at off in
// its file, in stretches that end where the receiver's chunks do.
func (e *encoder) segment(pr *predictor, s bindiff.Segment, off int64, text, content []byte) (missed int64, err error) {
	for done := 0; done < s.Len; {
		at := off + int64(s.New+done)
		n := min(s.Len-done, e.header.ChunkSize-int(at%int64(e.header.ChunkSize)))
		e.predicted = append(e.predicted[:0], text[s.Old+done:s.Old+done+n]...)
		m, err := e.code.stretch(pr, e.predicted, content[s.New+done:s.New+done+n], s.Old+done, at)
		if err != nil {
			return 0, err
		}
		missed += int64(m)
		done += n
	}
	return missed, nil
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
