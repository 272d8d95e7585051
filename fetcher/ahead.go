package fetcher

import (
	"slices"
	"sync/atomic"

	"github.com/airstream-io/airstream/internal/toc"
)

// Reading ahead
//
// A reader that misses waits for one round trip and few bytes; then it thinks,
// misses again, and meanwhile the link is idle. On a satellite that idleness is
// most of the time, and what fills it costs no time. What is likely to be read
// next was measured on starts of Python and node.js applications in chunks of
// 64 KiB (Nov 2026): of libc 29 of 30 were read, of python3.11 86 of 104, of
// libcrypto 61 of 73; and of small files mostly their neighbours, too, though
// not in the order of names.
//
// So what is read ahead are units: the file that was missed, from the missed
// chunk on and around, and the small files of its directory and of the
// directories above that. Each unit may bring a little unasked and more as its
// content is really read; a directory that nobody uses soon stops costing. The
// unit that was missed last goes first. In a model of the two starts, over 600 ms
// and 2 Mbit/s without loss, this takes 104 and 131 s, where files alone take 291
// and 286 s, and no reading ahead 499 and 694 s; docs/benchmarks.md has what it
// takes on an emulated link with loss.
const (
	fileFloor = 512 << 10 // bytes of the blob that a file may bring unasked
	fileGrow  = 3         // and how many more for each byte of it that is read
	dirFloor  = 192 << 10
	dirGrow   = 8

	smallChunks = 4    // files up to this count for directories
	maxLevels   = 4    // directories above a file that are looked at
	minDepth    = 1    // a layer's root, and what is right below it, are too much
	maxUnits    = 4096 // that are remembered

	maxAhead = 4 // requests at a time: one alone is throttled by loss (facts: links)
)

// unit is a file or directory that is read ahead.
type unit struct {
	l       *layer
	members []uint32 // sorted
	next    int      // index into members
	left    int      // of them to look at
	floor   int64    // bytes
	grow    int64
	used    int64 // bytes of the blob whose content readers asked for
	asked   int64 // bytes of the blob that were asked for ahead of them
}

type unitKey struct {
	slot  uint32
	entry uint32
}

// ahead is what is read ahead. Everything in it is guarded by Fetcher.mu.
type ahead struct {
	units  map[unitKey]*unit
	recent []*unit // with something left, the one missed last at the end
}

// forget drops the units of a layer. Fetcher.mu is held.
func (a *ahead) forget(l *layer) {
	a.recent = slices.DeleteFunc(a.recent, func(u *unit) bool { return u.l.standing == l.standing })
	for key := range a.units {
		if key.slot == l.Slot {
			delete(a.units, key)
		}
	}
}

// known is what a layer's readers have shown of it.
type known struct {
	dirOf   []uint32        // entry to the directory that it is in
	touched []atomic.Uint64 // bit set: chunks that a reader asked for
}

func has(set []uint64, i uint32) bool { return int(i/64) < len(set) && set[i/64]>>(i%64)&1 == 1 }

// known returns what readers have shown of a layer whose tree is here.
func (l *layer) known() *known {
	l.seenOnce.Do(func() {
		l.seen = &known{
			dirOf:   make([]uint32, l.tree.Len()),
			touched: make([]atomic.Uint64, (l.tree.NumChunks()+63)/64),
		}
		for dir := range uint32(l.tree.Len()) {
			for k := range l.tree.NumChildren(dir) {
				_, e := l.tree.Child(dir, k)
				l.seen.dirOf[e] = dir
			}
		}
	})
	return l.seen
}

// touch notes that a chunk was asked for, and tells whether that is new.
func (k *known) touch(c uint32) bool {
	bit := uint64(1) << (c % 64)
	return k.touched[c/64].Load()&bit == 0 && k.touched[c/64].Or(bit)&bit == 0
}

// unitsOf returns the units that a chunk belongs to: its file's first, then
// those of the directories above. f.mu is held.
func (f *Fetcher) unitsOf(l *layer, c uint32) []*unit {
	entry := l.tree.ChunkFile(c)
	units := append(make([]*unit, 0, maxLevels+1), f.unit(l, entry, fileFloor, fileGrow))
	first, end := l.tree.Chunks(entry)
	if end-first > smallChunks {
		return units
	}
	dir := l.known().dirOf[entry]
	for range maxLevels {
		if depth(l.tree, dir) <= minDepth {
			break
		}
		units = append(units, f.unit(l, dir, dirFloor, dirGrow))
		dir = l.tree.Parent(dir)
	}
	return units
}

func depth(t *toc.Tree, dir uint32) int {
	n := 0
	for ; dir != toc.Root; dir = t.Parent(dir) {
		n++
	}
	return n
}

