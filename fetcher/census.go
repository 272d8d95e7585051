package fetcher

import (
	"cmp"
	"encoding/binary"
	"log/slog"
	"slices"
	"sort"
	"sync"

	"github.com/airstream-io/airstream/internal/toc"
)

// What is here of a layer is kept in memory, a bit for each chunk, with sums
// over it: the store would have to be asked about every file, and who looks at
// fifty images of 20,000 files each second has no time for that. The bits are
// filled from the store once, when somebody wants to know, and kept true as
// chunks arrive: through this layer or through any other that shares the file.
// A bit that is not set proves nothing until the layer has been counted, so
// before anything is asked for the store has the last word.

// census is what is known to be here of a layer. Guarded by Fetcher.mu.
type census struct {
	tally
	epoch uint64 // the Fetcher's when it was counted; 0: never
	files fileIndex

	counting sync.Mutex // held while it is counted
}

// tally is what is here of a layer.
type tally struct {
	have    []uint64 // bit set: chunks
	total   int64    // bytes in files
	missing int64    // of these
	blob    int64    // bytes of the blob that hold them
	hot     int64    // bytes in files, of members that plans name
	cold    int64    // of these, missing
	wire    int64    // bytes of the blob that would cross: members of which anything is missing
}

// maxIndexed bounds the files of incomplete layers that are indexed, at 12
// bytes each. Files of others that arrive through another layer are noticed
// when they are looked for, and by the next count.
const maxIndexed = 2 << 20

// fileIndex finds files by their object: sorted by key, the first 8 bytes of
// its ID.
type fileIndex struct {
	keys    []uint64
	entries []uint32
}

func keyOf(id toc.ObjectID) uint64 { return binary.BigEndian.Uint64(id[:]) }

// tallyOf returns the tally of a layer of which nothing is here as far as is
// known.
func tallyOf(t *toc.Tree) tally {
	n := tally{have: make([]uint64, (t.NumChunks()+63)/64)}
	for c := range uint32(t.NumChunks()) {
		n.total += int64(t.Chunk(c).Size)
	}
	for m := range uint32(t.NumMembers()) {
		n.blob += memberSize(t, m)
	}
	n.missing, n.wire = n.total, n.blob
	return n
}

func memberSize(t *toc.Tree, m uint32) int64 { k := t.Member(m); return k.End - k.Offset }

func (n *tally) has(c uint32) bool { return has(n.have, c) }

// set notes that a chunk is here. f.mu is held.
func (n *tally) set(l *layer, c uint32) {
	if n.has(c) {
		return
	}
	n.have[c/64] |= 1 << (c % 64)
	k := l.tree.Chunk(c)
	n.missing -= int64(k.Size)
	if has(l.planned, k.Member) {
		n.cold -= int64(k.Size)
	}
	if n.hasMember(l.tree, k.Member) {
		n.wire -= memberSize(l.tree, k.Member)
	}
}

// unset notes that a chunk is not here after all. f.mu is held.
func (n *tally) unset(l *layer, c uint32) {
	if !n.has(c) {
		return
	}
	k := l.tree.Chunk(c)
	if n.hasMember(l.tree, k.Member) {
		n.wire += memberSize(l.tree, k.Member)
	}
	n.have[c/64] &^= 1 << (c % 64)
	n.missing += int64(k.Size)
	if has(l.planned, k.Member) {
		n.cold += int64(k.Size)
	}
}

// hasMember tells whether all chunks of a member are here. They mostly arrive
// in their order, so the last is looked at first.
func (n *tally) hasMember(t *toc.Tree, m uint32) bool {
	first, end := t.MemberChunks(m)
	for c := end; c > first; c-- {
		if !n.has(c - 1) {
			return false
		}
	}
	return true
}

// planMembers adds members to the hot set. f.mu is held.
func (l *layer) planMembers(first, end uint32) {
	if l.planned == nil {
		l.planned = make([]uint64, (l.tree.NumMembers()+63)/64)
	}
	for m := first; m < end; m++ {
		if has(l.planned, m) {
			continue
		}
		l.planned[m/64] |= 1 << (m % 64)
		begin, last := l.tree.MemberChunks(m)
		for c := begin; c < last; c++ {
			if !l.identified(c) {
				continue
			}
			size := int64(l.tree.Chunk(c).Size)
			l.census.hot += size
			if !l.census.has(c) {
				l.census.cold += size
			}
		}
	}
}

