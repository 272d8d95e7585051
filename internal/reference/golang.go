package reference

import "slices"

// Where things are in a Go program's function table (since Go 1.20): a header,
// then the names, the tables of files, of values by program counter, and of
// functions, whose places the header has. And where some addresses are in its
// moduledata, which begins with the address of that table. In bytes.
const (
	goMagic      = 0xfffffff1
	moduleTypes  = 296
	moduleGofunc = 320
	// dataInlined is the number of the tree of inlined calls among a function's data.
	dataInlined = 3
)

// functions notes the fields of the table of functions.
func (f *finder) functions(s *section, p []byte) {
	if len(p) < 72 || le.Uint32(p) != goMagic {
		return
	}
	count := int64(le.Uint64(p[8:]))
	place := func(at int) int64 { return int64(min(le.Uint64(p[at:]), uint64(len(p)))) }
	names, units, files, values, table := place(32), place(40), place(48), place(56), place(64)
	code := f.section(".text")
	if code == nil || count < 0 || count > int64(len(p)) || table+count*8+4 > int64(len(p)) {
		return
	}
	textBase, ok1 := f.role(roleCode, code.address)
	nameBase, ok2 := f.role(roleNames, s.address+names)
	valueBase, ok3 := f.role(roleValues, s.address+values)
	tableBase, ok4 := f.role(roleFunctions, s.address+table)
	unitBase, _ := f.role(roleUnits, s.address+units)
	fileBase, _ := f.role(roleFiles, s.address+files)
	for at := units; at+4 <= files; at += 4 {
		if v := le.Uint32(p[at:]); v != 1<<32-1 {
			f.based(s.off+int(at), fileBase, s.address+files+int64(v))
		}
	}
	gofunc, dataBase, ok5 := f.module(s, moduleGofunc, roleFuncData)
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return
	}
	var data []int64          // where what functions have in data begins
	trees := map[int64]bool{} // those that say what was inlined
	for i := range count {
		at := table + i*8
		f.based(s.off+int(at), textBase, code.address+int64(le.Uint32(p[at:])))
		entry := table + int64(le.Uint32(p[at+4:]))
		f.based(s.off+int(at)+4, tableBase, s.address+entry)
		if entry > int64(len(p))-44 {
			continue
		}
		x := p[entry:]
		off := s.off + int(entry)
		f.based(off, textBase, code.address+int64(le.Uint32(x)))
		f.based(off+4, nameBase, s.address+names+int64(le.Uint32(x[4:])))
		for _, k := range []int{16, 20, 24} {
			f.value(off+k, valueBase, s.address+values, x[k:])
		}
		f.counted(Based32x4, off+32, unitBase, s.address+units+4*int64(le.Uint32(x[32:])))
		end := 44
		n := int(min(le.Uint32(x[28:]), 64))
		for ; n > 0 && end+4 <= len(x); n-- {
			f.value(off+end, valueBase, s.address+values, x[end:])
			end += 4
		}
		for k := 0; k < int(x[43]) && end+4 <= len(x); k++ {
			if v := le.Uint32(x[end:]); ok5 && v != 1<<32-1 {
				f.based(off+end, dataBase, gofunc+int64(v))
				data = append(data, gofunc+int64(v))
				if k == dataInlined {
					trees[gofunc+int64(v)] = true
				}
			}
			end += 4
		}
	}
	f.based(s.off+int(table+count*8), textBase, code.address+int64(le.Uint32(p[table+count*8:])))
	f.inlined(data, trees, nameBase, s.address+names, values-names)
}

// inlined notes the names in the trees of what was inlined, among the data of
// functions: entries of 16 bytes, up to where the next data begins.
func (f *finder) inlined(data []int64, trees map[int64]bool, base uint16, names, size int64) {
	slices.Sort(data)
	data = slices.Compact(data)
	for i, from := range data {
		off, _, ok := Offset(f.loads, from)
		if !ok || !trees[from] {
			continue
		}
		to := from + 1<<16
		if i+1 < len(data) {
			to = min(to, data[i+1])
		}
		for ; from+16 <= to && off+16 <= int64(len(f.p)); from, off = from+16, off+16 {
			x := f.p[off:]
			name := int64(le.Uint32(x[4:]))
			if x[0] > 64 || x[1]|x[2]|x[3] != 0 || name >= size {
				break
			}
			f.based(int(off)+4, base, names+name)
		}
	}
}

// value notes a field that counts from a base where 0 means that there is none.
func (f *finder) value(off int, base uint16, from int64, p []byte) {
	if v := le.Uint32(p); v != 0 {
		f.based(off, base, from+int64(v))
	}
}

// module returns an address out of the moduledata that goes with a table of
// functions, and the number of the base that it is.
func (f *finder) module(functions *section, field, role int) (address int64, base uint16, ok bool) {
	if address, ok = f.moduleAddress(functions, field); ok {
		base, ok = f.role(role, address)
	}
	return address, base, ok
}

// moduleAddress is module for an address that nothing counts from.
func (f *finder) moduleAddress(functions *section, field int) (int64, bool) {
	want := uint64(functions.address) + f.lowest
	for i := range f.sections {
		s := &f.sections[i]
		if s.exec || s == functions {
			continue
		}
		p := f.p[s.off : s.off+s.size]
		for at := -s.off & 7; at+moduleGofunc+8 <= len(p); at += 8 {
			if le.Uint64(p[at:]) != want {
				continue
			}
			v := le.Uint64(p[at+field:])
			if v > f.lowest && v-f.lowest < 1<<32 && f.loaded(int64(v-f.lowest)) {
				return int64(v - f.lowest), true
			}
		}
	}
	return 0, false
}

// typeLinks notes the distances of types from where types begin.
func (f *finder) typeLinks(s *section, p []byte) {
	functions := f.section(".gopclntab")
	if functions == nil {
		return
	}
	types, base, ok := f.module(functions, moduleTypes, roleTypes)
	for at := 0; ok && at+4 <= len(p); at += 4 {
		f.based(s.off+at, base, types+int64(int32(le.Uint32(p[at:]))))
	}
}
