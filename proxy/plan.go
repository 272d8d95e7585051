package proxy

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"sort"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
)

// plan is what a node lacks of an image, in the order in which it will want it.
// It follows from the manifest, the depth and the inventory, so that every proxy
// makes the same one, at any time.
//
// It holds runs of chunks and not chunks: what it takes of memory grows with how
// scattered they are, not with how large the image is.
type plan struct {
	digest [sha256.Size]byte
	runs   []run
	items  uint64
	hot    uint64 // the last item that a start needs
}

// run is some chunks of a layer that follow each other, or a layer's table.
type run struct {
	layer uint16
	table bool
	first uint32
	count uint32
}

// planVersion is part of every plan's digest. It changes with the order of a
// plan, and with the bytes that its items cross as: then resuming within an
// item would fit together what doesn't belong together.
const planVersion = 2

// makePlan plans what is missing. layers are the image's, nil for one that can't
// be served lazily. w are the chunks that the node lacks; they are used up. have is
// the inventory.
func makePlan(img *image, layers []*layer, depth link.Depth, w *wants, have, warm []string) *plan {
	p := &plan{}
	for i, l := range layers {
		if l != nil {
			p.add(run{layer: uint16(i), table: true, count: 1}) //nolint:gosec // below maxLayers
		}
	}
	if depth >= link.Start {
		w.hot(p, layers)
	}
	p.hot = p.items
	if depth >= link.All {
		w.rest(p, layers)
	}
	h := sha256.New()
	h.Write([]byte{planVersion, byte(depth)})
	h.Write([]byte(img.manifest.digest))
	var b []byte
	for _, refs := range [][]string{have, warm} {
		for _, r := range refs {
			b = append(append(b, r...), '\n')
		}
		b = append(b, '\n')
	}
	for _, r := range p.runs {
		b = binary.AppendUvarint(b, uint64(r.layer))
		b = binary.AppendUvarint(b, uint64(r.first))
		b = binary.AppendUvarint(b, uint64(r.count))
	}
	h.Write(b)
	p.digest = [sha256.Size]byte(h.Sum(nil))
	return p
}

// add appends a run, joining it to the last if it follows.
func (p *plan) add(r run) {
	p.items += uint64(r.count)
	if n := len(p.runs); n > 0 && !r.table {
		if last := &p.runs[n-1]; !last.table && last.layer == r.layer && last.first+last.count == r.first {
			last.count += r.count
			return
		}
	}
	p.runs = append(p.runs, r)
}

// wants are the chunks that are wanted and in no plan yet.
type wants struct {
	left [][]uint64 // by layer: bit set, chunks
}

// pieces are chunks, wherever they are.
type pieces map[pieceID]struct{}

func (s pieces) has(object toc.ObjectID, index uint32) bool {
	_, ok := s[chunkPiece(object, index)]
	return ok
}

// newWants takes all chunks of layers that are of no object of the inventory and
// not warm, each object once.
func newWants(layers []*layer, inventory [][]toc.ObjectID, warm pieces) *wants {
	type place struct {
		id           toc.ObjectID
		layer, entry uint32
	}
	var all []place
	w := &wants{left: make([][]uint64, len(layers))}
	for i, l := range layers {
		if l == nil {
			continue
		}
		w.left[i] = make([]uint64, (l.tree.NumChunks()+63)/64)
		for e := range uint32(l.tree.Len()) { //nolint:gosec // below 2^32
			if first, end := l.tree.Chunks(e); first < end {
				all = append(all, place{l.tree.ObjectID(e), uint32(i), e}) //nolint:gosec // few
			}
		}
	}
	slices.SortFunc(all, func(a, b place) int {
		return cmp.Or(compareIDs(a.id, b.id), cmp.Compare(a.layer, b.layer), cmp.Compare(a.entry, b.entry))
	})
	all = slices.CompactFunc(all, func(a, b place) bool { return a.id == b.id })
	here := make([]bool, len(all))
	for _, ids := range inventory {
		at := 0
		for _, id := range ids {
			n, ok := slices.BinarySearchFunc(all[at:], id, func(p place, id toc.ObjectID) int { return compareIDs(p.id, id) })
			if at += n; ok {
				here[at] = true
			}
			if at == len(all) {
				break
			}
		}
	}
	for i, p := range all {
		if here[i] {
			continue
		}
		first, end := layers[p.layer].tree.Chunks(p.entry)
		for c := first; c < end; c++ {
			if !warm.has(p.id, c-first) {
				w.left[p.layer][c/64] |= 1 << (c % 64)
			}
		}
	}
	return w
}

// take takes a chunk, if it is wanted.
func (w *wants) take(layer int, c uint32) bool {
	bit := uint64(1) << (c % 64)
	if w.left[layer][c/64]&bit == 0 {
		return false
	}
	w.left[layer][c/64] &^= bit
	return true
}

// hot plans what a start reads.
func (w *wants) hot(p *plan, layers []*layer) {
	eachHot(layers, func(layer int, c uint32) {
		if w.take(layer, c) {
			p.add(run{layer: uint16(layer), first: c, count: 1}) //nolint:gosec // below maxLayers
		}
	})
}

// eachHot calls do for the chunks that a start reads, in its order, as the layers'
// annotations have it.
func eachHot(layers []*layer, do func(layer int, c uint32)) {
	type part struct {
		rank  uint32
		layer int
		run   trace.Run
	}
	var parts []part
	for i, l := range layers {
		if l == nil || l.desc.Annotations[annotation.Hot] == "" {
			continue
		}
		runs, err := trace.ParsePlan(l.desc.Annotations[annotation.Hot], l.desc.Size)
		if err != nil {
			continue // it only says what to send first
		}
		for _, r := range runs {
			parts = append(parts, part{r.Rank, i, r})
		}
	}
	slices.SortStableFunc(parts, func(a, b part) int { return cmp.Compare(a.rank, b.rank) })
	for _, q := range parts {
		tree := layers[q.layer].tree
		first := sort.Search(tree.NumMembers(), func(i int) bool { return tree.Member(uint32(i)).Offset >= q.run.Offset }) //nolint:gosec // below 2^32
		for m := uint32(first); int(m) < tree.NumMembers() && tree.Member(m).Offset < q.run.Offset+q.run.Size; m++ {       //nolint:gosec // below 2^32
			for c, end := tree.MemberChunks(m); c < end; c++ {
				do(q.layer, c)
			}
		}
	}
}

// rest plans what is left, in the order of layers and blobs.
func (w *wants) rest(p *plan, layers []*layer) {
	for i, l := range layers {
		if l == nil {
			continue
		}
		for c := range uint32(l.tree.NumChunks()) { //nolint:gosec // below 2^32
			if w.take(i, c) {
				p.add(run{layer: uint16(i), first: c, count: 1}) //nolint:gosec // below maxLayers
			}
		}
	}
}