// count looks up what the store has of a layer, unless that is known. The
// layer's tree is here. f.mu is not held.
func (f *Fetcher) count(l *layer) {
	n := &l.census
	n.counting.Lock()
	defer n.counting.Unlock()
	for {
		f.mu.Lock()
		epoch := f.epoch
		if n.epoch == epoch {
			f.mu.Unlock()
			return
		}
		f.forgetCount(l)
		f.mu.Unlock()
		if f.countFrom(l, epoch) {
			return
		}
	}
}

// countFrom counts a layer, and tells whether the count still holds. The index
// comes first: what arrives from then on sets its bit by itself.
func (f *Fetcher) countFrom(l *layer, epoch uint64) bool {
	t := l.tree
	var x fileIndex
	for entry := range uint32(t.Len()) {
		if first, end := t.Chunks(entry); first < end && t.Known(entry) {
			x.entries, x.keys = append(x.entries, entry), append(x.keys, keyOf(t.ObjectID(entry)))
		}
	}
	sort.Sort(x)
	f.mu.Lock()
	f.index(l, x)
	f.mu.Unlock()

	var here []uint32 // chunks
	apply := func(last bool) bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.epoch != epoch {
			return false
		}
		for _, c := range here {
			l.census.set(l, c)
		}
		here = here[:0]
		if last {
			l.census.epoch = epoch
			f.settled(l)
		}
		return true
	}
	for _, entry := range x.entries {
		first, end := t.Chunks(entry)
		id := t.ObjectID(entry)
		missing, doubt := f.store.HasObject(id, end-first)
		if doubt {
			// What is not known to be here would cross again.
			if err := f.store.Settle(f.run, t, entry); err != nil && f.run.Err() == nil {
				f.log.Warn("a file is not looked through; what may be in it is fetched again", slog.String("layer", l.Blob.String()), slog.Any("error", err))
			}
			missing, _ = f.store.HasObject(id, end-first)
		}
		for c := first; c < end && missing < end-first; c++ {
			if missing == 0 || f.store.HasChunk(id, end-first, c-first) {
				here = append(here, c)
			}
		}
		if len(here) > 4096 && !apply(false) {
			return false
		}
	}
	return apply(true)
}

// index takes an index of a layer into use, if there is room for it. f.mu is
// held.
func (f *Fetcher) index(l *layer, x fileIndex) {
	if f.indexed+len(x.keys) > maxIndexed {
		return
	}
	f.indexed += len(x.keys)
	l.census.files = x
	f.incomplete = append(f.incomplete, l)
}

// settled drops the index of a layer that is complete. f.mu is held.
func (f *Fetcher) settled(l *layer) {
	if l.census.missing == 0 && l.census.files.keys != nil {
		f.unindex(l)
	}
}

func (f *Fetcher) unindex(l *layer) {
	f.indexed -= len(l.census.files.keys)
	l.census.files = fileIndex{}
	f.incomplete = slices.DeleteFunc(f.incomplete, func(o *layer) bool { return o == l })
}

// forgetCount makes a layer one of which nothing is known. f.mu is held.
func (f *Fetcher) forgetCount(l *layer) {
	f.unindex(l)
	n := &l.census
	clear(n.have)
	n.missing, n.cold, n.wire, n.epoch = n.total, n.hot, n.blob, 0
}

// arrived notes a piece in every layer that has it. f.mu is held.
func (f *Fetcher) arrived(p piece) {
	key := keyOf(p.object)
	for _, l := range slices.Backward(f.incomplete) { // settled takes some out
		x := &l.census.files
		k, _ := slices.BinarySearch(x.keys, key)
		for ; k < len(x.keys) && x.keys[k] == key; k++ {
			if entry := x.entries[k]; l.tree.ObjectID(entry) == p.object {
				first, _ := l.tree.Chunks(entry)
				l.census.set(l, first+p.index)
			}
		}
		f.settled(l)
	}
}

// Recount tells that content was deleted, or found damaged, behind the
// fetcher's back: what is here is counted anew.
func (f *Fetcher) Recount() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.epoch++
	for _, l := range f.layers {
		if l.tree != nil {
			f.forgetCount(l)
		}
	}
}

// Len implements sort.Interface.
func (x fileIndex) Len() int { return len(x.keys) }

// Less implements sort.Interface.
func (x fileIndex) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(x.keys[i], x.keys[j]), cmp.Compare(x.entries[i], x.entries[j])) < 0
}

// Swap implements sort.Interface.
func (x fileIndex) Swap(i, j int) {
	x.keys[i], x.keys[j] = x.keys[j], x.keys[i]
	x.entries[i], x.entries[j] = x.entries[j], x.entries[i]
}
