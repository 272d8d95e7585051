package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/bits"
	"os"
	"slices"
	"sync"

	"go.etcd.io/bbolt"

	"github.com/airstream-io/airstream/internal/toc"
)

// How a presence map is written: one byte that says how, then for a partial
// object the map, bit i%8 of byte i/8 for chunk i.
const (
	stateComplete byte = 1
	statePartial  byte = 2
)

// object is one file content on disk, shared by all that have it open.
type object struct {
	s      *Store
	id     toc.ObjectID
	chunks uint32
	size   int64
	refs   int // guarded by s.mu; handles, plus one while dirty

	openOnce sync.Once
	openErr  error
	file     *os.File

	mu      sync.Mutex
	present []uint64 // guarded by mu; verified bytes are in the file
	checked []uint64 // guarded by mu; verified by this process
	missing uint32   // guarded by mu; chunks not present
	suspect uint32   // guarded by mu; chunks not checked
	gen     uint64   // guarded by mu; counts changes
	noted   uint64   // guarded by mu; the last change that is durable
}

// Object is a handle on one file's content. It is safe for concurrent use
// until Close.
type Object struct {
	*object
	close sync.Once
}

// Object opens the content that id names: size bytes in chunks pieces, the
// values that id was computed from. Content that was never stored is opened
// as one of which everything is missing.
func (s *Store) Object(id toc.ObjectID, size int64, chunks uint32) (*Object, error) {
	s.mu.Lock()
	o, ok := s.objects[id]
	if !ok {
		o = &object{s: s, id: id, size: size, chunks: chunks}
		s.objects[id] = o
	}
	o.refs++
	s.mu.Unlock()
	o.openOnce.Do(func() { o.openErr = o.open() })
	if o.openErr != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.objects[id] == o { // let the next one try again
			delete(s.objects, id)
		}
		return nil, fmt.Errorf("store: open object %s: %w", id, o.openErr)
	}
	o.mu.Lock()
	changed := o.gen != o.noted
	o.mu.Unlock()
	if changed {
		o.markDirty()
	}
	return &Object{object: o}, nil
}

func (o *object) open() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	words := (int(o.chunks) + 63) / 64
	o.present, o.checked = make([]uint64, words), make([]uint64, words)
	known := false
	err := o.s.db.View(func(tx *bbolt.Tx) error {
		v := tx.Bucket(bucketObjects).Get(o.id[:])
		known = v != nil
		o.decode(v)
		return nil
	})
	if err != nil {
		return err
	}
	name, err := o.s.path("objects", o.id.String(), true)
	if err != nil {
		return err
	}
	o.file, err = os.OpenFile(name, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		o.forgetAll(known)
		o.file, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	}
	if err != nil {
		return err
	}
	info, err := o.file.Stat()
	if err == nil && info.Size() != o.size {
		if info.Size() != 0 || known {
			o.forgetAll(known)
		}
		err = o.file.Truncate(o.size)
	}
	if err != nil {
		return errors.Join(err, o.file.Close())
	}
	o.missing = o.chunks - count(o.present)
	o.suspect = o.chunks
	return nil
}

func (o *object) decode(v []byte) {
	switch {
	case len(v) == 1 && v[0] == stateComplete:
		for i := range o.chunks {
			set(o.present, i)
		}
	case len(v) == 1+(int(o.chunks)+7)/8 && v[0] == statePartial:
		for i := range o.chunks {
			if v[1+i/8]>>(i%8)&1 == 1 {
				set(o.present, i)
			}
		}
	}
}

// forgetAll is for a file that is not the one that the map was made for.
// o.mu is held.
func (o *object) forgetAll(known bool) {
	clear(o.present)
	if known {
		o.gen++
		o.s.log.Warn("an object's file is gone or has another size; it will be fetched again", slog.String("object", o.id.String()))
	}
}

// Close gives the handle back. Noted bytes still become durable.
func (o *Object) Close() error {
	o.close.Do(func() {
		o.s.mu.Lock()
		defer o.s.mu.Unlock()
		o.s.release(o.object)
	})
	return nil
}

// release drops a reference. s.mu is held.
func (s *Store) release(o *object) {
	o.refs--
	if o.refs > 0 {
		return
	}
	if s.objects[o.id] == o {
		delete(s.objects, o.id)
	}
	if o.file != nil {
		if err := o.file.Close(); err != nil {
			s.log.Warn("closing an object", slog.String("object", o.id.String()), slog.Any("error", err))
		}
	}
}

// Has tells whether chunk i is there.
func (o *Object) Has(i uint32) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return i < o.chunks && get(o.present, i)
}

// Missing returns how many chunks are not there.
func (o *Object) Missing() uint32 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.missing
}

