package trace

import (
	"cmp"
	"slices"
	"strings"

	"github.com/airstream-io/airstream/internal/toc"
)

// Matcher finds what a trace means for images: for the one that it was recorded
// of, for later versions, for other platforms. It is safe for concurrent use.
//
// A read means, in this order:
//
//  1. the same place of the same path in the same layer, if the image has as
//     many layers as the one recorded, and that layer has the file;
//  2. the same place of the same path in the highest layer that has it, unless
//     a layer above hides it;
//  3. the same chunk, wherever it is now: a file that was moved or renamed, or
//     whose content went into another. The read must say which chunk it was.
//
// What is left means nothing.
type Matcher struct {
	t     *Trace
	hints map[Hint]struct{}
}

// NewMatcher returns a Matcher for t, which must not change any more.
func NewMatcher(t *Trace) *Matcher {
	m := &Matcher{t: t, hints: map[Hint]struct{}{}}
	for _, r := range t.Reads {
		if r.Chunk != (Hint{}) {
			m.hints[r.Chunk] = struct{}{}
		}
	}
	return m
}

// Match is what a trace has to do with one layer, whatever image that is in.
type Match struct {
	files map[string]standing // of the paths that are read; absent: nothing
	hits  map[int][]member    // by number of the read; members are where its bytes are
	byID  map[Hint]member     // the first chunk of the layer that has the hint
}

// standing is what a layer has at a path.
type standing uint8

const (
	nothing standing = iota
	regular          // the file
	hides            // something that keeps the layers below from showing there
)

// member is a gzip member of the layer's blob.
type member struct{ offset, size int64 }

// maxHits bounds what is kept of a layer, in members: 64 GiB of content.
const maxHits = 1 << 20

// Match looks at a layer. The tree is not used any more when it returns.
func (m *Matcher) Match(tree *toc.Tree) *Match {
	out := &Match{files: map[string]standing{}, hits: map[int][]member{}, byID: map[Hint]member{}}
	at := func(c uint32) member {
		mb := tree.Member(tree.Chunk(c).Member)
		return member{mb.Offset, mb.End - mb.Offset}
	}
	done := map[int]skips{} // chunks, by the layer that was recorded
	entries := map[string]uint32{}
	hits := 0
	for i, r := range m.t.Reads {
		if r.Kind != Content {
			continue
		}
		if _, ok := out.files[r.Path]; !ok {
			var s standing
			entries[r.Path], s = find(tree, r.Path)
			out.files[r.Path] = s
		}
		if out.files[r.Path] != regular {
			continue
		}
		entry := entries[r.Path]
		c, ok := tree.FindChunk(entry, r.Offset)
		if !ok {
			continue
		}
		d := done[r.Layer]
		if d == nil {
			d = skips{}
			done[r.Layer] = d
		}
		_, end := tree.Chunks(entry)
		for c = d.next(c); c < end && tree.Chunk(c).Offset < r.Offset+r.Size && hits < maxHits; c = d.next(c) {
			d[c] = c + 1
			hits++
			out.hits[i] = append(out.hits[i], at(c))
		}
	}
	if len(m.hints) > 0 {
		for c := range uint32(tree.NumChunks()) {
			h := HintOf(tree.Chunk(c).ID)
			if _, wanted := m.hints[h]; !wanted {
				continue
			}
			if _, ok := out.byID[h]; !ok {
				out.byID[h] = at(c)
			}
		}
	}
	return out
}

// Members returns the members that an Order may want of the layer, as runs without
// rank, sorted by Offset.
func (m *Match) Members() []Run {
	seen := map[member]struct{}{}
	for _, list := range m.hits {
		for _, mb := range list {
			seen[mb] = struct{}{}
		}
	}
	for _, mb := range m.byID {
		seen[mb] = struct{}{}
	}
	out := make([]Run, 0, len(seen))
	for mb := range seen {
		out = append(out, Run{Offset: mb.offset, Size: mb.size})
	}
	slices.SortFunc(out, func(a, b Run) int { return cmp.Compare(a.Offset, b.Offset) })
	return out
}

// find returns the regular file at a path, or what the layer has there else.
func find(tree *toc.Tree, path string) (entry uint32, s standing) {
	if opaque(tree, toc.Root) {
		s = hides
	}
	names := strings.Split(strings.Trim(path, "/"), "/")
	for i, name := range names {
		next, ok := tree.Lookup(entry, name)
		if !ok {
			return 0, s
		}
		mode := tree.Attr(next).Mode & toc.TypeMask
		switch {
		case i == len(names)-1 && mode == toc.TypeRegular:
			return next, regular
		case i == len(names)-1 || mode != toc.TypeDir:
			return 0, hides // a whiteout, or something else by that name
		case opaque(tree, next):
			s = hides
		}
		entry = next
	}
	return 0, s
}

