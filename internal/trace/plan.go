package trace

import (
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/airstream-io/airstream/internal/toc"
)

// Run is a run of a layer blob that a start needs.
type Run struct {
	Rank   uint32 // place in the order over all layers of the image; equal ranks have no order
	Offset int64  // bytes into the blob
	Size   int64  // bytes of the blob, at least 1
}

// Plan is the runs of one layer, sorted by Rank, then Offset. They don't
// overlap.
type Plan []Run

// windowSize is how much of the order is given up for fewer, longer runs:
// reads whose pieces together have this many bytes of the blobs are fetched in
// the order of the blob. It is what a 2 Mbit/s link carries in one second.
const windowSize = 256 << 10

// NewPlan returns what t means for the layer number layer of an image of count
// layers, whose table of contents is tree. Reads of files that the layer
// doesn't have mean nothing to it. The plans of an image's layers belong
// together: their ranks come from one order.
func (t *Trace) NewPlan(tree *toc.Tree, layer, count int) Plan {
	var plan Plan
	var rank uint32
	var window int64 // bytes of all layers, estimated by content, since the rank began
	seen := map[uint32]bool{}
	for i, r := range t.Reads {
		if window > windowSize {
			rank, window = uint32(i), 0
		}
		window += r.Size / 3 // executables and scripts compress to about a third
		// With another number of layers the path alone has to do.
		if count == t.Layers && r.Layer != layer {
			continue
		}
		entry, ok := find(tree, r.Path)
		if !ok {
			continue
		}
		_, end := tree.Chunks(entry)
		c, ok := tree.FindChunk(entry, r.Offset)
		for ; ok && c < end && tree.Chunk(c).Offset < r.Offset+r.Size; c++ {
			member := tree.Chunk(c).Member
			if seen[member] {
				continue
			}
			seen[member] = true
			m := tree.Member(member)
			plan = append(plan, Run{Rank: rank, Offset: m.Offset, Size: m.End - m.Offset})
		}
	}
	slices.SortFunc(plan, func(a, b Run) int { return cmp.Or(cmp.Compare(a.Rank, b.Rank), cmp.Compare(a.Offset, b.Offset)) })
	return plan.join()
}

// join makes one run of runs that follow each other within one rank.
func (p Plan) join() Plan {
	var out Plan
	for _, r := range p {
		if n := len(out); n > 0 && out[n-1].Rank == r.Rank && out[n-1].Offset+out[n-1].Size == r.Offset {
			out[n-1].Size += r.Size
			continue
		}
		out = append(out, r)
	}
	return out
}

func find(tree *toc.Tree, path string) (entry uint32, ok bool) {
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		if entry, ok = tree.Lookup(entry, name); !ok {
			return 0, false
		}
	}
	return entry, true
}

// The annotation, version 1: "1." and, in unpadded URL-safe base64, for each
// run three varints: how much its rank is above the one before (unsigned), how
// far its offset is from the end of the one before (signed), and its size
// (unsigned). The first run stands behind one of rank 0 that ends at 0.
const prefix = "1."

// maxRuns bounds what a plan may hold; real ones have a few hundred.
const maxRuns = 100_000

// String returns the plan as the annotation has it.
func (p Plan) String() string {
	var b []byte
	var rank uint32
	var end int64
	for _, r := range p {
		b = binary.AppendUvarint(b, uint64(r.Rank-rank))
		b = binary.AppendVarint(b, r.Offset-end)
		b = binary.AppendUvarint(b, uint64(r.Size))
		rank, end = r.Rank, r.Offset+r.Size
	}
	return prefix + base64.RawURLEncoding.EncodeToString(b)
}

// ParsePlan reads what String writes, of a blob of blobSize bytes. A plan only
// says what to fetch first, so what it holds needs no more trust than that; but
// it must lie within the blob. Errors are ErrInvalid.
func ParsePlan(s string, blobSize int64) (Plan, error) {
	text, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return nil, fmt.Errorf("trace: plan: %w: unknown version", ErrInvalid)
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("trace: plan: %w: %w", ErrInvalid, err)
	}
	var p Plan
	var rank uint64
	var end int64
	for len(b) > 0 {
		dr, n1 := binary.Uvarint(b)
		off, n2 := varint(b, n1)
		size, n3 := uvarint(b, n1, n2)
		if n1 <= 0 || n2 <= 0 || n3 <= 0 || len(p) == maxRuns {
			return nil, fmt.Errorf("trace: plan: %w: run %d is cut short", ErrInvalid, len(p))
		}
		b = b[n1+n2+n3:]
		rank += dr
		begin := end + off
		if rank > 1<<31 || dr > 1<<31 || begin < 0 || begin > blobSize || size == 0 || size > uint64(blobSize-begin) {
			return nil, fmt.Errorf("trace: plan: %w: run %d lies outside of the blob", ErrInvalid, len(p))
		}
		end = begin + int64(size)
		p = append(p, Run{Rank: uint32(rank), Offset: begin, Size: int64(size)})
	}
	return p, nil
}

func varint(b []byte, skip int) (int64, int) {
	if skip <= 0 {
		return 0, 0
	}
	return binary.Varint(b[skip:])
}

func uvarint(b []byte, skip1, skip2 int) (uint64, int) {
	if skip1 <= 0 || skip2 <= 0 {
		return 0, 0
	}
	return binary.Uvarint(b[skip1+skip2:])
}
