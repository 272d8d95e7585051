package artifact

import (
	"math"

	"github.com/airstream-io/airstream/internal/toc"
)

// where is a place in a layer's blob where a chunk begins, and what the next one
// is told by difference to.
type where struct {
	member toc.Member
	inner  uint32
	size   uint32 // of the chunk, uncompressed
}

// encode writes where chunk k of tree is, given the chunk before.
func (before *where) encode(col *column, tree *toc.Tree, k toc.Chunk) {
	m := tree.Member(k.Member)
	now := where{m, k.Inner, k.Size}
	size, gap, inner := uint64(m.End-m.Offset), m.Offset-before.member.End, uint64(k.Inner)
	same := m == before.member
	if same {
		size, gap, inner = 0, 0, uint64(k.Inner)-uint64(before.inner)-uint64(before.size) // toc keeps them apart, honest or not
	}
	*before = now
	if gap == 0 && inner == 0 {
		col.uvarint(size << 1)
		return
	}
	col.uvarint(size<<1 | 1)
	if !same {
		col.varint(gap)
	}
	col.uvarint(inner)
}

// decode reads where a chunk of size bytes is, given the chunk before.
func (before *where) decode(c *cursor, size uint32) where {
	code := c.uvarint()
	var gap int64
	var inner uint64
	span, more := code>>1, code&1 == 1
	if more && span != 0 {
		gap = c.varint()
	}
	if more {
		inner = c.uvarint()
	}
	now := where{member: before.member, size: size}
	if span == 0 {
		inner += uint64(before.inner) + uint64(before.size)
	} else {
		now.member.Offset = before.member.End + gap
		now.member.End = now.member.Offset + int64(span)
	}
	// That members make sense is for toc.Assembly to find out, overflow is ours.
	if inner > math.MaxUint32 || now.member.Offset < 0 || now.member.End <= now.member.Offset {
		c.fail()
		return where{}
	}
	now.inner = uint32(inner)
	*before = now
	return now
}
