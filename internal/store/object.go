package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/internal/database"
	"github.com/airstream-io/airstream/internal/toc"
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
	ready    atomic.Bool // what open sets is set
	file     *os.File

	writing sync.RWMutex // held for writing while bytes are written a second time

	mu      sync.Mutex
	there   presence // guarded by mu; verified bytes are in the file
	checked []uint64 // guarded by mu; verified by this process
	suspect uint32   // guarded by mu; chunks not checked
	gen     uint64   // guarded by mu; counts changes
	noted   uint64   // guarded by mu; the last change that is durable
	blocks  int64    // guarded by mu; bytes of disk that are in the store's account
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
	for s.deleting[id] != nil { // a moment: it waits for the disk only
		gone := s.deleting[id]
		s.mu.Unlock()
		<-gone
		s.mu.Lock()
	}
	o, ok := s.objects[id]
	if !ok {
		o = &object{s: s, id: id, size: size, chunks: chunks}
		s.objects[id] = o
	}
	o.refs++
	s.mu.Unlock()
	o.openOnce.Do(func() { o.openErr = noSpace(o.open()) })
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
	o.there, o.checked = newPresence(o.chunks), make([]uint64, (int(o.chunks)+63)/64)
	known, damaged := false, false
	err := o.s.db.View(func(tx *database.Tx) error {
		v, err := tx.Get(bucketObjects, o.id[:])
		if damaged = errors.Is(err, database.ErrValue); err != nil && !damaged {
			return err
		}
		known = v != nil
		damaged = !o.there.decode(v) && known || damaged
		return nil
	})
	if err != nil {
		return err
	}
	name := o.s.path("objects", o.id.String())
	o.file, err = os.OpenFile(name, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if err := o.forgetAll(known); err != nil {
			return err
		}
		known = false
		o.file, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	}
	if err != nil {
		return err
	}
	info, err := o.file.Stat()
	if err == nil && info.Size() != o.size {
		if err = o.forgetAll(known); err == nil {
			err = o.file.Truncate(o.size)
		}
	} else if err == nil && damaged {
		o.there.decode(doubtful(info))
		o.gen++
		o.s.log.Warn("the record of an object is damaged; its chunks are looked for in its file", slog.String("object", o.id.String()))
	}
	if err != nil {
		return errors.Join(err, o.file.Close())
	}
	o.suspect = o.chunks
	if info != nil {
		o.blocks = onDisk(info)
	}
	o.ready.Store(true)
	return nil
}

// forgetAll is for a file that is not the one that the map was made for. The
// map is gone before a byte is written: it would promise what is not durable
// yet. o.mu is held.
func (o *object) forgetAll(known bool) error {
	o.there.clear()
	if !known {
		return nil
	}
	o.s.losses.Add(1)
	o.s.log.Warn("an object's file is gone or has another size; it will be fetched again", slog.String("object", o.id.String()))
	return o.s.update(func(tx *database.Tx) error { return tx.Delete(bucketObjects, o.id[:]) })
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
	return o.there.has(i)
}

// Missing returns how many chunks are not there.
func (o *Object) Missing() uint32 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.there.missing
}

