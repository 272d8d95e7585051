package reference

// finder collects the fields of a file.
type finder struct {
	*elf
	file   *File
	tables []uint32         // addresses that code takes in data: jump tables may be there
	known  map[int64]uint16 // numbers of bases
	places []uint32         // addresses in data that something refers to: types may be there
}

// add notes a field at an offset, whose target is an address counted from the
// lowest one.
func (f *finder) add(kind Kind, off int, target int64) {
	if len(f.file.Fields) < MaxFields {
		f.file.Fields = append(f.file.Fields, Field{Pos: uint32(off), Target: uint32(target), Kind: kind})
	}
}

// base returns the number of a base for based; ok is false if there are too many.
func (f *finder) base(address int64) (number uint16, ok bool) {
	if number, ok = f.known[address]; ok {
		return number, true
	}
	if len(f.file.Bases) > 65535 || address < 0 || address >= 1<<32 {
		return 0, false
	}
	number = uint16(len(f.file.Bases))
	f.file.Bases = append(f.file.Bases, uint32(address))
	f.known[address] = number
	return number, true
}

// role is base for one that has a role.
func (f *finder) role(role int, address int64) (number uint16, ok bool) {
	if number, ok = f.base(address); ok {
		f.file.Roles[role] = int(number)
	}
	return number, ok
}

// based notes a field at an offset that counts from the base.
func (f *finder) based(off int, base uint16, target int64) { f.counted(Based32, off, base, target) }

func (f *finder) counted(kind Kind, off int, base uint16, target int64) {
	if len(f.file.Fields) < MaxFields && target >= 0 && target < 1<<32 {
		f.file.Fields = append(f.file.Fields, Field{Pos: uint32(off), Target: uint32(target), base: base, Kind: kind})
	}
}

func (f *finder) find() {
	for i := range f.sections {
		s := &f.sections[i]
		p := f.p[s.off : s.off+s.size]
		switch {
		case s.exec && f.machine == machineX86:
			f.x86(s, p)
		case s.exec:
			f.arm(s, p)
		case s.kind == sectionRela:
			f.relocations(s, p)
		case s.kind == sectionDynsym:
			for at := 0; at+24 <= len(p); at += 24 {
				f.absolute(s.off+at+8, le.Uint64(p[at+8:]), 1)
			}
		case s.name == ".eh_frame":
			f.unwind(s, p)
		case s.name == ".eh_frame_hdr":
			f.unwindTable(s, p)
		case s.name == ".gopclntab":
			f.functions(s, p)
		case s.name == ".typelink":
			f.typeLinks(s, p)
		default:
			f.pointers(s, p)
		}
	}
	f.types()
}

// absolute notes an 8-byte address, if it is one and not below least.
func (f *finder) absolute(off int, v, least uint64) {
	if v >= least && v >= f.lowest && v-f.lowest < 1<<32 && f.loaded(int64(v-f.lowest)) {
		f.add(Absolute64, off, int64(v-f.lowest))
		f.places = append(f.places, uint32(v-f.lowest))
	}
}

// relocations notes the places that are relocated, and the addends that are addresses.
func (f *finder) relocations(s *section, p []byte) {
	for at := 0; at+24 <= len(p); at += 24 {
		f.absolute(s.off+at, le.Uint64(p[at:]), 1)
		if kind := uint32(le.Uint64(p[at+8:])); kind == relativeX86 || kind == relativeArm {
			f.absolute(s.off+at+16, le.Uint64(p[at+16:]), 1)
		}
	}
}

// pointers notes what looks like an address in data. Where the file is loaded
// at 0, small numbers do so as well, and addresses stand in relocations instead.
func (f *finder) pointers(s *section, p []byte) {
	const least = 0x10000
	if f.lowest < least && s.name != ".dynamic" && s.name != ".got" && s.name != ".init_array" && s.name != ".data.rel.ro" {
		return
	}
	for at := -s.off & 7; at+8 <= len(p); at += 8 {
		f.absolute(s.off+at, le.Uint64(p[at:]), 0x1000)
	}
}

// unwind notes where the functions of an unwind section begin.
func (f *finder) unwind(s *section, p []byte) {
	for at := 0; at+16 <= len(p); {
		n := int(le.Uint32(p[at:]))
		if n < 4 || n > len(p)-at-4 {
			return
		}
		if n >= 12 && le.Uint32(p[at+4:]) != 0 {
			if t := s.address + int64(at) + 8 + int64(int32(le.Uint32(p[at+8:]))); f.executable(t) {
				f.add(Relative32, s.off+at+8, t)
			}
		}
		at += 4 + n
	}
}

// unwindTable notes both columns of the table over an unwind section.
func (f *finder) unwindTable(s *section, p []byte) {
	if len(p) < 12 || p[3] != 0x3b {
		return
	}
	b, ok := f.role(roleUnwind, s.address)
	for at := 12; ok && at+4 <= len(p); at += 4 {
		f.based(s.off+at, b, s.address+int64(int32(le.Uint32(p[at:]))))
	}
	if t := s.address + 4 + int64(int32(le.Uint32(p[4:]))); f.loaded(t) {
		f.add(Relative32, s.off+4, t)
	}
}
