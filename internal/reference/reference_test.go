package reference

import (
	"encoding/binary"
	"os"
	"runtime"
	"testing"
)

func TestDecodeKnowsLengthsAndFields(t *testing.T) {
	for _, c := range []struct {
		code   string
		length int
		field  int
	}{
		{"\x90", 1, 0},
		{"\xe8\x00\x00\x00\x00", 5, 1},                      // call
		{"\x0f\x84\x00\x00\x00\x00", 6, 2},                  // je
		{"\x48\x8d\x05\x00\x00\x00\x00", 7, 3},              // lea rax, [rip]
		{"\x48\x8b\x44\x24\x08", 5, 0},                      // mov rax, [rsp+8]
		{"\xc7\x05\x00\x00\x00\x00\x01\x00\x00\x00", 10, 2}, // mov dword [rip], 1
		{"\x66\xc7\x05\x00\x00\x00\x00\x01\x00", 9, 3},      // mov word [rip], 1
		{"\x48\xb8\x01\x02\x03\x04\x05\x06\x07\x08", 10, 0}, // mov rax, imm64
		{"\xf6\x05\x00\x00\x00\x00\x01", 7, 2},              // test byte [rip], 1
		{"\xf7\x1d\x00\x00\x00\x00", 6, 2},                  // neg dword [rip]
		{"\xc5\xfa\x10\x05\x00\x00\x00\x00", 8, 4},          // vmovss xmm0, [rip]
		{"\xc4\xe3\x7d\x19\x05\x00\x00\x00\x00\x01", 10, 5}, // vextractf128 [rip], ymm0, 1
		{"\x66\x0f\x3a\x0f\x05\x00\x00\x00\x00\x08", 10, 5}, // palignr xmm0, [rip], 8
		{"\x62\xf1\x7c\x48\x10\x05\x00\x00\x00\x00", 10, 6}, // vmovups zmm0, [rip]
		{"\x64\x48\x8b\x0c\x25\xf8\xff\xff\xff", 9, 0},      // mov rcx, fs:[-8]
		{"\x06", 0, 0},     // invalid
		{"\xe8\x00", 0, 0}, // cut off
		{"\x66\x66\x2e\x0f\x1f\x84\x00\x00\x00\x00\x00", 11, 0}, // nop
	} {
		x := decode([]byte(c.code))
		if x.length != c.length || c.length > 0 && x.field != c.field {
			t.Errorf("%x: %d bytes, field at %d; want %d, %d", c.code, x.length, x.field, c.length, c.field)
		}
	}
}

// The test's own binary is a program with everything that this looks for.
func TestFieldsOfThisProgram(t *testing.T) {
	p, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Skip(err)
	}
	f := Find(p)
	if f == nil {
		t.Fatalf("%s/%s: not understood", runtime.GOOS, runtime.GOARCH)
	}
	kinds := map[Kind]int{}
	end := uint32(0)
	for _, x := range f.Fields {
		if x.Pos < end || int(x.Pos)+x.Kind.Size() > len(p) {
			t.Fatalf("%+v behind %d of %d", x, end, len(p))
		}
		end = x.Pos + uint32(x.Kind.Size())
		kinds[x.Kind]++
		// A target that moved by nothing leaves the field as it is.
		field := p[x.Pos:end]
		address, _ := Address(f.Loads, int64(x.Pos))
		var now [8]byte
		x.Put(now[:x.Kind.Size()], x.Shifted(field, address, 0, 0))
		if string(now[:x.Kind.Size()]) != string(field) {
			t.Fatalf("%+v: %x becomes %x", x, field, now)
		}
		// And one that moved is found again.
		x.Put(now[:x.Kind.Size()], x.Shifted(field, address, 4096, 64))
		if shift, ok := x.Shift(field, now[:], 64); ok && shift != 4096 {
			t.Fatalf("%+v: moved by 4096, found %d", x, shift)
		}
	}
	for _, k := range []Kind{Absolute64, Based32} {
		if kinds[k] < 1000 {
			t.Errorf("%d fields of kind %d", kinds[k], k)
		}
	}
	t.Logf("%d bytes, fields by kind: %v", len(p), kinds)
}

func TestWhatIsNotUnderstoodIsLeftAlone(t *testing.T) {
	for _, p := range [][]byte{nil, []byte("#!/bin/sh\n"), make([]byte, 1000), append([]byte("\x7fELF\x02\x01"), make([]byte, 200)...)} {
		if Find(p) != nil {
			t.Errorf("%.10q", p)
		}
	}
}

// small is a minimal program: one load, one section of code, one of names.
func small(machine uint16, code []byte) []byte {
	le := binary.LittleEndian
	p := make([]byte, 0x400)
	copy(p, "\x7fELF\x02\x01\x01")
	le.PutUint16(p[18:], machine)
	le.PutUint64(p[32:], 64)
	le.PutUint64(p[40:], 0x300)
	le.PutUint16(p[54:], 56)
	le.PutUint16(p[56:], 1)
	le.PutUint16(p[58:], 64)
	le.PutUint16(p[60:], 1)
	h := p[64:]
	le.PutUint32(h, 1)
	le.PutUint64(h[16:], 0x400000)
	le.PutUint64(h[32:], 0x400)
	le.PutUint64(h[40:], 0x800)
	s := p[0x300:]
	le.PutUint32(s[4:], 1)
	le.PutUint64(s[8:], 6)
	le.PutUint64(s[16:], 0x400100)
	le.PutUint64(s[24:], 0x100)
	le.PutUint64(s[32:], 0x100)
	copy(p[0x100:], code)
	return p
}

func TestArm(t *testing.T) {
	// bl .+8; adrp x0, 0; add x0, x0, #0x123; ret
	f := Find(small(machineArm, []byte("\x02\x00\x00\x94\x00\x00\x00\x90\x00\x8c\x04\x91\xc0\x03\x5f\xd6")))
	if f == nil || len(f.Fields) < 3 {
		t.Fatalf("%+v", f)
	}
	for i, want := range []Field{{Pos: 0x100, Target: 0x108, Kind: Branch26}, {Pos: 0x104, Target: 0x123, Kind: Page21}, {Pos: 0x108, Target: 0x123, Kind: Low12}} {
		if f.Fields[i] != want {
			t.Errorf("%+v, want %+v", f.Fields[i], want)
		}
	}
}

func FuzzFind(f *testing.F) {
	f.Add(small(machineX86, []byte("\xe8\x10\x00\x00\x00\x48\x8d\x05\x00\x00\x00\x00")))
	f.Add(small(machineArm, []byte("\x02\x00\x00\x94\x00\x00\x00\x90\x00\x8c\x04\x91")))
	f.Fuzz(func(t *testing.T, p []byte) {
		x := Find(p)
		if x == nil {
			return
		}
		end := uint32(0)
		for _, field := range x.Fields {
			if field.Pos < end || int(field.Pos)+field.Kind.Size() > len(p) {
				t.Fatalf("%+v behind %d of %d", field, end, len(p))
			}
			end = field.Pos + uint32(field.Kind.Size())
			if b, ok := field.Base(); ok && b >= len(x.Bases) {
				t.Fatalf("base %d of %d", b, len(x.Bases))
			}
		}
	})
}
