package trace

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
)

// Run is a run of a layer blob that a start needs.
type Run struct {
	Rank   uint32 // place in the order over all layers of the image; equal ranks have no order
	Offset int64  // bytes into the blob
	Size   int64  // bytes of the blob, at least 1
}

// Plan is the runs of one layer. Those that Plans returns are sorted by Rank,
// then Offset, and don't overlap; see ParsePlan for what can be said of one that
// was read.
type Plan []Run

// Size returns the sum of the runs' sizes, in bytes of the blob.
func (p Plan) Size() int64 {
	var n int64
	for _, r := range p {
		n += r.Size
	}
	return n
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

// The annotation, version 1: "1." and, in unpadded URL-safe base64, for each
// run three varints: how much its rank is above the one before (unsigned), how
// far its offset is from the end of the one before (signed), and its size
// (unsigned). The first run stands behind one of rank 0 that ends at 0.
const prefix = "1."

// maxRuns bounds what a plan may hold. Real ones have a few hundred; this many
// make an annotation of 200 kB, and registries take manifests of 4 MiB.
const maxRuns = 20_000

// maxText is the longest annotation that is looked at, in bytes.
const maxText = len(prefix) + maxRuns*4*binary.MaxVarintLen64

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
// says what to fetch first, so what it holds needs no more trust than that: the
// runs lie within the blob, and all together are no longer than it, so that
// nobody is made to fetch more than the layer. They are sorted by Rank; those of
// one rank may come in any order, and runs may overlap, though those of Plans don't.
// Errors are ErrInvalid.
func ParsePlan(s string, blobSize int64) (Plan, error) {
	p, err := parsePlan(s, blobSize)
	if err != nil {
		return nil, fmt.Errorf("trace: plan: %w: %w", ErrInvalid, err)
	}
	return p, nil
}

func parsePlan(s string, blobSize int64) (Plan, error) {
	text, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return nil, errors.New("unknown version")
	}
	if len(s) > maxText {
		return nil, fmt.Errorf("%d bytes", len(s))
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return nil, err
	}
	var p Plan
	var rank uint64
	var end int64
	left := blobSize // bytes that further runs may have
	for len(b) > 0 {
		if len(p) == maxRuns {
			return nil, fmt.Errorf("more than %d runs", maxRuns)
		}
		dr, n1 := binary.Uvarint(b)
		off, n2 := varint(b, n1)
		size, n3 := uvarint(b, n1, n2)
		if n1 <= 0 || n2 <= 0 || n3 <= 0 {
			return nil, fmt.Errorf("run %d is cut short", len(p))
		}
		b = b[n1+n2+n3:]
		if dr > math.MaxUint32-rank {
			return nil, fmt.Errorf("run %d has a rank above %d", len(p), uint32(math.MaxUint32))
		}
		rank += dr
		begin := end + off // wraps to below 0 if at all
		if begin < 0 || begin > blobSize || size == 0 || size > uint64(blobSize-begin) {
			return nil, fmt.Errorf("run %d lies outside of the blob", len(p))
		}
		if size > uint64(left) {
			return nil, errors.New("its runs are longer than the blob")
		}
		left -= int64(size)
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
