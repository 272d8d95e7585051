package store

import (
	"errors"
	"math/bits"
	"slices"

	"github.com/airstream-io/airstream/internal/database"
	"github.com/airstream-io/airstream/internal/toc"
)

// How a presence map is written: one byte that says how, then unless the object
// is complete the map, bit i%8 of byte i/8 for chunk i.
const (
	stateComplete byte = 1
	statePartial  byte = 2
	// stateDoubt is a map of which the database lost a part: chunks that it
	// doesn't have may be in the file all the same. Whoever has their IDs can
	// find out.
	stateDoubt byte = 3
)

// presence is which chunks of an object are in its file.
type presence struct {
	bits    []uint64
	chunks  uint32
	missing uint32
	doubt   bool
}

func newPresence(chunks uint32) presence {
	return presence{bits: make([]uint64, (int(chunks)+63)/64), chunks: chunks, missing: chunks}
}

func (p *presence) has(i uint32) bool { return i < p.chunks && get(p.bits, i) }

// set reports whether it changed something.
func (p *presence) set(i uint32) bool {
	if get(p.bits, i) {
		return false
	}
	set(p.bits, i)
	p.missing--
	return true
}

func (p *presence) unset(i uint32) bool {
	if !get(p.bits, i) {
		return false
	}
	unset(p.bits, i)
	p.missing++
	return true
}

func (p *presence) clear() {
	clear(p.bits)
	p.missing, p.doubt = p.chunks, false
}

// decode reads what encode wrote; ok is false, and nothing is there, if v is
// nothing of that kind.
func (p *presence) decode(v []byte) (ok bool) {
	p.clear()
	switch {
	case len(v) == 1 && v[0] == stateComplete:
		for i := range p.chunks {
			p.set(i)
		}
	case len(v) == 1+(int(p.chunks)+7)/8 && (v[0] == statePartial || v[0] == stateDoubt):
		for i := range p.chunks {
			if v[1+i/8]>>(i%8)&1 == 1 {
				p.set(i)
			}
		}
		p.doubt = v[0] == stateDoubt && p.missing > 0
	case len(v) == 1 && v[0] == stateDoubt:
		p.doubt = true
	default:
		return false
	}
	return true
}

func (p *presence) encode() []byte {
	state := statePartial
	switch {
	case p.missing == 0:
		return []byte{stateComplete}
	case p.doubt:
		state = stateDoubt
	}
	v := slices.Grow([]byte{state}, int(p.chunks+7)/8)
	for i := range (p.chunks + 7) / 8 {
		v = append(v, byte(p.bits[i/8]>>(i%8*8)))
	}
	return v
}

// missingIn counts the chunks that an encoded map doesn't have.
func missingIn(v []byte, chunks uint32) uint32 {
	switch {
	case len(v) == 1 && v[0] == stateComplete:
		return 0
	case len(v) == 1+(int(chunks)+7)/8 && (v[0] == statePartial || v[0] == stateDoubt):
		n := 0
		for _, b := range v[1:] {
			n += bits.OnesCount8(b)
		}
		if spare := chunks % 8; spare > 0 {
			n -= bits.OnesCount8(v[len(v)-1] >> spare)
		}
		return chunks - uint32(n)
	}
	return chunks
}

func hasIn(v []byte, chunks, i uint32) bool {
	switch {
	case i >= chunks:
		return false
	case len(v) == 1 && v[0] == stateComplete:
		return true
	case len(v) == 1+(int(chunks)+7)/8 && (v[0] == statePartial || v[0] == stateDoubt):
		return v[1+i/8]>>(i%8)&1 == 1
	}
	return false
}

func get(m []uint64, i uint32) bool { return m[i/64]>>(i%64)&1 == 1 }
func set(m []uint64, i uint32)      { m[i/64] |= 1 << (i % 64) }
func unset(m []uint64, i uint32)    { m[i/64] &^= 1 << (i % 64) }

// HasObject tells how many chunks of an object are missing without opening
// it. doubt says that fewer may be: see Settle.
func (s *Store) HasObject(id toc.ObjectID, chunks uint32) (missing uint32, doubt bool) {
	if o := s.opened(id, chunks); o != nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.there.missing, o.there.doubt
	}
	s.look(id, func(v []byte) { missing, doubt = missingIn(v, chunks), len(v) > 0 && v[0] == stateDoubt })
	return missing, doubt && missing > 0
}

// HasChunk tells whether chunk i of an object is there, without opening it.
func (s *Store) HasChunk(id toc.ObjectID, chunks, i uint32) (has bool) {
	if o := s.opened(id, chunks); o != nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.there.has(i)
	}
	s.look(id, func(v []byte) { has = hasIn(v, chunks, i) })
	return has
}

// View looks into many presence maps at once. It is for the function that got
// it, which should not take long: the database keeps old pages meanwhile.
type View struct {
	s  *Store
	tx *database.Tx
}

// View calls f with a View. Looking up objects one by one, as HasObject does,
// takes several times as long. If the database can't be read, the error says
// so; f may be called twice.
func (s *Store) View(f func(v View) error) error {
	return s.db.View(func(tx *database.Tx) error { return f(View{s, tx}) })
}

// Missing returns how many chunks of an object are not there.
func (v View) Missing(id toc.ObjectID, chunks uint32) (uint32, error) {
	if o := v.s.opened(id, chunks); o != nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.there.missing, nil
	}
	b, err := v.tx.Get(bucketObjects, id[:])
	if err != nil && !errors.Is(err, database.ErrValue) {
		return chunks, err
	}
	return missingIn(b, chunks), nil
}

// opened returns the object if it is open and its map has been read.
func (s *Store) opened(id toc.ObjectID, chunks uint32) *object {
	s.mu.Lock()
	o := s.objects[id]
	s.mu.Unlock()
	if o == nil || o.chunks != chunks || !o.ready.Load() {
		return nil
	}
	return o
}

// look calls f with an object's map as the database has it. A database that
// can't be read knows nothing and promises nothing.
func (s *Store) look(id toc.ObjectID, f func(v []byte)) {
	err := s.db.View(func(tx *database.Tx) error {
		v, err := tx.Get(bucketObjects, id[:])
		if err != nil && !errors.Is(err, database.ErrValue) {
			return err
		}
		f(v)
		return nil
	})
	if err != nil {
		f(nil)
	}
}

// Losses counts how often something that was present turned out to be damaged,
// or was deleted. Whoever keeps counts of what is here must count anew when it
// has grown.
func (s *Store) Losses() uint64 { return s.losses.Load() }
