// Package suffix finds the longest match of a string in a text, wherever in the
// text it is, by a suffix array. The array takes 4 bytes for each byte of the
// text, a table of prefixes up to 64 MiB more, and building it about 0.2 s a
// megabyte; a look-up costs about a microsecond.
package suffix

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
)

// MaxText is the longest text that can be sorted, in bytes.
const MaxText = math.MaxInt32 - 1

func trailing(w uint64) int { return bits.TrailingZeros64(w) }

// Array returns the starts of text's suffixes in the order of the suffixes. It
// fails if the text is longer than MaxText.
func Array(text []byte) ([]int32, error) {
	if len(text) > MaxText {
		return nil, fmt.Errorf("suffix: a text of %d bytes, at most %d can be sorted", len(text), MaxText)
	}
	sa := make([]int32, len(text))
	sortSuffixes(text, sa, 256)
	return sa, nil
}

// Text is a text that can be searched. Searches may run concurrently.
type Text struct {
	text  []byte
	order []int32
	// first[p] is the rank of the first suffix that begins with the prefix p, of
	// width bytes, or with a greater one.
	first []int32
	width int
}

// New sorts text, which must not change as long as the result is used.
func New(text []byte) (*Text, error) {
	t := new(Text)
	return t, t.Reset(text)
}

// Reset makes t the index of another text, in the memory that it has where that
// is enough.
func (t *Text) Reset(text []byte) error {
	if len(text) > MaxText {
		return fmt.Errorf("suffix: a text of %d bytes, at most %d can be sorted", len(text), MaxText)
	}
	t.text, t.width = text, 1
	t.order = sized(t.order, len(text))
	sortSuffixes(text, t.order, 256)
	switch {
	case len(text) > 8<<20:
		t.width = 3
	case len(text) > 64<<10:
		t.width = 2
	}
	t.first = sized(t.first, 1<<(8*t.width)+1)
	clear(t.first)
	// Suffixes shorter than a prefix stand before all that continue them.
	for i := range text {
		t.first[prefix(text[i:], t.width)+1]++
	}
	sum := int32(0)
	for p, n := range t.first {
		sum += n
		t.first[p] = sum
	}
	return nil
}

// sized returns a slice of n, s if that is long enough.
func sized(s []int32, n int) []int32 {
	if cap(s) >= n {
		return s[:n]
	}
	return make([]int32, n)
}

// prefix reads the first width bytes of p as a number, missing ones as 0.
func prefix(p []byte, width int) int {
	v := 0
	for i := range width {
		v <<= 8
		if i < len(p) {
			v |= int(p[i])
		}
	}
	return v
}

// neighbours is how many suffixes on each side of the best one are looked at for
// one that is as good and nearer. (Guess.)
const neighbours = 16

// Longest returns where in the text the longest prefix of p is, and how long it
// is, 0 if not even its first byte occurs. No more than limit bytes are compared.
// Among equals it prefers the one near the position near.
func (t *Text) Longest(p []byte, near, limit int) (at, length int) {
	if len(p) > limit {
		p = p[:limit]
	}
	if len(p) < t.width {
		return 0, 0
	}
	b := prefix(p, t.width)
	lo, hi := int(t.first[b]), int(t.first[b+1])-1
	if lo > hi {
		return 0, 0 // shorter than a prefix: of no use to anybody
	}
	from, to := lo, hi
	left, right := t.common(p, lo), t.common(p, hi)
	for hi-lo > 1 {
		mid := int(uint(lo+hi) >> 1)
		known := min(left, right)
		l := known + Common(p[known:], t.text[int(t.order[mid])+known:])
		if l == len(p) {
			lo, left, hi, right = mid, l, mid, l
			break
		}
		s := int(t.order[mid]) + l
		if s < len(t.text) && t.text[s] > p[l] {
			hi, right = mid, l
		} else {
			lo, left = mid, l
		}
	}
	best, length := lo, left
	if right > left {
		best, length = hi, right
	}
	at = int(t.order[best])
	distance := abs(at - near)
	for _, step := range [...]int{-1, 1} {
		for k, i := 0, best+step; k < neighbours && i >= from && i <= to; k, i = k+1, i+step {
			s := int(t.order[i])
			if d := abs(s - near); d < distance {
				if t.common(p, i) < length {
					break
				}
				at, distance = s, d
			}
		}
	}
	return at, length
}

func (t *Text) common(p []byte, rank int) int { return Common(p, t.text[t.order[rank]:]) }

// Common returns how many bytes a and b have in common from their start.
func Common(a, b []byte) int {
	n := min(len(a), len(b))
	i := 0
	for ; i+8 <= n; i += 8 {
		if x := binary.LittleEndian.Uint64(a[i:]) ^ binary.LittleEndian.Uint64(b[i:]); x != 0 {
			return i + bits.TrailingZeros64(x)>>3
		}
	}
	for i < n && a[i] == b[i] {
		i++
	}
	return i
}

func abs(x int) int { return max(x, -x) }
