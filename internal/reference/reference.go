// Package reference finds where a program or library (ELF, little-endian 64
// bits, x86-64 or arm64) refers to places of itself: calls, jumps, addresses in
// instructions, relocations, unwind tables, Go's function tables. When a new
// version of the file has such a field, and its target, in other places, the
// field's new value follows from the old one.
//
// Everything is derived from the old file, which both sides have; nothing in it
// is trusted, and what is not understood is left alone: a wrong guess costs a few
// bytes of a delta, never its correctness.
package reference

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// Kind says how a field holds its target.
type Kind uint8

const (
	// Relative32 is a signed distance from the field, 4 bytes.
	Relative32 Kind = iota
	// Absolute64 is an address, 8 bytes.
	Absolute64
	// Based32 is a distance from a base, 4 bytes.
	Based32
	// Based32x4 is a distance from a base in units of 4 bytes, 4 bytes.
	Based32x4
	// Branch26 is an arm64 b or bl: a distance in instructions in 26 bits.
	Branch26
	// Page21 is an arm64 adrp: a distance in pages of 4 KiB in 21 bits.
	Page21
	// Low12 is the rest of such an address in an arm64 add of 12 bits.
	Low12
)

// Size returns how long the field is, in bytes.
func (k Kind) Size() int {
	if k == Absolute64 {
		return 8
	}
	return 4
}

// Field is one reference. Addresses are as the file is loaded, counted from the
// lowest one.
type Field struct {
	Pos    uint32 // offset in the file
	Target uint32 // address
	base   uint16 // for Based32 and Based32x4: number in File.Bases
	Kind   Kind
}

// Load is a stretch of the file that is mapped into memory.
type Load struct {
	Off, Address, Size int64 // bytes; the address is counted from the lowest one
	Memory             int64 // size in memory, at least Size
}

// File is what is known of a file.
type File struct {
	Loads  []Load   // by address, not overlapping
	Fields []Field  // by Pos, not overlapping
	Bases  []uint32 // addresses that fields count from
	// Roles are the numbers of the bases that every file of its sort has, -1 for
	// those that this one lacks: where two files have one, they correspond.
	Roles [Roles]int
}

// Roles is how many roles bases have.
const Roles = 9

const (
	roleUnwind = iota
	roleCode
	roleNames
	roleUnits
	roleFiles
	roleValues
	roleFunctions
	roleFuncData
	roleTypes
)

const (
	// MaxSize is the longest file that is looked at, in bytes.
	MaxSize = 1 << 30
	// MaxLoads is how many loads a file may have.
	MaxLoads = 16
	// MaxFields bounds the memory for fields, 12 bytes each.
	MaxFields = 15 << 18
)

// Find returns the references in the content of a file, nil if it is not ELF of
// a kind that is understood.
func Find(content []byte) *File {
	e := parse(content)
	if e == nil {
		return nil
	}
	// Programs have a field every 20 to 40 bytes.
	room := make([]Field, 0, min(MaxFields, len(content)/16))
	f := &finder{elf: e, file: &File{Loads: e.loads, Fields: room}, known: map[int64]uint16{}}
	for i := range f.file.Roles {
		f.file.Roles[i] = -1
	}
	f.find()
	slices.SortFunc(f.file.Fields, func(a, b Field) int { return cmp.Or(cmp.Compare(a.Pos, b.Pos), cmp.Compare(a.Kind, b.Kind)) })
	kept := f.file.Fields[:0]
	end := uint32(0)
	for _, x := range f.file.Fields {
		if x.Pos >= end {
			kept = append(kept, x)
			end = x.Pos + uint32(x.Kind.Size())
		}
	}
	f.file.Fields = kept
	return f.file
}

// Base returns the number of the base that a field counts from, false if it
// counts from itself or from nothing.
func (x Field) Base() (number int, ok bool) {
	return int(x.base), x.Kind == Based32 || x.Kind == Based32x4
}

// Address returns the address of an offset in the file, false if it has none.
func Address(loads []Load, off int64) (int64, bool) {
	for _, l := range loads {
		if off >= l.Off && off-l.Off < l.Size {
			return off - l.Off + l.Address, true
		}
	}
	return 0, false
}

// Offset returns where the byte of an address is in the file. If it is in
// memory only, it returns false and the number of its load, -1 if it has none.
func Offset(loads []Load, address int64) (off int64, load int, ok bool) {
	for i, l := range loads {
		if address >= l.Address && address-l.Address < l.Memory {
			return address - l.Address + l.Off, i, address-l.Address < l.Size
		}
	}
	return 0, -1, false
}

// Shifted returns the field's content p, of x.Kind.Size() bytes, as it is when its
// target has moved by target bytes, and itself (or its base, if it counts from one) by self.
// The address is the field's old one.
func (x Field) Shifted(p []byte, address, target, self int64) uint64 {
	switch x.Kind {
	case Absolute64:
		return binary.LittleEndian.Uint64(p) + uint64(target)
	case Based32x4:
		return uint64(binary.LittleEndian.Uint32(p) + uint32((target-self)>>2))
	case Branch26:
		v := binary.LittleEndian.Uint32(p)
		return uint64(v&^(1<<26-1) | (v+uint32((target-self)>>2))&(1<<26-1))
	case Page21:
		v := binary.LittleEndian.Uint32(p)
		pages := (int64(x.Target)+target)>>12 - (address+self)>>12
		return uint64(v&0x9f00001f | uint32(pages&3)<<29 | uint32(pages>>2&(1<<19-1))<<5)
	case Low12:
		v := binary.LittleEndian.Uint32(p)
		return uint64(v&^(0xfff<<10) | uint32((int64(x.Target)+target)&0xfff)<<10)
	default:
		return uint64(binary.LittleEndian.Uint32(p) + uint32(target-self))
	}
}

// Shift is the inverse: by how much the target has moved if the field has
// become now. It returns false if the field doesn't tell.
func (x Field) Shift(p, now []byte, self int64) (int64, bool) {
	switch x.Kind {
	case Absolute64:
		return int64(binary.LittleEndian.Uint64(now) - binary.LittleEndian.Uint64(p)), true
	case Branch26:
		d := binary.LittleEndian.Uint32(now) - binary.LittleEndian.Uint32(p)
		return int64(int32(d<<6))>>4 + self, true
	case Based32x4:
		return int64(int32(binary.LittleEndian.Uint32(now)-binary.LittleEndian.Uint32(p)))<<2 + self, true
	case Relative32, Based32:
		return int64(int32(binary.LittleEndian.Uint32(now)-binary.LittleEndian.Uint32(p))) + self, true
	default:
		return 0, false
	}
}

// Put writes v over the field's bytes.
func (x Field) Put(p []byte, v uint64) {
	if x.Kind == Absolute64 {
		binary.LittleEndian.PutUint64(p, v)
	} else {
		binary.LittleEndian.PutUint32(p, uint32(v))
	}
}
