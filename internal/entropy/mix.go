package entropy

// Bytes models bytes by several contexts at once. Each context predicts every
// bit by what it has seen; a mixer, which learns whom to trust, makes one
// prediction of them (as in PAQ: Mahoney, "Adaptive weighing of context models",
// 2005).
type Bytes struct {
	tables  [][]prob // one for each context
	mask    []uint32
	weights []int32  // 16 bits of fraction; by selector, node's depth and table
	lines   [][]prob // of 16
	slots   []*prob
	inputs  []int32
	n       int
}

// NewBytes returns a model whose contexts have tables of 1<<size probabilities
// each (4 bytes), and whose mixer has that many sets of weights.
func NewBytes(selectors int, sizes ...uint) *Bytes {
	m := &Bytes{n: len(sizes), lines: make([][]prob, len(sizes)), slots: make([]*prob, len(sizes)), inputs: make([]int32, len(sizes)+1)}
	for _, s := range sizes {
		m.tables = append(m.tables, fresh(1<<s))
		m.mask = append(m.mask, 1<<s-1)
	}
	m.weights = make([]int32, selectors*8*(m.n+1))
	for i := range m.weights {
		if i%(m.n+1) < m.n { // the last is the bias
			m.weights[i] = 65536 * 3 / 10
		}
	}
	m.inputs[m.n] = 256
	return m
}

// Code codes b. There must be as many contexts as tables; a context is a number
// or a hash of any kind. The selector says whose weights count.
func (m *Bytes) Code(c *Coder, selector int, contexts []uint32, b byte) byte {
	// Half a byte's probabilities stand beside each other: a line of the cache.
	high := m.half(c, selector*8, contexts, 1, b>>4)
	return high<<4 | m.half(c, selector*8+4, contexts, 16+uint32(high), b&15)
}

// half codes 4 bits; before is different for whatever was coded of the byte.
func (m *Bytes) half(c *Coder, weights int, contexts []uint32, before uint32, b byte) byte {
	for k, x := range contexts[:m.n] {
		h := (x+1)*0x9e3779b1 ^ before*0x85ebca6b
		h = (h ^ h>>15) * 0x2c1b3c6d
		m.lines[k] = m.tables[k][(h^h>>13)&m.mask[k]&^15:][:16]
	}
	inputs, slots := m.inputs, m.slots
	node := uint32(1)
	for i := 3; i >= 0; i-- {
		w := m.weights[(weights+i)*(m.n+1):][:len(inputs)]
		sum := 256 * int64(w[m.n])
		for k, line := range m.lines {
			p := &line[node&15]
			slots[k] = p
			in := int32(logit[*p>>20])
			inputs[k] = in
			sum += int64(in) * int64(w[k])
		}
		p := squash(int32(sum >> 16))
		bit := c.bit(min(max(p<<4, 24), 65536-24), int(b)>>i&1)
		fault := (int64(bit<<12) - int64(p)) * 6
		for k, in := range inputs {
			w[k] += int32((int64(in)*fault + 1<<13) >> 14)
		}
		for _, p := range slots {
			p.update(bit, seldom)
		}
		node = node<<1 | uint32(bit)
	}
	return byte(node & 15)
}

// squash turns the logarithm of odds (8 bits of fraction) into a probability of
// 12 bits, by steps of 1/2: 4096 / (1 + exp(-x)).
func squash(x int32) uint32 {
	if x >= 2047 {
		return 4095
	}
	if x <= -2047 {
		return 1
	}
	x += 2048
	i, f := x>>7, x&127
	return uint32((logistic[i]*(128-f) + logistic[i+1]*f + 64) >> 7)
}

var logistic = [33]int32{1, 2, 4, 6, 10, 17, 27, 45, 74, 120, 194, 311, 488, 747, 1102, 1546, 2048, 2550, 2994, 3349, 3608, 3785, 3902, 3976, 4022, 4051, 4069, 4079, 4086, 4090, 4092, 4094, 4095}

// logit is the inverse of squash, of 12 bits.
var logit = func() (t [4096]int16) {
	next := 0
	for x := int32(-2047); x <= 2047; x++ {
		for v := int(squash(x)); next <= v; next++ {
			t[next] = int16(x)
		}
	}
	for ; next < len(t); next++ {
		t[next] = 2047
	}
	return t
}()
