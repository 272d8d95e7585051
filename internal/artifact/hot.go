package artifact

import (
	"fmt"

	"github.com/klauspost/compress/zstd"

	"github.com/airstream-io/airstream/internal/chunk"
)

// Hot says which frames the hot blob has, and which chunks are in them. It is
// immutable and safe for concurrent use.
type Hot struct {
	order  []Run
	frames []Frame
	size   int64
}

// Frame is a part of the hot blob that is decompressed by itself.
type Frame struct {
	Offset int64 // bytes into the hot blob
	Size   int64 // bytes
	Raw    int   // bytes, decompressed
	Chunks []Run // in the order in which they lie in it
}

// maxFrame bounds a frame before compression, in bytes, unless it is one chunk.
const maxFrame = 4 << 20

func (h *Hot) runs() []Run {
	if h == nil {
		return nil
	}
	return h.order
}

// Frames returns the frames, in the order of the blob: that of the start. The
// caller must not change them.
func (h *Hot) Frames() []Frame { return h.frames }

// Size returns the size of the hot blob, in bytes.
func (h *Hot) Size() int64 { return h.size }

// parseHot reads the order and the frames. Sizes of chunks are not known before
// the layers' columns are, so fillFrames comes
// behind it.
func (r *Root) parseHot(frame uint32) error {
	c := &cursor{b: r.columns[colOrder]}
	if frame == 0 {
		if len(c.b)+len(r.columns[colFrames]) > 0 {
			return invalid("an order, and no hot set")
		}
		return nil
	}
	r.hot = &Hot{}
	next := make([]int64, len(r.layers))
	total := uint64(0)
	for len(c.b) > 0 {
		layer, diff, count := c.uvarint(), c.varint(), c.uvarint()
		if c.err != nil {
			return c.err
		}
		if layer >= uint64(len(r.layers)) {
			return invalid("a hot chunk of layer %d of %d", layer, len(r.layers))
		}
		first, chunks := next[layer]+diff, int64(r.layers[layer].chunks)
		if first < 0 || first >= chunks || count == 0 || count > uint64(chunks-first) {
			return invalid("hot chunks from %d on, of %d", first, chunks)
		}
		if total += count; total > maxHot {
			return invalid("more than %d hot chunks", maxHot)
		}
		next[layer] = first + int64(count)
		r.hot.order = append(r.hot.order, Run{int(layer), uint32(first), uint32(count)})
	}
	if total == 0 {
		return invalid("a hot set of nothing")
	}
	return r.fillFrames(frame)
}

// fillFrames says which chunks are in which frame.
func (r *Root) fillFrames(frame uint32) error {
	sizes, err := r.hotSizes()
	if err != nil {
		return err
	}
	h, c := r.hot, &cursor{b: r.columns[colFrames]}
	at := 0 // in sizes
	order := h.order
	used := uint32(0) // of order[0]
	for at < len(sizes) {
		n := inFrame(len(sizes)-at, frame, func(i int) uint32 { return sizes[at+i] })
		f := Frame{Offset: h.size, Size: int64(c.u32())}
		for _, s := range sizes[at : at+n] {
			f.Raw += int(s)
		}
		// Content that doesn't compress grows by some bytes a block.
		if c.err != nil || f.Size == 0 || f.Size > int64(f.Raw)+int64(f.Raw)>>8+64 {
			return invalid("a frame of %d bytes for %d", f.Size, f.Raw)
		}
		for left := uint32(n); left > 0; {
			take := min(left, order[0].Count-used)
			f.Chunks = append(f.Chunks, Run{order[0].Layer, order[0].First + used, take})
			left -= take
			if used += take; used == order[0].Count {
				order, used = order[1:], 0
			}
		}
		h.size += f.Size
		h.frames = append(h.frames, f)
		at += n
	}
	if len(c.b) > 0 {
		return invalid("more frames than hot chunks")
	}
	return nil
}

// hotSizes returns the sizes of the hot chunks, in their order.
func (r *Root) hotSizes() ([]uint32, error) {
	var total uint32
	for _, run := range r.hot.order {
		total += run.Count
	}
	out := make([]uint32, total)
	byLayer := make([]map[uint32]uint32, len(r.layers)) // places in out, by number of the chunk
	at := uint32(0)
	for _, run := range r.hot.order {
		m := byLayer[run.Layer]
		if m == nil {
			m = map[uint32]uint32{}
			byLayer[run.Layer] = m
		}
		for c := range run.Count {
			if _, twice := m[run.First+c]; twice {
				return nil, invalid("chunk %d of layer %d is hot twice", run.First+c, run.Layer)
			}
			m[run.First+c] = at
			at++
		}
	}
	for i := range r.layers {
		if byLayer[i] == nil {
			continue
		}
		files, chunks := newFiles(r, &r.layers[i]), uint32(0)
		for e := range r.layers[i].entries {
			if err := files.next(e); err != nil {
				return nil, fmt.Errorf("layer %d: %w", i, err)
			}
			for k := range files.count() {
				if place, ok := byLayer[i][chunks]; ok {
					out[place] = files.size(k)
				}
				if chunks++; chunks > r.layers[i].chunks {
					return nil, invalid("layer %d: more than %d chunks", i, r.layers[i].chunks)
				}
			}
		}
		if chunks != r.layers[i].chunks {
			return nil, invalid("layer %d: %d chunks, want %d", i, chunks, r.layers[i].chunks)
		}
	}
	return out, nil
}

// Opener decompresses frames of the hot blob. It is not safe for concurrent use.
type Opener struct{ z *zstd.Decoder }

// NewOpener returns an Opener. Close it when it is not needed any more.
func NewOpener() (*Opener, error) {
	z, err := decompressor(max(maxFrame, chunk.MaxSize))
	if err != nil {
		return nil, fmt.Errorf("artifact: open frame: %w", err)
	}
	return &Opener{z}, nil
}

// Open decompresses a frame, given its bytes in the blob. The result is the
// content of f.Chunks, one after the other, and proves nothing before each has
// been compared with its ID. Errors are ErrInvalid.
func (o *Opener) Open(f Frame, packed []byte) ([]byte, error) {
	if int64(len(packed)) != f.Size {
		return nil, fmt.Errorf("artifact: open frame: %w", invalid("%d bytes, want %d", len(packed), f.Size))
	}
	raw, err := inflate(o.z, packed, uint32(f.Raw))
	if err != nil {
		return nil, fmt.Errorf("artifact: open frame: %w", invalid("%w", err))
	}
	return raw, nil
}

// Close frees what the Opener holds.
func (o *Opener) Close() { o.z.Close() }
