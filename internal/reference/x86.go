package reference

import "slices"

// What follows an opcode, as bits.
const (
	hasModRM = 1 << iota
	imm8
	imm16
	imm32    // 16 bits with the prefix 66
	immFull  // imm32, or 64 bits with REX.W
	offset64 // an address of 64 bits
	branch   // imm32 is a distance
	invalid
)

// opcodes says what follows each one-byte opcode, opcodes0f each that 0f begins.
var opcodes, opcodes0f = makeOpcodes()

func makeOpcodes() (one, two [256]uint8) {
	set := func(t *[256]uint8, what uint8, from, to int) {
		for i := from; i <= to; i++ {
			t[i] = what
		}
	}
	for i := 0; i < 0x40; i += 8 {
		set(&one, hasModRM, i, i+3)
		one[i+4], one[i+5], one[i+6], one[i+7] = imm8, imm32, invalid, invalid
	}
	set(&one, invalid, 0x60, 0x62)
	one[0x63], one[0x68], one[0x69], one[0x6a], one[0x6b] = hasModRM, imm32, hasModRM|imm32, imm8, hasModRM|imm8
	set(&one, imm8, 0x70, 0x7f)
	one[0x80], one[0x81], one[0x82], one[0x83] = hasModRM|imm8, hasModRM|imm32, invalid, hasModRM|imm8
	set(&one, hasModRM, 0x84, 0x8f)
	one[0x9a] = invalid
	set(&one, offset64, 0xa0, 0xa3)
	one[0xa8], one[0xa9] = imm8, imm32
	set(&one, imm8, 0xb0, 0xb7)
	set(&one, immFull, 0xb8, 0xbf)
	one[0xc0], one[0xc1], one[0xc2] = hasModRM|imm8, hasModRM|imm8, imm16
	one[0xc6], one[0xc7], one[0xc8], one[0xca], one[0xcd], one[0xce] = hasModRM|imm8, hasModRM|imm32, imm16|imm8, imm16, imm8, invalid
	set(&one, hasModRM, 0xd0, 0xd3)
	set(&one, invalid, 0xd4, 0xd6)
	set(&one, hasModRM, 0xd8, 0xdf)
	set(&one, imm8, 0xe0, 0xe7)
	one[0xe8], one[0xe9], one[0xea], one[0xeb] = imm32|branch, imm32|branch, invalid, imm8
	one[0xf6], one[0xf7], one[0xfe], one[0xff] = hasModRM, hasModRM, hasModRM, hasModRM

	set(&two, hasModRM, 0, 255)
	for _, i := range []int{0x05, 0x06, 0x07, 0x08, 0x09, 0x0b, 0x0e, 0x77, 0xa0, 0xa1, 0xa2, 0xa8, 0xa9, 0xaa} {
		two[i] = 0
	}
	set(&two, 0, 0x30, 0x37)
	set(&two, 0, 0xc8, 0xcf)
	set(&two, imm32|branch, 0x80, 0x8f)
	for _, i := range []int{0x70, 0x71, 0x72, 0x73, 0xa4, 0xac, 0xba, 0xc2, 0xc4, 0xc5, 0xc6} {
		two[i] = hasModRM | imm8
	}
	return one, two
}

// instruction is what matters of one: its length in bytes, 0 if it is not
// understood; where its distance of 4 bytes is, 0 if it has none; whether the
// distance is a branch's, and whether it takes an address (lea).
type instruction struct {
	length, field int
	branch, lea   bool
}

// decode reads the instruction at the start of p.
func decode(p []byte) (x instruction) {
	at, wide, short := 0, false, false
	for at < len(p) && at < 14 {
		switch c := p[at]; {
		case c == 0x66:
			short = true
		case c == 0x2e || c == 0x36 || c == 0x3e || c == 0x26 || c == 0x64 || c == 0x65 || c == 0x67 || c == 0xf0 || c == 0xf2 || c == 0xf3:
		case c&0xf0 == 0x40:
			if at+1 < len(p) {
				return operands(p, at+1, c&8 != 0, short)
			}
			return x
		default:
			return operands(p, at, wide, short)
		}
		at++
	}
	return x
}

