package trace

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrDifferent says that traces can't be merged: they are of images with
// different numbers of layers.
var ErrDifferent = errors.New("traces of different images")

// Merge makes one trace of several. The result doesn't depend on their order.
//
// Reads are cut where any of the traces has a beginning or an end, so that all
// traces speak of the same pieces. A piece, or a look-up, has a rank in each
// trace: how many others came before it. A trace that lacks it ranks it last.
// The result has the pieces by the median of their ranks (of two medians, the
// lower), so one start in which something was late or early changes little.
// What the majority of traces lacks comes behind, what more of them have
// first, because a byte too many costs less than a round trip; fewer than
// least, and it is left out. Pieces of equal standing are ordered by layer,
// path and offset.
//
// Errors are ErrDifferent.
func Merge(least int, traces ...*Trace) (*Trace, error) {
	out := &Trace{Version: Version}
	cuts := cuts{}
	for i, t := range traces {
		if i > 0 && t.Layers != out.Layers {
			return nil, fmt.Errorf("trace: merge: %w: %s has %d layers, %s has %d", ErrDifferent, traces[0].Image, out.Layers, t.Image, t.Layers)
		}
		out.Layers = t.Layers
		cuts.collect(t)
	}
	cuts.sort()
	lists := make([][]item, len(traces))
	hints := map[item]Hint{}
	for i, t := range traces {
		lists[i] = cuts.apply(t, hints)
	}
	out.Image = common(traces, func(t *Trace) string { return t.Image }, ", ")
	out.Manifest = common(traces, func(t *Trace) string { return t.Manifest }, "")
	for _, it := range medianOrder(lists, least, item.compare) {
		out.add(it, hints[it])
	}
	return out, nil
}

// item is a piece that no trace cuts further, or a look-up.
type item struct {
	layer        int
	path         string
	kind         Kind
	offset, size int64
}

func (a item) compare(b item) int {
	return cmp.Or(cmp.Compare(a.layer, b.layer), cmp.Compare(a.path, b.path), cmp.Compare(a.offset, b.offset), cmp.Compare(a.kind, b.kind))
}

// add appends an item. Pieces without a hint that follow each other are one
// read.
func (t *Trace) add(it item, hint Hint) {
	if n := len(t.Reads); n > 0 && it.kind == Content && hint == (Hint{}) {
		last := &t.Reads[n-1]
		if last.Layer == it.layer && last.Path == it.path && last.Kind == Content && last.Chunk == (Hint{}) && last.Offset+last.Size == it.offset {
			last.Size += it.size
			return
		}
	}
	t.Reads = append(t.Reads, Read{Layer: it.layer, Path: it.path, Kind: it.kind, Offset: it.offset, Size: it.size, Chunk: hint})
}

type fileKey struct {
	layer int
	path  string
}

// cuts are the offsets at which the reads of each file begin and end.
type cuts map[fileKey][]int64

func (c cuts) collect(t *Trace) {
	for _, r := range t.Reads {
		if r.Kind == Content {
			k := fileKey{r.Layer, r.Path}
			c[k] = append(c[k], r.Offset, r.Offset+r.Size)
		}
	}
}

func (c cuts) sort() {
	for k, at := range c {
		slices.Sort(at)
		c[k] = slices.Compact(at)
	}
}

// apply returns the items of a trace, each once. It takes no longer than there
// are reads and cuts, however often a file is read.
func (c cuts) apply(t *Trace, hints map[item]Hint) []item {
	var list []item
	done := map[fileKey]skips{}
	for _, r := range t.Reads {
		if r.Kind != Content {
			list = append(list, item{layer: r.Layer, path: r.Path, kind: r.Kind})
			continue
		}
		k := fileKey{r.Layer, r.Path}
		if done[k] == nil {
			done[k] = skips{}
		}
		at, d := c[k], done[k]
		first, _ := slices.BinarySearch(at, r.Offset)
		for i := d.next(uint32(first)); at[i] < r.Offset+r.Size; i = d.next(i) {
			d[i] = i + 1
			it := item{layer: r.Layer, path: r.Path, offset: at[i], size: at[i+1] - at[i]}
			if r.Chunk != (Hint{}) && it.offset == r.Offset && it.size == r.Size {
				// Of different versions, the smaller, so that order is nothing.
				if old, ok := hints[it]; !ok || slices.Compare(r.Chunk[:], old[:]) < 0 {
					hints[it] = r.Chunk
				}
			}
			list = append(list, it)
		}
	}
	return list
}

// medianOrder orders what is in the lists as Merge says.
func medianOrder[K comparable](lists [][]K, least int, compare func(a, b K) int) []K {
	ranks := map[K][]int{}
	for _, list := range lists {
		seen := make(map[K]struct{}, len(list))
		for _, k := range list {
			if _, ok := seen[k]; !ok {
				ranks[k] = append(ranks[k], len(seen))
				seen[k] = struct{}{}
			}
		}
	}
	type standing struct {
		k      K
		behind bool // most lists lack it
		rank   int
		count  int
	}
	middle := (len(lists) - 1) / 2
	all := make([]standing, 0, len(ranks))
	for k, r := range ranks {
		if len(r) < least {
			continue
		}
		slices.Sort(r)
		s := standing{k: k, count: len(r)}
		if s.behind = len(r) <= middle; s.behind {
			s.rank = r[(len(r)-1)/2]
		} else {
			s.rank = r[middle]
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b standing) int {
		switch {
		case a.behind != b.behind:
			if b.behind {
				return -1
			}
			return 1
		case a.behind:
			return cmp.Or(cmp.Compare(b.count, a.count), cmp.Compare(a.rank, b.rank), compare(a.k, b.k))
		}
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(b.count, a.count), compare(a.k, b.k))
	})
	out := make([]K, len(all))
	for i := range all {
		out[i] = all[i].k
	}
	return out
}

// common returns what all traces say, or, if they differ, all that they say
// between sep; "" if that is "".
func common(traces []*Trace, get func(*Trace) string, sep string) string {
	var all []string
	for _, t := range traces {
		if s := get(t); s != "" {
			all = append(all, s)
		}
	}
	slices.Sort(all)
	all = slices.Compact(all)
	if len(all) > 1 && sep == "" {
		return ""
	}
	return strings.Join(all, sep)
}

// skips leads past the numbers that are done: each of them has one above it to
// go on from. Reads of one large file over and over then cost no more than one.
type skips map[uint32]uint32

// next returns the first number from c on that is not done.
func (s skips) next(c uint32) uint32 {
	for {
		to, ok := s[c]
		if !ok {
			return c
		}
		if further, ok := s[to]; ok {
			s[c] = further
		}
		c = to
	}
}
