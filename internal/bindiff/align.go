// Package bindiff aligns new content with old: it finds which stretches of the
// new resemble which stretches of the old, byte by byte, though not every byte
// is equal. It is of the family of bsdiff (Percival, "Naive differences of
// executable code", 2003): most of a rebuilt program is the old one with other
// addresses in it, so a stretch may contain differing bytes where that is
// cheaper than to begin another.
package bindiff

import (
	"context"
	"fmt"
	"slices"

	"github.com/airstream-io/airstream/internal/suffix"
)

// Segment says that the Len bytes at New of the new content resemble those at
// Old of the old. What no segment covers has no counterpart.
type Segment struct {
	New, Old, Len int // bytes
}

// end is the first position of the new content behind s.
func (s Segment) end() int { return s.New + s.Len }

// diagonal is the distance from new to old positions.
func (s Segment) diagonal() int { return s.Old - s.New }

// Measured on rebuilt Go and C programs, November 2026; none is critical.
const (
	// seed is the shortest match that begins a segment, in bytes; resume is the
	// shortest one that goes on at the last segment's distance.
	seed   = 14
	resume = 8
	// better is by how many bytes another match must beat the present alignment.
	better = 8
	// reach is how far ahead alignments are compared, in bytes.
	reach = 2048
	// drop is how far the sum of equal bytes less differing ones falls below
	// its best before a segment ends there; backDrop is the same backwards.
	drop     = 40
	backDrop = 16
	// bridge is the longest gap, in bytes, that is filled when the segments on
	// both sides of it are equally far from the old content.
	bridge = 12
)

// Old is old content prepared for alignment: any number of files behind each
// other. It may be used concurrently.
type Old struct {
	text   []byte
	index  index
	sorted *suffix.Text // index, unless that is made of samples
}

// index finds the longest match of a string in the old content, or a long one.
type index interface {
	Longest(p []byte, near, limit int) (at, length int)
}

// NewOld sorts text, which must not change afterwards. It takes 4 bytes of
// memory per byte of text, and 64 MiB.
func NewOld(text []byte) (*Old, error) {
	o := &Old{sorted: new(suffix.Text)}
	o.index = o.sorted
	return o, o.Reset(text)
}

// NewOldSampled is NewOld in a fiftieth of the time, and in 2 to 4 bytes of
// memory per byte of text; less is found.
func NewOldSampled(text []byte) *Old { return &Old{text: text, index: newSamples(text)} }

// Reset makes o other content, in the memory that it has where that is enough.
func (o *Old) Reset(text []byte) error {
	o.text = text
	if o.sorted == nil {
		o.index = newSamples(text)
	} else if err := o.sorted.Reset(text); err != nil {
		return fmt.Errorf("bindiff: %w", err)
	}
	return nil
}

// Align returns the segments of fresh, sorted by New, without overlap. Content
// near the position hint of the old is preferred to begin with. The only error
// is the context's.
func (o *Old) Align(ctx context.Context, fresh []byte, hint int) ([]Segment, error) {
	a := &alignment{old: o.text, fresh: fresh, index: o.index, diagonal: hint}
	for p := 0; p < len(fresh); {
		if p >= a.nextCheck {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			a.nextCheck = p + 64<<10
		}
		at, n := a.find(p)
		if n == 0 {
			p++
			continue
		}
		for n > 0 {
			a.begin(p, at, n)
			p, at, n = a.follow()
		}
	}
	return a.tidy(), nil
}

// alignment is one run of Align.
type alignment struct {
	old, fresh []byte
	index      index
	diagonal   int // of the last segment
	segments   []Segment
	nextCheck  int
}

// find looks for a match that is worth a segment at p.
func (a *alignment) find(p int) (at, n int) {
	at = p + a.diagonal
	if at >= 0 && at < len(a.old) {
		if n = suffix.Common(a.fresh[p:], a.old[at:]); n >= resume {
			return at, n
		}
	}
	at, n = a.index.Longest(a.fresh[p:], at, reach)
	if n < seed {
		return 0, 0
	}
	return at, n
}

