package reference

import "slices"

// What is known of a Go type (internal/abi, since Go 1.18), in bytes: where its
// name's and its pointer type's distances are, and how large the type is, by kind,
// before what types with methods have in addition.
const (
	typeName    = 40
	typePointer = 44
	typeSize    = 48
	kindArray   = 17
	kindFunc    = 19
	kindIface   = 20
	kindMap     = 21
	kindLast    = 26
)

var typeSizes = [kindLast + 1]int{kindArray: 72, 18: 64, kindFunc: 56, kindIface: 80, kindMap: 112, 22: 56, 23: 56, 25: 80}

// types notes the fields of Go types: distances of names and types from where
// types begin, and of methods from where code does. Types are found by what
// refers to them.
func (f *finder) types() {
	functions, code := f.section(".gopclntab"), f.section(".text")
	if functions == nil || code == nil {
		return
	}
	from, base, ok1 := f.module(functions, moduleTypes, roleTypes)
	to, ok2 := f.moduleAddress(functions, moduleTypes+8)
	off, _, ok3 := Offset(f.loads, from)
	textBase, ok4 := f.role(roleCode, code.address)
	if !ok1 || !ok2 || !ok3 || !ok4 || to <= from || off+to-from > int64(len(f.p)) {
		return
	}
	t := types{finder: f, p: f.p[off : off+to-from], off: int(off), from: from, base: base, code: code, textBase: textBase}
	slices.Sort(f.places)
	for _, p := range slices.Compact(f.places) {
		if place := int64(p); place >= from && place < to && place&7 == 0 {
			t.find(int(place - from))
		}
	}
	f.places = nil
}

type types struct {
	*finder
	p        []byte // from the first type on
	off      int    // of p in the file
	from     int64  // address of p
	base     uint16
	code     *section
	textBase uint16
}

// find notes the fields of the type at p[at:], if there is one.
func (t *types) find(at int) {
	if at > len(t.p)-typeSize {
		return
	}
	x := t.p[at:]
	flags, align, kind := x[20], x[21], int(x[23]&31)
	if le.Uint64(x[8:]) > le.Uint64(x) || le.Uint64(x) > 1<<32 || flags > 31 || align == 0 || align&(align-1) != 0 || align > 64 || kind == 0 || kind > kindLast {
		return
	}
	if name := le.Uint32(x[typeName:]); name == 0 || int64(name) >= int64(len(t.p)) || int64(le.Uint32(x[typePointer:])) >= int64(len(t.p)) {
		return
	}
	t.distance(at + typeName)
	t.distance(at + typePointer)
	size := max(typeSizes[kind], typeSize)
	if kind == kindIface && at <= len(t.p)-size {
		methods, n := int64(le.Uint64(x[56:])-t.lowest)-t.from, le.Uint64(x[64:])
		for i := int64(0); i < int64(min(n, 1000)) && methods >= 0 && methods+8*i+8 <= int64(len(t.p)); i++ {
			t.distance(int(methods + 8*i))
			t.distance(int(methods + 8*i + 4))
		}
	}
	if flags&1 == 0 || at > len(t.p)-size-16 {
		return
	}
	u := x[size:]
	t.distance(at + size)
	n, methods := int(le.Uint16(u[4:])), int64(at+size)+int64(le.Uint32(u[8:]))
	for i := int64(0); i < int64(n) && methods+16*i+16 <= int64(len(t.p)); i++ {
		m := int(methods + 16*i)
		t.distance(m)
		t.distance(m + 4)
		t.function(m + 8)
		t.function(m + 12)
	}
}

// distance notes a distance from the first type, function one from the code.
func (t *types) distance(at int) {
	if v := le.Uint32(t.p[at:]); v != 0 && int64(v) < int64(len(t.p)) {
		t.based(t.off+at, t.base, t.from+int64(v))
	}
}

func (t *types) function(at int) {
	if v := int64(int32(le.Uint32(t.p[at:]))); v > 0 && v < int64(t.code.size) {
		t.based(t.off+at, t.textBase, t.code.address+v)
	}
}