// Put verifies p, writes it as chunk c, the i-th of this object, and notes it
// as present. Bytes that aren't c are chunk.ErrMismatch, bytes for which there
// is no room ErrNoSpace; both change nothing.
func (o *Object) Put(i uint32, c toc.Chunk, p []byte) error {
	if i >= o.chunks || c.Offset+int64(c.Size) > o.size || len(p) != int(c.Size) {
		return fmt.Errorf("store: put chunk %d of object %s: %d bytes at %d do not fit", i, o.id, len(p), c.Offset)
	}
	if err := c.ID.Verify(p); err != nil {
		return fmt.Errorf("store: put chunk %d of object %s: %w", i, o.id, err)
	}
	o.mu.Lock()
	here := get(o.there.bits, i) && get(o.checked, i)
	o.mu.Unlock()
	if here {
		return nil
	}
	err := o.s.room(int64(len(p)))
	if err == nil {
		o.writing.RLock()
		_, err = o.file.WriteAt(p, c.Offset)
		o.writing.RUnlock()
	}
	if err != nil {
		return fmt.Errorf("store: put chunk %d of object %s: %w", i, o.id, noSpace(err))
	}
	o.s.space.pending.Add(int64(len(p)))
	o.mu.Lock()
	if o.there.set(i) {
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
	present, checked := o.there.has(i), i < o.chunks && get(o.checked, i)
	maybe := present || o.there.doubt && i < o.chunks
	o.mu.Unlock()
	switch {
	case !maybe:
		return fmt.Errorf("store: chunk %d of object %s: %w", i, o.id, fs.ErrNotExist)
	case present && checked:
		return nil
	}
	return o.hash(i, c)
}

// hash reads a chunk and compares it with its ID, whatever was found before.
func (o *object) hash(i uint32, c toc.Chunk) error {
	o.mu.Lock()
	before := get(o.checked, i)
	o.mu.Unlock()
	p := make([]byte, c.Size)
	_, err := o.file.ReadAt(p, c.Offset)
	if err == nil || errors.Is(err, io.EOF) {
		err = c.ID.Verify(p)
	}
	o.mu.Lock()
	var changed, lost bool
	switch {
	case err == nil:
		changed = o.there.set(i)
		o.check(i)
	case !before && get(o.checked, i):
		err = nil // it was put meanwhile
	default:
		lost = o.there.unset(i)
		changed = lost
		if get(o.checked, i) {
			unset(o.checked, i)
			o.suspect++
		}
	}
	if changed {
		o.gen++
	}
	o.mu.Unlock()
	if lost {
		o.s.losses.Add(1)
	}
	if changed {
		o.markDirty()
	}
	switch {
	case err == nil:
		return nil
	case !lost:
		return fmt.Errorf("store: chunk %d of object %s: %w", i, o.id, fs.ErrNotExist)
	}
	return fmt.Errorf("store: chunk %d of object %s: %w: %w", i, o.id, ErrDamaged, err)
}

// ReadAt reads from the file. The bytes mean something only where Check said
// so before.
func (o *Object) ReadAt(p []byte, off int64) (int, error) { return o.file.ReadAt(p, off) }

// Complete returns the object's file if every chunk is in it and was verified
// by this process, else nil. It is valid until Close and must only be read.
// What the disk changes after that only Verify notices.
func (o *Object) Complete() *os.File {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.there.missing > 0 || o.suspect > 0 {
		return nil
	}
	return o.file
}

// note returns the presence map as it is written, and which change it covers.
func (o *object) note() (value []byte, gen uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.there.encode(), o.gen
}

// flushed tells that all up to change gen is durable, and reports whether
// nothing has changed since.
func (o *object) flushed(gen uint64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.noted = gen
	return o.noted == o.gen
}

// account brings what the file takes into the store's account.
func (o *object) account() {
	info, err := o.file.Stat()
	if err != nil {
		return // the account stays as it was
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.s.space.used.Add(onDisk(info) - o.blocks)
	o.blocks = onDisk(info)
}

// writeAgain writes what the file holds over itself.
func (o *object) writeAgain() error {
	o.writing.Lock()
	defer o.writing.Unlock()
	return rewrite(o.file, o.size)
}

// rewrite writes what a file holds over itself, up to size, leaving its holes.
func rewrite(f *os.File, size int64) error {
	buf := make([]byte, 256<<10)
	for off := int64(0); off < size; {
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		hole, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for off = data; off < min(hole, size); {
			n, err := f.ReadAt(buf[:min(int64(len(buf)), hole-off)], off)
			if n == 0 {
				return err
			}
			if _, err := f.WriteAt(buf[:n], off); err != nil {
				return err
			}
			off += int64(n)
		}
	}
	return nil
}