func opaque(tree *toc.Tree, dir uint32) bool {
	_, ok := tree.Xattr(dir, "trusted.overlay.opaque")
	return ok
}

// Order is what a trace wants of an image, first things first.
type Order []want

// want is a member that is wanted.
type want struct {
	piece
	rank uint32
}

type piece struct {
	layer int
	member
}

// windowSize is how much of the order is given up for fewer, longer runs:
// reads whose pieces together have this many bytes of the blobs are fetched in
// the order of the blob. It is what a 2 Mbit/s link carries in one second.
const windowSize = 256 << 10

// Order returns what the trace wants of an image, given what it has to do with
// each of its layers, from the lowest; nil stands for one that is not lazy.
func (m *Matcher) Order(layers []*Match) Order {
	var (
		order  Order
		rank   uint32
		window int64 // bytes of all layers, estimated by content, since the rank began
		chosen = map[fileKey]int{}
		seen   = map[piece]struct{}{}
	)
	add := func(layer int, mb member) {
		p := piece{layer, mb}
		if _, ok := seen[p]; !ok {
			seen[p] = struct{}{}
			order = append(order, want{p, rank})
		}
	}
	for i, r := range m.t.Reads {
		if r.Kind != Content {
			continue
		}
		if window > windowSize {
			rank, window = uint32(i), 0
		}
		window += r.Size / 3 // executables and scripts compress to about a third
		k := fileKey{r.Layer, r.Path}
		layer, ok := chosen[k]
		if !ok {
			layer = choose(layers, r, len(layers) == m.t.Layers)
			chosen[k] = layer
		}
		if layer >= 0 {
			for _, mb := range layers[layer].hits[i] {
				add(layer, mb)
			}
			continue
		}
		for n, l := range layers {
			if l == nil || r.Chunk == (Hint{}) {
				continue
			}
			if mb, ok := l.byID[r.Chunk]; ok {
				add(n, mb)
				break
			}
		}
	}
	return order
}

// choose returns the layer whose file a read means, -1 if there is none.
func choose(layers []*Match, r Read, sameCount bool) int {
	if sameCount && layers[r.Layer] != nil && layers[r.Layer].files[r.Path] == regular {
		return r.Layer
	}
	for n, l := range slices.Backward(layers) {
		if l == nil {
			continue
		}
		switch l.files[r.Path] {
		case regular:
			return n
		case hides:
			return -1
		case nothing:
		}
	}
	return -1
}

// Plans returns the plans of an image's layers, from the lowest, for one order
// or several: those of several traces are merged as Merge does, member by
// member. The plans belong together: their ranks come from one order. Of a plan
// that would be too long for an annotation, the end is left out.
func Plans(layers int, orders ...Order) []Plan {
	order := merged(orders)
	plans := make([]Plan, layers)
	for _, w := range order {
		plans[w.layer] = append(plans[w.layer], Run{Rank: w.rank, Offset: w.offset, Size: w.size})
	}
	for i, p := range plans {
		slices.SortFunc(p, func(a, b Run) int { return cmp.Or(cmp.Compare(a.Rank, b.Rank), cmp.Compare(a.Offset, b.Offset)) })
		p = p.join()
		plans[i] = p[:min(len(p), maxRuns)]
	}
	return plans
}

func merged(orders []Order) Order {
	if len(orders) == 1 {
		return orders[0]
	}
	lists := make([][]piece, len(orders))
	for i, o := range orders {
		for _, w := range o {
			lists[i] = append(lists[i], w.piece)
		}
	}
	var (
		out    Order
		rank   uint32
		window int64
	)
	for i, p := range medianOrder(lists, 1, piece.compare) {
		if window > windowSize {
			rank, window = uint32(i), 0
		}
		window += p.size
		out = append(out, want{p, rank})
	}
	return out
}

func (a piece) compare(b piece) int {
	return cmp.Or(cmp.Compare(a.layer, b.layer), cmp.Compare(a.offset, b.offset), cmp.Compare(a.size, b.size))
}

// Files returns the paths whose content a start reads of one layer of an image,
// for one trace or several, first things first. It needs no table of contents:
// of an image with another number of layers than a trace's all paths of that
// trace are named, and the layer may have none of them.
func Files(layer, count int, traces ...*Trace) []string {
	lists := make([][]string, len(traces))
	for i, t := range traces {
		for _, r := range t.Reads {
			if r.Kind == Content && (count != t.Layers || r.Layer == layer) {
				lists[i] = append(lists[i], r.Path)
			}
		}
	}
	return medianOrder(lists, 1, strings.Compare)
}
