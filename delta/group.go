package delta

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// span is a stretch of a base: all of it, unless the file is longer than a piece.
type span struct {
	base        int // in have, all sets laid end to end
	off, length int64
}

// piece is up to pieceSize bytes of a wanted file.
type piece struct {
	item   *item
	off    int64
	size   int
	likest int // in the group's bases, -1 if none is known
}

// predictable reports whether the piece is a whole file, whose references can be
// predicted.
func (p *piece) predictable() bool { return p.off == 0 && int64(p.size) == p.item.file.Size }

// group is what is coded against one text of bases.
type group struct {
	bases  []span // by base and offset
	starts []int  // of bases, laid end to end
	pieces []piece
}

// groupBytes is how long a group's bases are together, in bytes, unless one
// piece has more: sorting takes 4 bytes of memory for each.
const groupBytes = 64 << 20

// groupPieces is how many pieces a group has at most.
const groupPieces = 1 << 16

// groups cuts the items into pieces and these into groups.
func groups(have []*File, items []item) []group {
	var all []group
	var g group
	var likest []span
	there := map[span]bool{} // in g.bases
	total := int64(0)
	finish := func() {
		if len(g.pieces) == 0 {
			return
		}
		slices.SortFunc(g.bases, compareSpans)
		for i := range g.pieces {
			g.pieces[i].likest = -1
			if at, ok := slices.BinarySearchFunc(g.bases, likest[i], compareSpans); ok {
				g.pieces[i].likest = at
			}
		}
		all = append(all, g)
		g, likest, total = group{}, nil, 0
		clear(there)
	}
	for i := range items {
		it := &items[i]
		for off := int64(0); ; off += pieceSize {
			p := piece{item: it, off: off, size: int(min(it.file.Size-off, pieceSize))}
			var spans []span
			more := int64(0)
			for _, b := range it.bases {
				s := spanFor(b, have[b].Size, off)
				if s.length == 0 {
					continue
				}
				spans = append(spans, s)
				if !there[s] {
					more += s.length
				}
			}
			if len(g.pieces) == groupPieces || len(g.pieces) > 0 && total+more > groupBytes {
				finish()
			}
			for _, s := range spans {
				if !there[s] && (len(g.bases) == 0 || total+s.length <= pieceSize) {
					g.bases = append(g.bases, s)
					there[s] = true
					total += s.length
				}
			}
			g.pieces = append(g.pieces, p)
			likest = append(likest, append(spans, span{base: -1})[0])
			if off+pieceSize >= it.file.Size {
				break
			}
		}
	}
	finish()
	return all
}

// spanFor returns the stretch of a base of size bytes that a piece at off is
// likely to be found in.
func spanFor(base int, size, off int64) span {
	if size <= pieceSize {
		return span{base, 0, size}
	}
	off = min(off, size-pieceSize)
	return span{base, off, pieceSize}
}

func compareSpans(a, b span) int {
	if a.base != b.base {
		return a.base - b.base
	}
	return int(min(max(a.off-b.off, -1), 1))
}

// check is what both sides compute of a group's bases.
func check(have []*File, bases []span) uint32 {
	h := sha256.New()
	for _, s := range bases {
		k := have[s.base].key()
		h.Write(k[:])
	}
	return binary.LittleEndian.Uint32(h.Sum(nil))
}

// read returns the bases laid end to end.
func (g *group) read(ctx context.Context, have []*File) ([]byte, error) {
	total := int64(0)
	for _, s := range g.bases {
		total += s.length
	}
	text := make([]byte, 0, total)
	for _, s := range g.bases {
		n := len(text)
		g.starts = append(g.starts, n)
		text = text[:n+int(s.length)]
		if err := readInto(ctx, have[s.base], text[n:], s.off); err != nil {
			return nil, err
		}
	}
	return text, nil
}

// start returns where the base with that number begins in the text that read
// has returned, 0 for -1.
func (g *group) start(number int) int {
	if number < 0 {
		return 0
	}
	return g.starts[number]
}

// flatten lays the files of all sets end to end.
func flatten(sets []Set) []*File {
	var all []*File
	for i := range sets {
		for j := range sets[i].Files {
			all = append(all, &sets[i].Files[j])
		}
	}
	return all
}
