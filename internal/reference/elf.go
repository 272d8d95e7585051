package reference

import (
	"cmp"
	"encoding/binary"
	"slices"
)

const (
	machineX86 = 62
	machineArm = 183

	sectionRela   = 4
	sectionDynsym = 11
	flagAlloc     = 2
	flagExec      = 4

	relativeX86 = 8
	relativeArm = 1027
)

// section is a stretch of the file that is loaded.
type section struct {
	name      string
	kind      uint32
	exec      bool
	off, size int
	address   int64
}

type elf struct {
	p        []byte
	machine  uint16
	lowest   uint64
	loads    []Load
	sections []section // by offset, with content, not overlapping
}

var le = binary.LittleEndian

// parse reads the headers, nil if they are not understood.
func parse(p []byte) *elf {
	if len(p) < 64 || len(p) > MaxSize || string(p[:6]) != "\x7fELF\x02\x01" {
		return nil
	}
	e := &elf{p: p, machine: le.Uint16(p[18:])}
	if e.machine != machineX86 && e.machine != machineArm {
		return nil
	}
	if !e.parseLoads() {
		return nil
	}
	e.parseSections()
	return e
}

// table returns entry i of a table, nil if it is not in the file.
func (e *elf) table(off uint64, size, i int) []byte {
	if off > uint64(len(e.p)) || size < 56 {
		return nil
	}
	at := int(off) + i*size
	if at > len(e.p)-size {
		return nil
	}
	return e.p[at : at+size]
}

func (e *elf) parseLoads() bool {
	off, size, n := le.Uint64(e.p[32:]), int(le.Uint16(e.p[54:])), int(le.Uint16(e.p[56:]))
	e.lowest = 1 << 63
	for i := range n {
		h := e.table(off, size, i)
		if h == nil {
			return false
		}
		if le.Uint32(h) != 1 { // PT_LOAD
			continue
		}
		at, address, length, memory := le.Uint64(h[8:]), le.Uint64(h[16:]), le.Uint64(h[32:]), le.Uint64(h[40:])
		if at > uint64(len(e.p)) || length > uint64(len(e.p))-at || address > 1<<47 || memory > 1<<32 || memory < length {
			return false
		}
		e.lowest = min(e.lowest, address)
		e.loads = append(e.loads, Load{int64(at), int64(address), int64(length), int64(memory)})
	}
	if len(e.loads) == 0 || len(e.loads) > MaxLoads {
		return false
	}
	end := int64(0)
	slices.SortFunc(e.loads, func(a, b Load) int { return cmp.Compare(a.Address, b.Address) })
	for i := range e.loads {
		l := &e.loads[i]
		l.Address -= int64(e.lowest)
		if l.Address < end || l.Address+l.Memory > 1<<32-1 {
			return false
		}
		end = l.Address + l.Memory
	}
	return true
}

func (e *elf) parseSections() {
	off, size, n := le.Uint64(e.p[40:]), int(le.Uint16(e.p[58:])), int(le.Uint16(e.p[60:]))
	names := e.table(off, size, int(le.Uint16(e.p[62:])))
	var text []byte
	if names != nil {
		at, length := le.Uint64(names[24:]), le.Uint64(names[32:])
		if at <= uint64(len(e.p)) && length <= uint64(len(e.p))-at {
			text = e.p[at : at+length]
		}
	}
	for i := range n {
		h := e.table(off, size, i)
		if h == nil {
			break
		}
		s := section{kind: le.Uint32(h[4:])}
		flags, address, at, length := le.Uint64(h[8:]), le.Uint64(h[16:]), le.Uint64(h[24:]), le.Uint64(h[32:])
		if flags&flagAlloc == 0 || s.kind == 8 || at > uint64(len(e.p)) || length > uint64(len(e.p))-at || address < e.lowest {
			continue // not loaded, or without content
		}
		s.off, s.size, s.exec = int(at), int(length), flags&flagExec != 0
		s.address = int64(address - e.lowest)
		if name := le.Uint32(h); int64(name) < int64(len(text)) {
			rest := text[name:min(len(text), int(name)+40)]
			if end := slices.Index(rest, 0); end >= 0 {
				s.name = string(rest[:end])
			}
		}
		if a, ok := Address(e.loads, int64(s.off)); ok && a == s.address && s.size > 0 {
			e.sections = append(e.sections, s)
		}
	}
	slices.SortStableFunc(e.sections, func(a, b section) int { return cmp.Compare(a.off, b.off) })
	end := 0
	e.sections = slices.DeleteFunc(e.sections, func(s section) bool {
		if s.off < end {
			return true
		}
		end = s.off + s.size
		return false
	})
}

// loaded reports whether an address counted from the lowest one is in memory.
func (e *elf) loaded(address int64) bool {
	_, load, _ := Offset(e.loads, address)
	return load >= 0
}

// executable reports whether an address is in code.
func (e *elf) executable(address int64) bool {
	for i := range e.sections {
		if s := &e.sections[i]; s.exec && address >= s.address && address-s.address < int64(s.size) {
			return true
		}
	}
	return false
}

// section returns the section with the name, nil if there is none.
func (e *elf) section(name string) *section {
	for i := range e.sections {
		if e.sections[i].name == name {
			return &e.sections[i]
		}
	}
	return nil
}
