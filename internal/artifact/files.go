package artifact

import (
	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/toc"
)

// files goes through the entries of a layer and says into which chunks each is
// cut. Entries must be visited in order, all of them.
type files struct {
	r                        *Root
	l                        *layer
	profile, low, high, cuts cursor
	cut                      uint64 // the next entry that is cut at other places
	anyCut                   bool

	entry toc.Entry // of the profile, with the size of a regular file
	sizes []uint32  // of its chunks, if it is cut at other places
}

func newFiles(r *Root, l *layer) *files {
	f := &files{r: r, l: l}
	for col, c := range map[int]*cursor{colProfile: &f.profile, colLow: &f.low, colHigh: &f.high, colCut: &f.cuts} {
		c.b = l.shares[col-perLayer]
	}
	f.nextCut(0)
	return f
}

func (f *files) nextCut(last uint64) {
	if f.anyCut = len(f.cuts.b) > 0; f.anyCut {
		f.cut = last + f.cuts.uvarint()
	}
}

// next moves on to an entry.
func (f *files) next(e uint32) error {
	n := f.profile.uvarint()
	if f.profile.err != nil || n >= uint64(len(f.r.profiles)) {
		return invalid("entry %d has attributes that aren't there", e)
	}
	f.entry, f.sizes = f.r.profiles[n], f.sizes[:0]
	if f.entry.Mode&toc.TypeMask != toc.TypeRegular {
		return nil
	}
	low, high := f.low.byte(), f.high.uvarint()
	if f.low.err != nil || f.high.err != nil || high > 1<<54 {
		return invalid("entry %d has no size", e)
	}
	f.entry.Size = int64(high<<8 | uint64(low))
	if f.anyCut && f.cut == uint64(e) {
		for left := f.entry.Size; left > 0; {
			size := f.cuts.u32()
			if size == 0 || size > chunk.MaxSize || int64(size) > left || uint64(len(f.sizes)) == uint64(f.l.chunks) {
				return invalid("entry %d: a chunk of %d bytes where %d are left", e, size, left)
			}
			f.sizes = append(f.sizes, size)
			left -= int64(size)
		}
		f.nextCut(f.cut)
		return nil
	}
	if f.entry.Size > 0 && (f.l.chunkSize == 0 || f.l.chunkSize > chunk.MaxSize || f.entry.Size/int64(f.l.chunkSize) >= maxChunks) {
		return invalid("entry %d: a file of %d bytes in chunks of %d", e, f.entry.Size, f.l.chunkSize)
	}
	return nil
}

// count returns how many chunks the entry has.
func (f *files) count() uint32 {
	if len(f.sizes) > 0 || f.entry.Size == 0 {
		return uint32(len(f.sizes))
	}
	return uint32((f.entry.Size + int64(f.l.chunkSize) - 1) / int64(f.l.chunkSize))
}

// size returns the size of chunk k of the entry, in bytes.
func (f *files) size(k uint32) uint32 {
	if len(f.sizes) > 0 {
		return f.sizes[k]
	}
	return uint32(min(int64(f.l.chunkSize), f.entry.Size-int64(k)*int64(f.l.chunkSize)))
}

// end checks that all has been used.
func (f *files) end() error {
	if len(f.profile.b)+len(f.low.b)+len(f.high.b)+len(f.cuts.b) > 0 || f.anyCut {
		return invalid("there are more attributes than entries")
	}
	return nil
}