// operands reads on from the opcode.
func operands(p []byte, at int, wide, short bool) (x instruction) {
	op := p[at]
	what, at := opcode(p, at)
	if what&invalid != 0 {
		return x
	}
	x.lea = op == 0x8d
	if what&hasModRM != 0 {
		if at >= len(p) {
			return instruction{}
		}
		if p[at]>>3&7 < 2 {
			switch op {
			case 0xf6:
				what |= imm8
			case 0xf7:
				what |= imm32
			}
		}
		at, x.field = modRM(p, at)
	}
	if what&branch != 0 {
		x.field, x.branch = at, true
	}
	at += immediate(what, wide, short)
	if at > len(p) {
		return instruction{}
	}
	x.length = at
	return x
}

// opcode says what follows the opcode at p[at:], and where that is.
func opcode(p []byte, at int) (what uint8, next int) {
	op := p[at]
	at++
	skip, space := 0, byte(1)
	switch {
	case op != 0x0f && op != 0xc4 && op != 0xc5 && op != 0x62:
		return opcodes[op], at
	case at >= len(p):
		return invalid, at
	case op == 0xc5:
		skip = 1
	case op == 0xc4:
		skip, space = 2, p[at]&31
	case op == 0x62:
		skip, space = 3, p[at]&7
	case p[at] == 0x38:
		skip, space = 1, 2
	case p[at] == 0x3a:
		skip, space = 1, 3
	}
	at += skip
	if at >= len(p) || space == 0 || space > 7 {
		return invalid, at
	}
	switch space {
	case 1:
		return opcodes0f[p[at]], at + 1
	case 3:
		return hasModRM | imm8, at + 1
	default:
		return hasModRM, at + 1
	}
}

// modRM returns what follows the operands at p[at:], and where their distance of
// 4 bytes is, 0 if they have none.
func modRM(p []byte, at int) (next, field int) {
	mod, rm := p[at]>>6, p[at]&7
	at++
	displacement := [4]int{0, 1, 4, 0}[mod]
	switch {
	case mod != 3 && rm == 4:
		if mod == 0 && at < len(p) && p[at]&7 == 5 {
			displacement = 4
		}
		at++
	case mod == 0 && rm == 5:
		displacement, field = 4, at
	}
	return at + displacement, field
}

func immediate(what uint8, wide, short bool) (n int) {
	if what&imm8 != 0 {
		n++
	}
	if what&imm16 != 0 {
		n += 2
	}
	switch {
	case what&offset64 != 0 || what&immFull != 0 && wide:
		n += 8
	case what&(imm32|immFull) != 0 && short && what&branch == 0:
		n += 2
	case what&(imm32|immFull) != 0:
		n += 4
	}
	return n
}

// x86 goes through a section of code.
func (f *finder) x86(s *section, p []byte) {
	for at := 0; at < len(p); {
		x := decode(p[at:min(len(p), at+16)])
		if x.length == 0 {
			at++
			continue
		}
		if x.field > 0 {
			t := s.address + int64(at+x.length) + int64(int32(le.Uint32(p[at+x.field:])))
			if x.branch && f.executable(t) || !x.branch && t >= 0 && f.loaded(t) {
				f.add(Relative32, s.off+at+x.field, t)
				if x.lea && !f.executable(t) {
					f.places = append(f.places, uint32(t))
					f.tables = append(f.tables, uint32(t))
				}
			}
		}
		at += x.length
	}
	f.jumpTables()
}

// jumpTables notes the tables that code takes the address of: distances from
// their own start to code.
func (f *finder) jumpTables() {
	slices.Sort(f.tables)
	f.tables = slices.Compact(f.tables)
	for i, at := range f.tables {
		t := int64(at)
		off, _, ok := Offset(f.loads, t)
		end := t + 4096
		if i+1 < len(f.tables) {
			end = min(end, int64(f.tables[i+1]))
		}
		if !ok || t&3 != 0 {
			continue
		}
		n := 0
		for at := off; t+int64(n)*4+4 <= end && at+4 <= int64(len(f.p)); at += 4 {
			v := int64(int32(le.Uint32(f.p[at:])))
			if v >= 0 || !f.executable(t+v) {
				break
			}
			n++
		}
		if n < 3 {
			continue
		}
		b, ok := f.base(t)
		for k := 0; ok && k < n; k++ {
			at := int(off) + 4*k
			f.based(at, b, t+int64(int32(le.Uint32(f.p[at:]))))
		}
	}
	f.tables = nil
}