// Put verifies p, writes it as chunk c, the i-th of this object, and notes it
// as present. Bytes that aren't c are chunk.ErrMismatch and change nothing.
func (o *Object) Put(i uint32, c toc.Chunk, p []byte) error {
	if i >= o.chunks || c.Offset+int64(c.Size) > o.size || len(p) != int(c.Size) {
		return fmt.Errorf("store: put chunk %d of object %s: %d bytes at %d do not fit", i, o.id, len(p), c.Offset)
	}
	if err := c.ID.Verify(p); err != nil {
		return fmt.Errorf("store: put chunk %d of object %s: %w", i, o.id, err)
	}
	if o.Has(i) && o.isChecked(i) {
		return nil
	}
	if _, err := o.file.WriteAt(p, c.Offset); err != nil {
		return fmt.Errorf("store: put chunk %d of object %s: %w", i, o.id, err)
	}
	o.mu.Lock()
	if !get(o.present, i) {
		set(o.present, i)
		o.missing--
		o.gen++
	}
	o.check(i)
	o.mu.Unlock()
	o.markDirty()
	return nil
}

func (o *object) markDirty() {
	o.s.mu.Lock()
	if o.s.dirty[o.id] != o {
		o.s.dirty[o.id] = o
		o.refs++
	}
	o.s.mu.Unlock()
	o.s.changed()
}

func (o *object) isChecked(i uint32) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return get(o.checked, i)
}

// check notes that this process verified chunk i. o.mu is held.
func (o *object) check(i uint32) {
	if !get(o.checked, i) {
		set(o.checked, i)
		o.suspect--
	}
}

// Check makes sure that chunk c, the i-th of this object, can be read: it is
// present, and this process has verified it once. The error is fs.ErrNotExist
// if it is missing, and ErrDamaged if the disk has changed it; it is missing
// from then on.
func (o *Object) Check(i uint32, c toc.Chunk) error {
	o.mu.Lock()
	present, checked := i < o.chunks && get(o.present, i), i < o.chunks && get(o.checked, i)
	o.mu.Unlock()
	if !present {
		return fmt.Errorf("store: chunk %d of object %s: %w", i, o.id, fs.ErrNotExist)
	}
	if checked {
		return nil
	}
	p := make([]byte, c.Size)
	_, err := o.file.ReadAt(p, c.Offset)
	if err == nil || errors.Is(err, io.EOF) {
		err = c.ID.Verify(p)
	}
	if err == nil {
		o.mu.Lock()
		o.check(i)
		o.mu.Unlock()
		return nil
	}
	o.mu.Lock()
	if get(o.present, i) && !get(o.checked, i) {
		unset(o.present, i)
		o.missing++
		o.gen++
	}
	o.mu.Unlock()
	o.markDirty()
	return fmt.Errorf("store: chunk %d of object %s: %w: %w", i, o.id, ErrDamaged, err)
}

// ReadAt reads from the file. The bytes mean something only where Check said
// so before.
func (o *Object) ReadAt(p []byte, off int64) (int, error) { return o.file.ReadAt(p, off) }

// Complete returns the object's file if every chunk is in it and was verified
// by this process, else nil. It is valid until Close and must only be read.
func (o *Object) Complete() *os.File {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.missing > 0 || o.suspect > 0 {
		return nil
	}
	return o.file
}

// note returns the presence map as it is written, and which change it covers.
func (o *object) note() (value []byte, gen uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return encode(o.present, o.chunks, o.missing), o.gen
}

// flushed tells that all up to change gen is durable, and reports whether
// nothing has changed since.
func (o *object) flushed(gen uint64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.noted = gen
	return o.noted == o.gen
}

func encode(present []uint64, chunks, missing uint32) []byte {
	if missing == 0 {
		return []byte{stateComplete}
	}
	v := slices.Grow([]byte{statePartial}, int(chunks+7)/8)
	for i := range (chunks + 7) / 8 {
		v = append(v, byte(present[i/8]>>(i%8*8)))
	}
	return v
}

func get(m []uint64, i uint32) bool { return m[i/64]>>(i%64)&1 == 1 }
func set(m []uint64, i uint32)      { m[i/64] |= 1 << (i % 64) }
func unset(m []uint64, i uint32)    { m[i/64] &^= 1 << (i % 64) }

func count(m []uint64) uint32 {
	n := 0
	for _, w := range m {
		n += bits.OnesCount64(w)
	}
	return uint32(n)
}

// HasObject tells how many chunks of an object are missing without opening
// it; ok is false if nothing of it is stored.
func (s *Store) HasObject(id toc.ObjectID, chunks uint32) (missing uint32, ok bool) {
	missing = chunks - count(s.presence(id, chunks))
	return missing, missing < chunks
}

// HasChunk tells whether chunk i of an object is there, without opening it.
func (s *Store) HasChunk(id toc.ObjectID, chunks, i uint32) bool {
	return i < chunks && get(s.presence(id, chunks), i)
}

// presence returns a copy of an object's presence map.
func (s *Store) presence(id toc.ObjectID, chunks uint32) []uint64 {
	s.mu.Lock()
	o := s.objects[id]
	s.mu.Unlock()
	if o != nil && o.chunks == chunks {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.present != nil {
			return slices.Clone(o.present)
		}
	}
	tmp := object{chunks: chunks, present: make([]uint64, (chunks+63)/64)}
	err := s.db.View(func(tx *bbolt.Tx) error {
		tmp.decode(tx.Bucket(bucketObjects).Get(id[:]))
		return nil
	})
	if err != nil { // the database is closed: nothing is known, nothing is promised
		clear(tmp.present)
	}
	return tmp.present
}
