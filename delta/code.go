package delta

import (
	"fmt"

	"github.com/airstream-io/airstream/internal/bindiff"
	"github.com/airstream-io/airstream/internal/entropy"
)

// Contexts of the numbers that are few.
const (
	fieldPieces = iota
	fieldBases
	fieldBase
	fieldBaseOffset
	fieldBaseLength
	fieldCheck
	fieldIndex
	fieldSize
	fieldLikest
	fieldSegments
	fieldPredicted
	fieldLoads
	fieldLoad
	fieldRole
	fieldModelled
	fieldCount
)

const (
	// recentDiagonals is how many distances between new and old are remembered,
	// since alignment returns to them.
	recentDiagonals = 16
	hitLengths      = 14
	fieldKinds      = 8 // of package reference, and none
)

// code is the model's code of one delta: every method codes or decodes, as its
// coder does, so both sides are one text.
type code struct {
	c       *entropy.Coder
	numbers *entropy.Number
	gaps    *entropy.Number
	lengths *entropy.Number
	jumps   *entropy.Number
	far     *entropy.Number
	hits    *entropy.Number
	misses  *entropy.Bytes
	text    *entropy.Bytes // literals
	recent  []int          // distances, the latest first
	past    uint64         // the last eight literals

	counting bool     // encoder: runs are being collected
	runs     []uint32 // encoder: right predictions before each miss of the piece
	residual
}

func newCode(c *entropy.Coder, p Profile) *code {
	more := uint(0)
	if p == Slow {
		more = slowTables
	}
	return &code{
		c:       c,
		numbers: entropy.NewNumber(fieldCount),
		gaps:    entropy.NewNumber(hitLengths),
		lengths: entropy.NewNumber(hitLengths),
		jumps:   entropy.NewNumber(2),
		far:     entropy.NewNumber(2),
		hits:    entropy.NewNumber(fieldKinds * 4 * hitLengths),
		misses:  entropy.NewBytes(4*fieldKinds, 16, 18, 19+more, 19+more, 19+more, 19+more),
		text:    entropy.NewBytes(4, 16, 18+more, 18+more, 18+more, 18+more, 18+more),
	}
}

// number codes a number of at most limit; a greater one that is read is an error.
func (k *code) number(field int, v, limit int64) (int64, error) {
	got := k.numbers.Code(k.c, field, uint64(v))
	if got > uint64(limit) {
		return 0, k.wrong("number", got)
	}
	if err := k.c.Err(); err != nil {
		return 0, broken("code", err)
	}
	return int64(got), nil
}

func (k *code) signed(field int, v int64) (int64, error) {
	v = k.numbers.Signed(k.c, field, v)
	if err := k.c.Err(); err != nil {
		return 0, broken("code", err)
	}
	return v, nil
}

// wrong reports a value that no encoder writes, or why there was none.
func (k *code) wrong(what string, v any) error {
	if err := k.c.Err(); err != nil {
		return broken("code", err)
	}
	return fmt.Errorf("delta: %s %v is out of bounds: %w", what, v, ErrFormat)
}

// segments codes the segments of a piece of size bytes, whose old bytes are in
// total bytes of bases. The likest base begins at start.
func (k *code) segments(s []bindiff.Segment, size, total, start int) ([]bindiff.Segment, error) {
	n, err := k.number(fieldSegments, int64(len(s)), maxSegments)
	if err != nil {
		return nil, err
	}
	if k.c.Decoding() {
		s = nil // grows with what is really there
	}
	k.recent = append(k.recent[:0], start)
	end, before := 0, 0
	for i := range int(n) {
		var x bindiff.Segment
		if !k.c.Decoding() {
			x = s[i]
		}
		gap := k.gaps.Code(k.c, before, uint64(x.New-end))
		g := min(entropy.Length(gap), hitLengths-1)
		length := k.lengths.Code(k.c, g, uint64(x.Len))
		if gap > uint64(size-end) || length == 0 || length > uint64(size-end)-gap {
			return nil, k.wrong("segment of length", length)
		}
		x.New, x.Len = end+int(gap), int(length)
		diagonal := k.diagonal(x.Old - x.New)
		x.Old = x.New + diagonal
		if x.Old < 0 || x.Old > total-x.Len {
			return nil, k.wrong("place of old bytes", x.Old)
		}
		if k.c.Err() != nil {
			return nil, k.wrong("", 0)
		}
		if k.c.Decoding() {
			s = append(s, x)
		}
		end, before = x.New+x.Len, min(entropy.Length(length), hitLengths-1)
	}
	return s, nil
}

