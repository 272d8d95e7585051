package delta

import (
	"cmp"
	"context"
	"slices"
	"sort"

	"github.com/airstream-io/airstream/internal/bindiff"
	"github.com/airstream-io/airstream/internal/reference"
)

// predictor says what references of a base become in the new file: where their
// targets have moved follows from the alignment, or from an earlier reference to
// the same target, which is known on both sides once it is coded.
type predictor struct {
	file  *reference.File  // the base
	loads []reference.Load // of the new file
	start int              // where the base begins in the group's text
	size  int              // of the base
	moved []moved
	bases []int64 // by how much the addresses moved that fields count from

	targets []uint32 // a table by hash of the address: which it is
	shifts  []int32  // and by how much it moved
}

// moved is a stretch of the base and where it is in the new file, in bytes.
type moved struct{ old, fresh, length int32 }

const (
	knownTargets = 1 << 19
	// shortest is the length of the shortest segment that says where something
	// has moved, in bytes. (Guess.)
	shortest = 24
)

func newPredictor(file *reference.File, loads []reference.Load, start, size int, segments []bindiff.Segment) *predictor {
	p := &predictor{file: file, loads: loads, start: start, size: size, targets: make([]uint32, knownTargets), shifts: make([]int32, knownTargets)}
	for _, s := range segments {
		if s.Len >= shortest && s.Old >= start && s.Old+s.Len <= start+size {
			p.moved = append(p.moved, moved{int32(s.Old - start), int32(s.New), int32(s.Len)})
		}
	}
	slices.SortFunc(p.moved, func(a, b moved) int {
		return cmp.Or(cmp.Compare(a.old, b.old), cmp.Compare(b.length, a.length), cmp.Compare(a.fresh, b.fresh))
	})
	// Where two claim the same, the longer one is right.
	kept := p.moved[:0]
	for _, m := range p.moved {
		if n := len(kept); n > 0 && m.old < kept[n-1].old+kept[n-1].length {
			if m.length <= kept[n-1].length {
				continue
			}
			if kept[n-1].length = m.old - kept[n-1].old; kept[n-1].length == 0 {
				kept = kept[:n-1]
			}
		}
		kept = append(kept, m)
	}
	p.moved = kept
	for _, b := range file.Bases {
		p.bases = append(p.bases, p.byPlace(int64(b)))
	}
	return p
}

// place returns where the byte at old of the base is in the new file.
func (p *predictor) place(old int64) int64 {
	i := sort.Search(len(p.moved), func(i int) bool { return int64(p.moved[i].old) > old })
	if i > 0 {
		i--
	}
	if i == len(p.moved) {
		return old
	}
	return old - int64(p.moved[i].old) + int64(p.moved[i].fresh)
}

// byPlace says by how much an address has moved, by the alignment.
func (p *predictor) byPlace(address int64) int64 {
	off, load, ok := reference.Offset(p.file.Loads, address)
	if load < 0 {
		return 0
	}
	if ok {
		if a, ok := reference.Address(p.loads, p.place(off)); ok {
			return a - address
		}
	}
	if load < len(p.loads) { // memory behind the file's content
		o, n := p.file.Loads[load], p.loads[load]
		return n.Address + n.Size - o.Address - o.Size
	}
	return 0
}

func slot(address uint32) uint32 { return address * 0x9e3779b1 >> 12 % knownTargets }

// target says by how much a target has moved.
func (p *predictor) target(address uint32) int64 {
	if i := slot(address); p.targets[i] == address+1 {
		return int64(p.shifts[i])
	}
	return p.byPlace(int64(address))
}

// learn notes by how much a target has moved.
func (p *predictor) learn(address uint32, shift int64) {
	if int64(int32(shift)) == shift {
		i := slot(address)
		p.targets[i], p.shifts[i] = address+1, int32(shift)
	}
}

// forget makes p as it was before it learned anything.
func (p *predictor) forget() {
	if p != nil {
		clear(p.targets)
	}
}

// fields returns the references in n bytes of the group's text.
func (p *predictor) fields(at, n int) []reference.Field {
	if p == nil || at < p.start || at+n > p.start+p.size {
		return nil
	}
	at -= p.start
	f := p.file.Fields
	from, _ := slices.BinarySearchFunc(f, at, func(x reference.Field, at int) int { return cmp.Compare(int(x.Pos), at) })
	to := from
	for to < len(f) && int(f[to].Pos)+f[to].Kind.Size() <= at+n {
		to++
	}
	return f[from:to]
}

// self says where a field is, and by how much it, or what it counts from, has
// moved, if it is at fresh in the new file.
func (p *predictor) self(x reference.Field, fresh int64) (address, shift int64) {
	address, _ = reference.Address(p.file.Loads, int64(x.Pos))
	if b, ok := x.Base(); ok {
		return address, p.bases[b]
	}
	if a, ok := reference.Address(p.loads, fresh); ok {
		return address, a - address
	}
	return address, fresh - int64(x.Pos)
}