func (f *Fetcher) unit(l *layer, entry uint32, floor, grow int64) *unit {
	key := unitKey{l.Slot, entry}
	u, ok := f.queue.ahead.units[key]
	if !ok {
		if len(f.queue.ahead.units) >= maxUnits || f.queue.ahead.units == nil {
			f.queue.ahead = ahead{units: map[unitKey]*unit{}}
		}
		u = &unit{l: l, floor: floor, grow: grow, members: membersOf(l.tree, entry)}
		f.queue.ahead.units[key] = u
	}
	return u
}

// membersOf returns the members that hold a file, or the small files at and
// below a directory.
func membersOf(t *toc.Tree, entry uint32) []uint32 {
	var members []uint32
	add := func(e uint32) {
		first, end := t.Chunks(e)
		for c := first; c < end; c++ {
			members = append(members, t.Chunk(c).Member)
		}
	}
	if t.NumChildren(entry) == 0 {
		add(entry)
	}
	stack := []uint32{entry}
	for len(stack) > 0 {
		dir := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for k := range t.NumChildren(dir) {
			_, e := t.Child(dir, k)
			if t.Attr(e).Mode&toc.TypeMask == toc.TypeDir {
				stack = append(stack, e)
			} else if first, end := t.Chunks(e); end-first <= smallChunks {
				add(e)
			}
		}
	}
	slices.Sort(members)
	return slices.Compact(members)
}

// used tells that somebody reads chunks [from, to] of a layer.
func (f *Fetcher) used(l *layer, from, to uint32) {
	seen := l.known()
	for c := from; c <= to; c++ {
		if seen.touch(c) { // reads of what is known take no lock
			f.usedFirst(l, c)
		}
	}
}

func (f *Fetcher) usedFirst(l *layer, c uint32) {
	f.diary.read(l.Slot, c)
	f.mu.Lock()
	defer f.mu.Unlock()
	m := memberSize(l.tree, l.tree.Chunk(c).Member)
	for _, u := range f.unitsOf(l, c) {
		u.used += m
	}
}

// missed tells that a reader waits for chunk c: what it belongs to is read
// ahead, from there on. A miss within a hot set says nothing: the plan knows
// better what comes next. f.mu is held.
func (f *Fetcher) missed(l *layer, c uint32) {
	member := l.tree.Chunk(c).Member
	if has(l.planned, member) {
		return
	}
	for _, u := range slices.Backward(f.unitsOf(l, c)) {
		i, ok := slices.BinarySearch(u.members, member)
		if !ok {
			continue
		}
		u.next, u.left = i, len(u.members)
		f.queue.ahead.recent = append(slices.DeleteFunc(f.queue.ahead.recent, func(o *unit) bool { return o == u }), u)
	}
}

// nextAhead plans the next request ahead of the readers, or returns nil if
// there is none to make now. f.mu is held.
func (f *Fetcher) nextAhead(r *round) *transfer {
	budget := maxScan
	for _, u := range slices.Backward(slices.Clone(f.queue.ahead.recent)) {
		tk := f.ticketAt(u.l, Ahead, r)
		if tk == nil {
			continue
		}
		if t := f.stepAhead(u, &budget); t != nil {
			t.ticket = tk
			return t
		}
		tk.discard()
		if u.left <= 0 {
			f.queue.ahead.recent = slices.DeleteFunc(f.queue.ahead.recent, func(o *unit) bool { return o == u })
		}
		if budget <= 0 {
			r.later(r.now)
			return nil
		}
	}
	return nil
}

// stepAhead plans the next request of one unit; nil if it has none now.
func (f *Fetcher) stepAhead(u *unit, budget *int) *transfer {
	for u.left > 0 && *budget > 0 && u.asked <= u.floor+u.grow*u.used {
		*budget--
		i := u.next
		// Members that follow each other make one range.
		run := 1
		for i+run < len(u.members) && run < u.left && u.members[i+run] == u.members[i]+uint32(run) {
			run++
		}
		t := f.plan(u.l, u.members[i], int(u.members[i])+run, f.aheadSpan(), Ahead, piece{})
		n := max(1, int(t.end-t.first))
		u.next, u.left = (i+n)%len(u.members), u.left-n
		if t.end > t.first {
			u.asked += u.l.tree.Member(t.end-1).End - u.l.tree.Member(t.first).Offset
			return t
		}
	}
	return nil
}

// aheadSpan is the size of a request ahead. All of them together are one and
// a half round trips' worth: with less the link idles, and with more a miss
// waits behind them for longer than they save.
func (f *Fetcher) aheadSpan() int64 {
	return min(max(f.meter.BandwidthDelay()*3/(2*maxAhead), 16<<10), 2<<20)
}