// diagonal codes a distance by its place among the recent ones or else by how
// far it is from the last one.
func (k *code) diagonal(d int) int {
	place := len(k.recent)
	for i, r := range k.recent {
		if r == d {
			place = i
			break
		}
	}
	if k.c.Decoding() {
		place = 0
	}
	place = int(k.jumps.Code(k.c, 0, uint64(place)))
	if place < len(k.recent) {
		d = k.recent[place]
	} else {
		place = len(k.recent)
		d = int(k.far.Signed(k.c, 0, int64(d-k.recent[0]))) + k.recent[0]
		if d < -1<<40 || d > 1<<40 {
			d = -1 << 40 // out of all bounds, and far from overflow
		}
		if len(k.recent) < recentDiagonals {
			k.recent = append(k.recent, 0)
		} else {
			place--
		}
	}
	copy(k.recent[1:place+1], k.recent[:place])
	k.recent[0] = d
	return d
}

// residual is the state between segments of a piece.
type residual struct {
	right   uint64 // predictions that are right before the next that is wrong
	pending bool   // the first prediction behind a miss is yet to come
	run     int    // misses in a row, up to now
	length  int    // bucket of right
	last    uint32 // how wrong the last four misses were, the latest lowest
	runLast uint32 // what last was when the run before this ended
	actual  uint32 // the last four bytes of the new content
	field   int    // kind of the reference that is being coded, plus 1; 0 if none
}

// startResidual begins a piece's residual.
func (k *code) startResidual() {
	k.residual = residual{pending: true, last: k.last, runLast: k.runLast}
}

// miss codes by how much a prediction is wrong, never 0.
func (k *code) miss(predicted, by byte) byte {
	if k.run == 0 {
		k.runLast = k.last
	}
	at := uint32(min(k.run, 3))
	field := uint32(k.field)
	contexts := [...]uint32{
		at | uint32(k.length)<<2 | field<<10,
		at | k.last&0xff<<2 | k.actual&0xff<<10,
		at | uint32(predicted)<<2 | k.last&0xff<<10,
		mixed(at|field<<4, k.last&0xffffff, k.runLast&0xffff),
		mixed(at+4|field<<4, k.runLast, uint32(predicted)),
		mixed(at+8, k.actual&0xffff, uint32(predicted)),
	}
	by = k.misses.Code(k.c, int(at|field<<2), contexts[:], by)
	k.last = k.last<<8 | uint32(by)
	k.run++
	return by
}

func mixed(a, b, c uint32) uint32 {
	h := a*0x9e3779b1 ^ b*0x85ebca6b ^ c*0xc2b2ae35
	return (h ^ h>>15) * 0x27d4eb2f >> 4
}

// count finds out how many predictions are right before each that is wrong, for
// encode, which has to say so before it. It returns the number of misses.
func (k *code) count(predicted, fresh []byte) (missed int) {
	for i, p := range predicted {
		if p == fresh[i] {
			k.right++
			continue
		}
		k.runs = append(k.runs, uint32(k.right))
		k.right = 0
		missed++
	}
	return missed
}

// startCount begins the counting of a piece, endCount ends it.
func (k *code) startCount() { k.runs, k.counting, k.right = k.runs[:0], true, 0 }

func (k *code) endCount() {
	k.runs, k.counting = append(k.runs, uint32(k.right)), false
}

// begin codes how many predictions are right, at the first behind a miss. The
// reference that begins there, if one does, is known to both sides.
func (k *code) begin() {
	if !k.pending {
		return
	}
	k.pending = false
	if !k.c.Decoding() {
		k.right, k.runs = uint64(k.runs[0]), k.runs[1:]
	}
	context := (k.field*4+min(k.run, 3))*hitLengths + k.length
	k.right = k.hits.Code(k.c, context, k.right)
	k.length = min(entropy.Length(k.right), hitLengths-1)
	if k.right > 0 {
		k.run = 0
	}
}

