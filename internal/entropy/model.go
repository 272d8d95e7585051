package entropy

import "math/bits"

// prob is the probability of a 1: 22 bits of it above, below them how often it
// was met, up to a limit. It learns fast at first.
type prob uint32

const (
	undecided = prob(1 << 31)
	// seldom and often are limits: a probability moves by about one part in that
	// many each time. (Tried on residuals of programs; 30 and 127 to 1% the same.)
	seldom = 60
	often  = 250
)

// reciprocal[n] is 65536 / (n + 1.6).
var reciprocal = func() (r [256]int64) {
	for n := range r {
		r[n] = 655360 / int64(10*n+16)
	}
	return r
}()

// p16 returns the probability in 65536ths, never certain.
func (p prob) p16() uint32 { return min(max(uint32(p)>>16, 24), 65536-24) }

func (p *prob) update(bit int, limit uint32) {
	n := uint32(*p) & 1023
	v := int64(*p >> 10)
	target := int64(bit) * (1<<22 - 1)
	v += (target - v) * reciprocal[n] >> 16
	if n < limit {
		n++
	}
	*p = prob(uint32(v)<<10 | n)
}

func (c *Coder) model(p *prob, bit int) int {
	bit = c.bit(p.p16(), bit)
	p.update(bit, often)
	return bit
}

func fresh(n int) []prob {
	p := make([]prob, n)
	for i := range p {
		p[i] = undecided
	}
	return p
}

// Bit models one bit in each of some contexts.
type Bit struct{ p []prob }

// NewBit returns a model with that many contexts.
func NewBit(contexts int) *Bit { return &Bit{fresh(contexts)} }

// Code codes bit (0 or 1) in a context.
func (m *Bit) Code(c *Coder, context, bit int) int { return c.model(&m.p[context], bit) }

// Number models numbers that are mostly small, in each of some contexts: how
// many bits a number has, then the bits, the upper three of them modelled in full.
type Number struct {
	length [][]prob // by context: a tree of 64 leaves
	high   [][]prob // by context: 64 lengths of 8 nodes
	low    []prob   // 64 lengths of 64 positions
}

// NewNumber returns a model with that many contexts.
func NewNumber(contexts int) *Number {
	m := &Number{low: fresh(64 * 64)}
	for range contexts {
		m.length = append(m.length, fresh(128))
		m.high = append(m.high, fresh(65*8))
	}
	return m
}

// Code codes v, less than 1<<63, in a context.
func (m *Number) Code(c *Coder, context int, v uint64) uint64 {
	n := bits.Len64(v)
	length, high := m.length[context], m.high[context]
	node := 1
	for i := 5; i >= 0; i-- {
		node = node<<1 | c.model(&length[node], n>>i&1)
	}
	n = node & 63
	if n < 2 {
		return uint64(n)
	}
	out, node := uint64(1), 1
	for i := n - 2; i >= 0; i-- {
		b := int(v >> i & 1)
		if node < 8 {
			b = c.model(&high[n*8+node], b)
			node = node<<1 | b
		} else {
			b = c.model(&m.low[n*64+i], b)
		}
		out = out<<1 | uint64(b)
	}
	return out
}

// Signed codes v like Code does, small amounts of either sign as small numbers.
func (m *Number) Signed(c *Coder, context int, v int64) int64 {
	u := m.Code(c, context, uint64(v)<<1^uint64(v>>63))
	return int64(u>>1) ^ -int64(u&1)
}

// Length is Code's bucket of v: 0 for 0, n for numbers of n bits. It serves as
// context for what follows v.
func Length(v uint64) int { return bits.Len64(v) }
