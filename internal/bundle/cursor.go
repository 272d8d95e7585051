package bundle

import (
	"encoding/binary"
	"math"
)

// cursor reads a payload. After an error all it returns is zero.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) fail() { c.b, c.bad = nil, true }

// end returns an error if something was read that is not there.
func (c *cursor) end(what string) error {
	if c.bad {
		return damaged("a record of kind %s ends early or contradicts itself", what)
	}
	return nil
}

func (c *cursor) take(n uint64) []byte {
	if n > uint64(len(c.b)) {
		c.fail()
		return nil
	}
	out := c.b[:n:n]
	c.b = c.b[n:]
	return out
}

func (c *cursor) byte() byte {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) sum() (s Sum) {
	copy(s[:], c.take(uint64(len(s))))
	return s
}

func (c *cursor) i64() int64 {
	b := c.take(8)
	if b == nil {
		return 0
	}
	v := le.Uint64(b)
	if v > math.MaxInt64 {
		c.fail()
		return 0
	}
	return int64(v)
}

func (c *cursor) uvarint() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.fail()
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) u32() uint32 {
	v := c.uvarint()
	if v > math.MaxUint32 {
		c.fail()
		return 0
	}
	return uint32(v)
}

// index reads a place in a list of n.
func (c *cursor) index(n int) int {
	v := c.uvarint()
	if v >= uint64(n) {
		c.fail()
		return 0
	}
	return int(v)
}

// count reads how many things follow, of which each has at least size bytes.
func (c *cursor) count(size int) int {
	n := c.uvarint()
	if n > uint64(len(c.b)/size) {
		c.fail()
		return 0
	}
	return int(n)
}

func (c *cursor) sums() []Sum {
	n := c.count(len(Sum{}))
	sums := make([]Sum, 0, n)
	for range n {
		sums = append(sums, c.sum())
	}
	return sums
}

func (c *cursor) le32() uint32 {
	if b := c.take(4); b != nil {
		return le.Uint32(b)
	}
	return 0
}