// some codes p, the prediction of fresh, and makes it fresh; decoding, it makes
// fresh of it.
func (k *code) some(p, fresh []byte) error {
	for i := 0; i < len(p); {
		k.begin()
		if k.right > 0 {
			n := min(uint64(len(p)-i), k.right)
			k.remember(p[i : i+int(n)])
			i += int(n)
			k.right -= n
			continue
		}
		by := byte(0)
		if !k.c.Decoding() {
			by = fresh[i] - p[i]
		}
		p[i] += k.miss(p[i], by)
		k.remember(p[i : i+1])
		i++
		k.pending = true
		if err := k.c.Err(); err != nil {
			return broken("code", err)
		}
	}
	return nil
}

// remember notes the last bytes of p, which is what was coded just now.
func (k *code) remember(p []byte) {
	for _, b := range p[max(0, len(p)-4):] {
		k.actual = k.actual<<8 | uint32(b)
	}
}

// endResidual ends the residual of a piece.
func (k *code) endResidual() error {
	k.begin()
	if k.right != 0 {
		return k.wrong("number of right predictions", k.right)
	}
	return nil
}

// bases codes the bases of a group, and a check over their content. The last
// group's last base was the one before *next.
func (k *code) bases(bases []span, have []*File, next *int) ([]span, error) {
	n, err := k.number(fieldBases, int64(len(bases)), int64(len(have))+maxSegments)
	if err != nil {
		return nil, err
	}
	if k.c.Decoding() {
		bases = nil
	}
	for i := range int(n) {
		var s span
		if !k.c.Decoding() {
			s = bases[i]
		}
		by, err := k.signed(fieldBase, int64(s.base-*next))
		if err != nil {
			return nil, err
		}
		if at := int64(*next) + by; by < -1<<32 || by > 1<<32 || at < 0 || at >= int64(len(have)) {
			return nil, k.wrong("number of a base", by)
		}
		s.base = *next + int(by)
		*next = s.base + 1
		size := have[s.base].Size
		if size > pieceSize {
			if s.off, err = k.number(fieldBaseOffset, s.off, size); err != nil {
				return nil, err
			}
			if s.length, err = k.number(fieldBaseLength, s.length, min(size-s.off, pieceSize)); err != nil {
				return nil, err
			}
		} else {
			s.length = size
		}
		if k.c.Decoding() {
			bases = append(bases, s)
		}
	}
	sum := check(have, bases)
	got := k.numbers.Code(k.c, fieldCheck, uint64(sum))
	if err := k.c.Err(); err != nil {
		return nil, broken("code", err)
	}
	if got != uint64(sum) {
		return nil, fmt.Errorf("delta: %s: %w", namesOfBases(have, bases), ErrBase)
	}
	return bases, nil
}

// namesOfBases says briefly which files are meant.
func namesOfBases(have []*File, bases []span) string {
	switch len(bases) {
	case 0:
		return "no bases"
	case 1:
		return have[bases[0].base].Path
	default:
		return fmt.Sprintf("%s or one of %d others", have[bases[0].base].Path, len(bases)-1)
	}
}

// literals codes bytes without counterpart, in place.
func (k *code) literals(p []byte) error {
	for i, b := range p {
		past := k.past
		contexts := [...]uint32{
			uint32(past & 0xff),
			uint32(past&0xffff) | 1<<16,
			mixed(uint32(past&0xffffff), 3, 0),
			mixed(uint32(past), 4, 0),
			mixed(uint32(past), uint32(past>>32&0xffff), 6),
			mixed(uint32(past>>8&0xffff), uint32(past>>24&0xff), 2),
		}
		p[i] = k.text.Code(k.c, int(past>>6&3), contexts[:], b)
		k.past = past<<8 | uint64(p[i])
	}
	if err := k.c.Err(); err != nil {
		return broken("code", err)
	}
	return nil
}