// rewrite returns the base with its references as they are predicted: what
// differs only in them aligns better.
func (p *predictor) rewrite(base []byte) []byte {
	out := slices.Clone(base)
	for _, x := range p.file.Fields {
		address, self := p.self(x, p.place(int64(x.Pos)))
		x.Put(out[x.Pos:], x.Shifted(base[x.Pos:], address, p.target(x.Target), self))
	}
	return out
}

// stretch codes bytes of a segment: predicted, which becomes the new ones, are
// the old ones at old of the group's text; fresh are the new ones when encoding,
// and at is their place in the new file. While counting, it returns the number of
// misses.
func (k *code) stretch(p *predictor, predicted, fresh []byte, old int, at int64) (missed int, err error) {
	done := 0
	part := func(to, field int) error {
		k.field = field
		var f []byte
		if fresh != nil {
			f = fresh[done:to]
		}
		b := predicted[done:to]
		done = to
		if k.counting {
			missed += k.count(b, f)
			copy(b, f)
			return nil
		}
		return k.some(b, f)
	}
	var before [8]byte
	for _, x := range p.fields(old, len(predicted)) {
		from := int(x.Pos) + p.start - old
		if err := part(from, 0); err != nil {
			return missed, err
		}
		field := predicted[from : from+x.Kind.Size()]
		copy(before[:], field)
		address, self := p.self(x, at+int64(from))
		x.Put(field, x.Shifted(field, address, p.target(x.Target), self))
		if err := part(from+len(field), int(x.Kind)+1); err != nil {
			return missed, err
		}
		if shift, ok := x.Shift(before[:], field, self); ok {
			p.learn(x.Target, shift)
		}
	}
	return missed, part(len(predicted), 0)
}

// loads codes how the new file is mapped, by how it differs from the old one.
func (k *code) loads(old, fresh []reference.Load) ([]reference.Load, error) {
	n, err := k.number(fieldLoads, int64(len(fresh)), reference.MaxLoads)
	if err != nil {
		return nil, err
	}
	out := make([]reference.Load, n)
	copy(out, fresh)
	for i := range out {
		var o reference.Load
		if i < len(old) {
			o = old[i]
		}
		x := &out[i]
		for _, v := range [...]struct{ to, from *int64 }{{&x.Off, &o.Off}, {&x.Address, &o.Address}, {&x.Size, &o.Size}, {&x.Memory, &o.Memory}} {
			by, err := k.signed(fieldLoad, *v.to-*v.from)
			if err != nil {
				return nil, err
			}
			if *v.to = *v.from + by; *v.to < 0 || *v.to > 1<<40 || by > 1<<40 {
				return nil, k.wrong("place of a load", by)
			}
		}
	}
	return out, nil
}

// fresh is what a sender knows of the references in the new file.
type fresh struct {
	loads []reference.Load
	roles [reference.Roles]int64 // addresses of bases, -1 for none
}

// freshOf returns what is known of a file, nil if it is not understood.
func freshOf(content []byte) *fresh {
	f := reference.Find(content)
	if f == nil {
		return nil
	}
	x := &fresh{loads: f.Loads}
	for i, number := range f.Roles {
		x.roles[i] = -1
		if number >= 0 {
			x.roles[i] = int64(f.Bases[number])
		}
	}
	return x
}

// correct returns by how much the alignment is wrong about where the base with
// the role has moved.
func (p *predictor) correct(x *fresh, role int) int64 {
	number := p.file.Roles[role]
	if x == nil || number < 0 || x.roles[role] < 0 {
		return 0
	}
	return x.roles[role] - int64(p.file.Bases[number]) - p.bases[number]
}

// correctAll puts the bases that have roles where they are.
func (p *predictor) correctAll(x *fresh) {
	for role, number := range p.file.Roles {
		if number >= 0 {
			p.bases[number] += p.correct(x, role)
		}
	}
}

// predict makes the predictor of a piece from the base that it resembles most,
// nil if references are not predicted: this is said in the code as well. The
// base begins at start in the group's text. Decoding, x is nil.
func (k *code) predict(ctx context.Context, x *fresh, start, size int, segments []bindiff.Segment, base func(context.Context) (*reference.File, error)) (*predictor, error) {
	flag := int64(0)
	var loads []reference.Load
	if x != nil {
		flag, loads = 1, x.loads
	}
	flag, err := k.number(fieldPredicted, flag, 1)
	if err != nil || flag == 0 {
		return nil, err
	}
	file, err := base(ctx)
	if err != nil {
		return nil, err
	}
	if file == nil {
		return nil, k.wrong("prediction from a base of", "another kind")
	}
	if loads, err = k.loads(file.Loads, loads); err != nil {
		return nil, err
	}
	p := newPredictor(file, loads, start, size, segments)
	for role, number := range file.Roles {
		if number < 0 {
			continue
		}
		by, err := k.signed(fieldRole, p.correct(x, role))
		if err != nil {
			return nil, err
		}
		p.bases[number] += by
	}
	return p, nil
}
