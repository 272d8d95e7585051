package delta

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// program links functions that call each other and take addresses of data. The
// functions are the same whatever their places; extra ones may stand among them.
func program(functions int, extra map[int]int) []byte {
	const header, dataSize = 64 + 2*56, 20_000
	le := binary.LittleEndian
	type call struct{ at, to int } // to: a function, or -1-offset in data
	var code []byte
	var calls []call
	starts := make([]int, functions)
	for i := range functions {
		pad := random(uint64(i)+1_000_000, extra[i])
		code = append(code, pad...)
		starts[i] = len(code)
		r := rand.New(rand.NewPCG(uint64(i), 7))
		for range 3 + r.IntN(12) {
			code = append(code, 0x48, 0x89, byte(0xc0|r.IntN(64)), 0x48, 0x83, 0xc0, byte(r.IntN(128)))
			if r.IntN(2) == 0 {
				code = append(code, 0xe8, 0, 0, 0, 0)
				calls = append(calls, call{len(code) - 4, r.IntN(functions)})
			} else {
				code = append(code, 0x48, 0x8d, 0x05, 0, 0, 0, 0)
				calls = append(calls, call{len(code) - 4, -1 - r.IntN(dataSize)})
			}
		}
		code = append(code, 0xc3)
	}
	data := header + len(code)
	for _, c := range calls {
		to := data - 1 - c.to
		if c.to >= 0 {
			to = header + starts[c.to]
		}
		le.PutUint32(code[c.at:], uint32(to-(header+c.at+4)))
	}
	p := make([]byte, header, data+dataSize+2*64)
	copy(p, "\x7fELF\x02\x01\x01")
	le.PutUint16(p[18:], 62)
	le.PutUint64(p[32:], 64)
	le.PutUint64(p[40:], uint64(data+dataSize))
	le.PutUint16(p[54:], 56)
	le.PutUint16(p[56:], 1)
	le.PutUint16(p[58:], 64)
	le.PutUint16(p[60:], 2)
	load := p[64:]
	le.PutUint32(load, 1)
	le.PutUint64(load[32:], uint64(data+dataSize))
	le.PutUint64(load[40:], uint64(data+dataSize+4096))
	p = append(p, code...)
	p = append(p, random(77, dataSize)...)
	for _, s := range []struct{ flags, off, size int }{{6, header, len(code)}, {2, data, dataSize}} {
		h := make([]byte, 64)
		le.PutUint32(h[4:], 1)
		le.PutUint64(h[8:], uint64(s.flags))
		le.PutUint64(h[16:], uint64(s.off))
		le.PutUint64(h[24:], uint64(s.off))
		le.PutUint64(h[32:], uint64(s.size))
		p = append(p, h...)
	}
	return p
}

func TestReferencesOfProgramsCostNothing(t *testing.T) {
	old := program(4000, nil)
	fresh := program(4000, map[int]int{5: 40, 1700: 16, 1701: 100, 3200: 12})
	have, want := []Set{{Name: "old", Files: []File{file("bin/tool", old)}}}, []File{file("bin/tool", fresh)}
	coded, stats := roundTrip(t, have, want, [][]byte{fresh}, Options{Report: func(p Piece) {
		if !p.Predicted || p.Base != "bin/tool" {
			t.Errorf("%+v", p)
		}
	}})
	// 168 bytes were inserted; every call across them has changed.
	if len(coded) > 600 {
		t.Errorf("%d bytes for %d, %+v", len(coded), len(fresh), stats)
	}
}

func TestAProgramMadeFromSomethingElse(t *testing.T) {
	old := random(8, 100_000)
	fresh := program(500, nil)
	roundTrip(t, []Set{{Name: "old", Files: []File{file("bin/tool", old)}}}, []File{file("bin/tool", fresh)}, [][]byte{fresh}, Options{})
	// And the other way round: the old one is a program, the new one is none.
	roundTrip(t, []Set{{Name: "old", Files: []File{file("bin/tool", fresh)}}}, []File{file("bin/tool", old)}, [][]byte{old}, Options{})
	// Headers that point nowhere.
	broken := program(500, nil)
	for i := 32; i < 200; i++ {
		broken[i] ^= byte(i * 37)
	}
	roundTrip(t, []Set{{Name: "old", Files: []File{file("bin/tool", fresh)}}}, []File{file("bin/tool", broken)}, [][]byte{broken}, Options{})
}

func BenchmarkEncode(b *testing.B) {
	old, fresh := program(20_000, nil), program(20_000, map[int]int{5: 40, 9000: 100})
	have, want := []Set{{Name: "old", Files: []File{file("bin/tool", old)}}}, []File{file("bin/tool", fresh)}
	b.SetBytes(int64(len(fresh)))
	for b.Loop() {
		encode(b, have, want, Options{})
	}
}

func BenchmarkApply(b *testing.B) {
	old, fresh := program(20_000, nil), program(20_000, map[int]int{5: 40, 9000: 100})
	have, want := []Set{{Name: "old", Files: []File{file("bin/tool", old)}}}, []File{file("bin/tool", fresh)}
	coded, _ := encode(b, have, want, Options{})
	b.SetBytes(int64(len(fresh)))
	for b.Loop() {
		if _, err := apply(b, coded, have, nil); err != nil {
			b.Fatal(err)
		}
	}
}