// begin adds a segment for the n equal bytes at p and at, extended backwards as
// far as it gains; it may take the last segment's end away.
func (a *alignment) begin(p, at, n int) {
	last := Segment{}
	if len(a.segments) > 0 {
		last = a.segments[len(a.segments)-1]
	}
	gain, best, back := 0, 0, 0
	for i := 1; p-i >= last.New && at-i >= 0; i++ {
		c := a.fresh[p-i]
		if c == a.old[at-i] {
			gain++
		}
		if p-i >= last.end() {
			if c != a.old[at-i] {
				gain--
			}
		} else if c == a.old[p-i+last.diagonal()] {
			gain--
		}
		if gain > best {
			best, back = gain, i
		}
		if gain < best-backDrop {
			break
		}
	}
	s := Segment{New: p - back, Old: at - back, Len: n + back}
	if len(a.segments) > 0 && s.New < last.end() {
		a.segments[len(a.segments)-1].Len = s.New - last.New
		if s.New == last.New {
			a.segments = a.segments[:len(a.segments)-1]
		}
	}
	a.segments = append(a.segments, s)
	a.diagonal = s.diagonal()
}

// follow extends the last segment forwards until it no longer resembles, or
// until something else does better. It returns the position behind it, and a
// better match there if that is why it ended.
func (a *alignment) follow() (p, at, n int) {
	s := &a.segments[len(a.segments)-1]
	d := s.diagonal()
	end := min(len(a.fresh), len(a.old)-d) // of what can be compared
	score, best := 0, 0
	p = s.end()
	for p < end {
		if e := suffix.Common(a.fresh[p:end], a.old[p+d:]); e > 0 {
			p += e
			if score += e; score > best {
				best, s.Len = score, p-s.New
			}
			continue
		}
		if far := a.nthMiss(p, end, d); far > 0 {
			at, n = a.index.Longest(a.fresh[p:], p+d, reach)
			if n >= seed && n > far && at != p+d {
				return p, at, n
			}
		}
		p++
		if score--; score < best-drop {
			break
		}
	}
	return s.end(), 0, 0
}

// nthMiss returns how far from p the alignment with the distance d has had more
// misses than it takes to leave it, 0 if it has fewer within reach.
func (a *alignment) nthMiss(p, end, d int) int {
	limit := min(end, p+reach)
	q := p
	for range better {
		q++ // over the miss
		if q >= limit {
			break
		}
		q += suffix.Common(a.fresh[q:limit], a.old[q+d:])
	}
	switch {
	case q < limit:
		return q - p
	case limit == end && end < len(a.fresh):
		return limit - p + better // the old content ends: what is longer is better
	default:
		return 0
	}
}

// tidy joins segments of equal distance across short gaps and drops those that
// others have left too little of.
func (a *alignment) tidy() []Segment {
	kept := a.segments[:0]
	for _, s := range a.segments {
		if len(kept) > 0 {
			last := &kept[len(kept)-1]
			if s.diagonal() == last.diagonal() && s.New-last.end() <= bridge {
				last.Len = s.end() - last.New
				continue
			}
		}
		if s.Len < resume {
			continue
		}
		kept = append(kept, s)
	}
	return kept
}

// Longest returns at most n of the segments, the longest ones, in their order.
func Longest(segments []Segment, n int) []Segment {
	if len(segments) <= n {
		return segments
	}
	lengths := make([]int, len(segments))
	for i, s := range segments {
		lengths[i] = s.Len
	}
	slices.Sort(lengths)
	least := lengths[len(lengths)-n]
	kept := make([]Segment, 0, n)
	for _, s := range segments {
		if s.Len >= least && len(kept) < n {
			kept = append(kept, s)
		}
	}
	return kept
}
