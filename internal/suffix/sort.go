package suffix

import "slices"

// symbol is what a text is made of: bytes at the top, names of substrings in
// the recursion.
type symbol interface{ byte | int32 }

// sorter sorts the suffixes of text by induced sorting (SA-IS: Nong, Zhang and
// Chan, "Two Efficient Algorithms for Linear Time Suffix Array Construction",
// 2011). The suffixes that start at local minima are sorted first, by recursion
// over their names; the order of all others follows from theirs in two passes.
type sorter[T symbol] struct {
	text   []T
	sa     []int32   // as long as text
	counts []int32   // how often each symbol occurs
	bucket []int32   // a cursor into the bucket of each symbol
	minima positions // positions of local minima: smaller than what precedes them
}

// positions is a set of positions.
type positions []uint64

func (b positions) set(i int32)      { b[i>>6] |= 1 << (i & 63) }
func (b positions) has(i int32) bool { return b[i>>6]>>(i&63)&1 != 0 }

// sortSuffixes fills sa with the suffixes of text in order. Symbols are less
// than alphabet; len(sa) is len(text).
func sortSuffixes[T symbol](text []T, sa []int32, alphabet int) {
	n := len(text)
	if n < 2 {
		clear(sa)
		return
	}
	s := &sorter[T]{text: text, sa: sa, counts: make([]int32, alphabet), bucket: make([]int32, alphabet), minima: make(positions, (n+63)/64)}
	for _, c := range text {
		s.counts[c]++
	}
	m := s.findMinima()
	if m > 1 {
		s.placeMinima()
		s.induce()
		s.orderMinima(m)
	}
	s.spreadMinima(m)
	s.induce()
}

// findMinima marks the local minima and returns how many there are.
func (s *sorter[T]) findMinima() int {
	m, rising := 0, false // rising: the suffix at i+1 is smaller than the one at i+2
	for i := len(s.text) - 2; i >= 0; i-- {
		switch a, b := s.text[i], s.text[i+1]; {
		case a < b:
			rising = true
		case a > b && rising:
			s.minima.set(int32(i + 1))
			m++
			rising = false
		}
	}
	return m
}

// starts points each bucket's cursor at its first slot, ends behind its last.
func (s *sorter[T]) starts() {
	sum := int32(0)
	for c, n := range s.counts {
		s.bucket[c] = sum
		sum += n
	}
}

func (s *sorter[T]) ends() {
	sum := int32(0)
	for c, n := range s.counts {
		sum += n
		s.bucket[c] = sum
	}
}

// placeMinima puts the local minima at the ends of their buckets, in any order.
func (s *sorter[T]) placeMinima() {
	clear(s.sa)
	s.ends()
	for w, word := range s.minima {
		for ; word != 0; word &= word - 1 {
			i := int32(w<<6 + trailing(word))
			c := s.text[i]
			s.bucket[c]--
			s.sa[s.bucket[c]] = i
		}
	}
}

// spreadMinima takes the first m slots, which hold the local minima in order,
// and puts them at the ends of their buckets, everything else being empty.
func (s *sorter[T]) spreadMinima(m int) {
	if m == 1 {
		s.placeMinima()
		return
	}
	clear(s.sa[m:])
	s.ends()
	for k := m - 1; k >= 0; k-- {
		i := s.sa[k]
		s.sa[k] = 0
		c := s.text[i]
		s.bucket[c]--
		s.sa[s.bucket[c]] = i
	}
}

// induce orders all suffixes from the local minima at the ends of the buckets.
//
// What a pass has no more to do with is kept complemented, so that it needs no
// look at the text: in the first, suffixes whose predecessor rises to them; in
// the second, those whose predecessor falls. An empty slot is 0, and so is the
// first suffix, which has no predecessor.
func (s *sorter[T]) induce() {
	text, sa, bucket := s.text, s.sa, s.bucket
	s.starts()
	last := int32(len(text) - 1) // smaller than all that starts alike
	c := text[last]
	if text[last-1] < c {
		sa[bucket[c]] = ^last
	} else {
		sa[bucket[c]] = last
	}
	bucket[c]++
	for i := range sa {
		j := sa[i]
		if j <= 0 {
			sa[i] = ^j
			continue
		}
		sa[i] = ^j
		j--
		c := text[j]
		b := bucket[c]
		bucket[c] = b + 1
		if j > 0 && text[j-1] < c {
			sa[b] = ^j
		} else {
			sa[b] = j
		}
	}
	s.ends()
	for i := len(sa) - 1; i >= 0; i-- {
		j := sa[i]
		if j <= 0 {
			sa[i] = ^j
			continue
		}
		j--
		c := text[j]
		b := bucket[c] - 1
		bucket[c] = b
		if j == 0 || text[j-1] > c {
			sa[b] = ^j
		} else {
			sa[b] = j
		}
	}
}

// orderMinima takes the m local minima, whose first stretches (up to the next
// minimum) are in order in sa, and leaves them wholly in order in sa[:m].
func (s *sorter[T]) orderMinima(m int) {
	sa := s.sa
	k := 0
	for _, i := range sa {
		if s.minima.has(i) {
			sa[k] = i
			k++
		}
	}
	// How long each minimum's stretch is, both ends included. Two minima are
	// never neighbours, so half the positions are room enough.
	rest := sa[m:]
	clear(rest)
	end := int32(len(s.text)) // the last one reaches to the end and is unlike all others
	for i := int32(len(s.text) - 1); i >= 0; i-- {
		if s.minima.has(i) {
			rest[i>>1] = end - i + 1
			end = i
		}
	}
	names := s.nameMinima(sa[:m], rest)
	// The names in the order of the text, at the end of the array.
	reduced := sa[len(sa)-m:]
	w := len(sa)
	for _, name := range slices.Backward(rest) { // the names never overtake what is read
		if name != 0 {
			w--
			sa[w] = name - 1
		}
	}
	if names < m {
		sortSuffixes(reduced, sa[:m], names)
	} else {
		for i, name := range reduced {
			sa[name] = int32(i)
		}
	}
	// From the number of a minimum back to its position.
	k = 0
	for w, word := range s.minima {
		for ; word != 0; word &= word - 1 {
			reduced[k] = int32(w<<6 + trailing(word))
			k++
		}
	}
	for i, r := range sa[:m] {
		sa[i] = reduced[r]
	}
}

// nameMinima replaces the lengths in room by names from 1 on, equal for equal
// stretches and in their order, and returns how many there are.
func (s *sorter[T]) nameMinima(ordered, room []int32) int {
	names := int32(0)
	previous, length := int32(-1), int32(0)
	n := int32(len(s.text))
	for _, i := range ordered {
		l := room[i>>1]
		same := l == length && i+l <= n && previous+l <= n
		for d := int32(0); same && d < l; d++ {
			same = s.text[i+d] == s.text[previous+d]
		}
		if !same {
			names++
			previous, length = i, l
		}
		room[i>>1] = names
	}
	return int(names)
}
