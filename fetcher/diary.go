package fetcher

import (
	"sync"

	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
)

// How much is written down. A start of an application of ten thousand files
// looks up and reads some 20,000 things, 400 kB of diary; what goes on for longer
// is no start any more, and of a daemon that runs for months nobody wants to
// know the rest. Bytes, estimated; the first two are of one layer.
const (
	pagesRoom  = 1 << 20
	absentRoom = pagesRoom / 4 // names that are not there never end: some programs look for random ones
	diaryRoom  = 16 << 20      // of all layers

	eventSize  = 16
	absentSize = eventSize + 80 // and the name
)

// Diary is what was read and looked up in layers since the daemon started, each
// thing once, in the order in which it was done first. It is told of look-ups by
// whoever serves the tree, and of reads by the fetcher. Methods are safe for
// concurrent use, and as quick as somebody who waits for them needs them to be:
// what the kernel asks for twice is one bit.
//
// A layer's pages end when they are full. When all of them are too many, the
// layer in which nothing new has happened for longest gives up its pages: what is
// wanted is the start of an image that the node has just met.
type Diary struct {
	mu     sync.Mutex
	layers map[uint32]*pages // guarded by mu; by slot
	events uint64            // guarded by mu; that were written down so far
	size   int               // guarded by mu; bytes of all pages
}

// pages are what is written down of one layer.
type pages struct {
	tree   *toc.Tree
	events []event
	found  []uint64             // bit set: entries
	listed []uint64             // bit set: entries
	absent []absence            // in the order of their events
	known  map[absence]struct{} // those
	size   int                  // bytes
	wanted int                  // of these, for what is absent
	ended  bool                 // nothing is written down any more
}

// event is something that was done, for the first time.
type event struct {
	at   uint64 // its number among those of all layers
	of   uint32 // a chunk, an entry that was found or listed, or the number of an absence
	deed deed
}

// deed is what was done.
type deed uint8

const (
	read deed = iota
	found
	absent
	list
)

// absence is a name that a directory doesn't have.
type absence struct {
	dir  uint32
	name string
}

// Diary returns what the fetcher is to be told of look-ups by.
func (f *Fetcher) Diary() *Diary { return &f.diary }

// Lookup notes that a name was looked for in a directory of a layer.
func (d *Diary) Lookup(slot, dir uint32, name string, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.layers[slot]
	if p == nil || p.ended {
		return
	}
	if ok {
		if entry, ok := p.tree.Lookup(dir, name); ok && add(p.found, entry) {
			d.note(p, event{of: entry, deed: found}, eventSize)
		}
		return
	}
	a := absence{dir, name}
	size := absentSize + len(name)
	if _, known := p.known[a]; known || p.wanted+size > absentRoom {
		return
	}
	p.known[a] = struct{}{}
	p.absent = append(p.absent, a)
	p.wanted += size
	d.note(p, event{of: uint32(len(p.absent) - 1), deed: absent}, size)
}

// List notes that the names in a directory of a layer were listed.
func (d *Diary) List(slot, dir uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.layers[slot]; p != nil && !p.ended && add(p.listed, dir) {
		d.note(p, event{of: dir, deed: list}, eventSize)
	}
}

// read notes the first read of a chunk.
func (d *Diary) read(slot, chunk uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.layers[slot]; p != nil && !p.ended {
		d.note(p, event{of: chunk, deed: read}, eventSize)
	}
}

// begin makes room for a layer whose tree is here.
func (d *Diary) begin(slot uint32, tree *toc.Tree) {
	words := (tree.Len() + 63) / 64
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.layers == nil {
		d.layers = map[uint32]*pages{}
	}
	d.layers[slot] = &pages{tree: tree, found: make([]uint64, words), listed: make([]uint64, words), known: map[absence]struct{}{}}
}

// renew gives a layer a tree that says more of the same things.
func (d *Diary) renew(slot uint32, tree *toc.Tree) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.layers[slot]; p != nil {
		p.tree = tree
	}
}

// forget gives up what was written down of a layer.
func (d *Diary) forget(slot uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.layers[slot]; p != nil {
		d.size -= p.size
		delete(d.layers, slot)
	}
}

// note writes an event down. d.mu is held.
func (d *Diary) note(p *pages, e event, size int) {
	if p.size+size > pagesRoom {
		// The bits are of no use any more, and the events stay.
		p.ended, p.found, p.listed, p.known = true, nil, nil, nil
		return
	}
	d.events++
	e.at = d.events
	p.events = append(p.events, e)
	p.size += size
	d.size += size
	for d.size > diaryRoom {
		d.dropOldest()
	}
}

// dropOldest gives up the pages of the layer that was written of last before all
// others. d.mu is held.
func (d *Diary) dropOldest() {
	var oldest *pages
	for _, p := range d.layers {
		if len(p.events) > 0 && (oldest == nil || p.last() < oldest.last()) {
			oldest = p
		}
	}
	d.size -= oldest.size
	*oldest = pages{tree: oldest.tree, ended: true}
}

func (p *pages) last() uint64 { return p.events[len(p.events)-1].at }

// add sets a bit and tells whether that is new.
func add(set []uint64, i uint32) bool {
	if int(i/64) >= len(set) || has(set, i) {
		return false
	}
	set[i/64] |= 1 << (i % 64)
	return true
}

// written returns what was written down of a layer, in order, as reads of layer
// number layer of an image. paths are those of its entries.
func (d *Diary) written(slot uint32, layer int, paths []string) []dated {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.layers[slot]
	if p == nil {
		return nil
	}
	all := make([]dated, 0, len(p.events))
	for _, e := range p.events {
		r := trace.Read{Layer: layer}
		switch e.deed {
		case read:
			c := p.tree.Chunk(e.of)
			if r.Path = paths[p.tree.ChunkFile(e.of)]; r.Path == "" {
				continue // a file without a name, which no honest table has
			}
			r.Offset, r.Size, r.Chunk = c.Offset, int64(c.Size), trace.HintOf(c.ID)
		case found:
			r.Kind, r.Path = trace.Found, paths[e.of]
		case list:
			r.Kind, r.Path = trace.List, paths[e.of]
		case absent:
			a := p.absent[e.of]
			r.Kind, r.Path = trace.Absent, a.name
			if dir := paths[a.dir]; dir != "" {
				r.Path = dir + "/" + a.name
			}
		}
		if r.Path == "" {
			r.Path = "."
		}
		all = append(all, dated{e.at, r})
	}
	return all
}

// dated is a read and its number among the events of all layers.
type dated struct {
	at uint64
	trace.Read
}
