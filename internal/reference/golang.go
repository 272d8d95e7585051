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

// functionTable is the table of functions of a Go program, as it is read.
type functionTable struct {
	*finder
	s *section
	p []byte
	// The bases, and where they are in p.
	code, names, units, values, table, data uint16
	namesAt, unitsAt, valuesAt, tableAt     int64

	codeAddress, dataAddress int64
	hasData                  bool
	starts                   []uint32        // where what functions have in data begins
	trees                    map[uint32]bool // those that say what was inlined
}

// functions notes the fields of the table of functions.
func (f *finder) functions(s *section, p []byte) {
	code := f.section(".text")
	if len(p) < 72 || le.Uint32(p) != goMagic || code == nil {
		return
	}
	place := func(at int) int64 { return int64(min(le.Uint64(p[at:]), uint64(len(p)))) }
	t := &functionTable{finder: f, s: s, p: p, codeAddress: code.address, trees: map[uint32]bool{}}
	t.namesAt, t.unitsAt, t.valuesAt, t.tableAt = place(32), place(40), place(56), place(64)
	filesAt := place(48)
	count := int64(le.Uint64(p[8:]))
	if count < 0 || count > int64(len(p)) || t.tableAt+count*8+4 > int64(len(p)) {
		return
	}
	var files uint16
	for _, x := range []struct {
		number  *uint16
		role    int
		address int64
	}{
		{&t.code, roleCode, code.address},
		{&t.names, roleNames, s.address + t.namesAt},
		{&t.units, roleUnits, s.address + t.unitsAt},
		{&files, roleFiles, s.address + filesAt},
		{&t.values, roleValues, s.address + t.valuesAt},
		{&t.table, roleFunctions, s.address + t.tableAt},
	} {
		number, ok := f.role(x.role, x.address)
		if !ok {
			return
		}
		*x.number = number
	}
	t.dataAddress, t.data, t.hasData = f.module(s, moduleGofunc, roleFuncData)
	for at := t.unitsAt; at+4 <= filesAt; at += 4 {
		if v := le.Uint32(p[at:]); v != 1<<32-1 {
			f.based(s.off+int(at), files, s.address+filesAt+int64(v))
		}
	}
	for i := range count {
		at := t.tableAt + i*8
		t.entry(at)
		entry := t.tableAt + int64(le.Uint32(p[at+4:]))
		f.based(s.off+int(at)+4, t.table, s.address+entry)
		if entry <= int64(len(p))-44 {
			t.function(entry)
		}
	}
	t.entry(t.tableAt + count*8)
	f.inlined(t.starts, t.trees, t.names, s.address+t.namesAt, t.unitsAt-t.namesAt)
}

// entry notes the address of a function's code.
func (t *functionTable) entry(at int64) {
	t.based(t.s.off+int(at), t.code, t.codeAddress+int64(le.Uint32(t.p[at:])))
}

// function notes the fields of one function, of 44 bytes and two lists.
func (t *functionTable) function(at int64) {
	x, off := t.p[at:], t.s.off+int(at)
	t.entry(at)
	t.based(off+4, t.names, t.s.address+t.namesAt+int64(le.Uint32(x[4:])))
	for _, k := range []int{16, 20, 24} {
		t.value(off+k, x[k:])
	}
	t.counted(Based32x4, off+32, t.units, t.s.address+t.unitsAt+4*int64(le.Uint32(x[32:])))
	end := 44
	for n := int(min(le.Uint32(x[28:]), 64)); n > 0 && end+4 <= len(x); n-- {
		t.value(off+end, x[end:])
		end += 4
	}
	for k := 0; k < int(x[43]) && end+4 <= len(x); k++ {
		if v := le.Uint32(x[end:]); t.hasData && v != 1<<32-1 {
			target := uint32(t.dataAddress) + v
			t.based(off+end, t.data, t.dataAddress+int64(v))
			t.starts = append(t.starts, target)
			if k == dataInlined {
				t.trees[target] = true
			}
		}
		end += 4
	}
}

// value notes where values by program counter are; 0 means that there are none.
func (t *functionTable) value(off int, p []byte) {
	if v := le.Uint32(p); v != 0 {
		t.based(off, t.values, t.s.address+t.valuesAt+int64(v))
	}
}

// inlined notes the names in the trees of what was inlined, among the data of
// functions: entries of 16 bytes, up to where the next data begins.
func (f *finder) inlined(data []uint32, trees map[uint32]bool, base uint16, names, size int64) {
	slices.Sort(data)
	data = slices.Compact(data)
	for i, start := range data {
		from := int64(start)
		off, _, ok := Offset(f.loads, from)
		if !ok || !trees[start] {
			continue
		}
		to := from + 1<<16
		if i+1 < len(data) {
			to = min(to, int64(data[i+1]))
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
