package store

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/database"
)

// pieceSize is how much of a partial blob has one checksum, in bytes. Only the
// whole can be verified, and one flipped bit would cost all of it; by these
// sums, what precedes the damage is kept.
const pieceSize = 1 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// partial is a blob that is still crossing.
type partial struct {
	s    *Store
	file *os.File

	writing sync.RWMutex // held for writing while bytes are written a second time
	whole   atomic.Int64 // bytes that it will have; 0: not known

	mu     sync.Mutex
	length int64    // guarded by mu; bytes written
	noted  int64    // guarded by mu; bytes that are durable
	sums   []uint32 // guarded by mu; CRC-32C of each piece, the last one of what there is
	blind  bool     // guarded by mu; sums were lost
	blocks int64    // guarded by mu; bytes of disk that are in the store's account
}

// note returns what is written down of a partial blob: its length as 8 bytes,
// then its sums, 4 bytes each, little-endian.
func (p *partial) note() (value []byte, length int64, changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.length == p.noted {
		return nil, 0, false
	}
	value = binary.LittleEndian.AppendUint64(nil, uint64(p.length))
	if !p.blind {
		for _, s := range p.sums {
			value = binary.LittleEndian.AppendUint32(value, s)
		}
	}
	return value, p.length, true
}

// decodePartial reads what note wrote, and is at most size bytes long. What
// doesn't make sense is the beginning of nothing.
func decodePartial(v []byte, size int64) (length int64, sums []uint32, blind bool) {
	if len(v) < 8 {
		return 0, nil, false
	}
	length = int64(binary.LittleEndian.Uint64(v))
	if length < 0 || length > size {
		return 0, nil, false
	}
	v = v[8:]
	if int64(len(v)) != 4*((length+pieceSize-1)/pieceSize) {
		return length, nil, length > 0
	}
	for ; len(v) > 0; v = v[4:] {
		sums = append(sums, binary.LittleEndian.Uint32(v))
	}
	return length, sums, false
}

func (p *partial) flushed(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.noted = n
}

func (p *partial) account() {
	info, err := p.file.Stat()
	if err != nil {
		return // the account stays as it was
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.s.space.used.Add(onDisk(info) - p.blocks)
	p.blocks = onDisk(info)
}

func (p *partial) writeAgain() error {
	p.writing.Lock()
	defer p.writing.Unlock()
	p.mu.Lock()
	length := p.length
	p.mu.Unlock()
	return rewrite(p.file, length)
}

// Partial is the beginning of a blob that is still crossing. It has one
// writer; any number may read what Len covers.
type Partial struct {
	*partial
	d digest.Digest
}

// ErrBusy says that a partial blob has its writer already.
var ErrBusy = errors.New("the blob is being written already")

// Partial opens the beginning of a blob for writing on. Only what a flush made
// durable is kept of an earlier process's work. A second writer gets ErrBusy.
func (s *Store) Partial(d digest.Digest) (*Partial, error) {
	name, err := blobName(d)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	p := &partial{s: s}
	s.mu.Lock()
	if _, busy := s.busy[name]; busy {
		s.mu.Unlock()
		return nil, fmt.Errorf("store: partial blob %s: %w", d, ErrBusy)
	}
	s.busy[name] = struct{}{}
	s.mu.Unlock()
	err = p.open(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		delete(s.busy, name)
		return nil, fmt.Errorf("store: partial blob %s: %w", d, noSpace(err))
	}
	s.partials[name] = p
	return &Partial{partial: p, d: d}, nil
}

func (p *partial) open(name string) error {
	var v []byte
	err := p.s.db.View(func(tx *database.Tx) error {
		got, err := tx.Get(bucketPartials, []byte(name))
		v = append(v[:0], got...)
		return err
	})
	if err != nil && !errors.Is(err, database.ErrValue) {
		return err
	}
	p.file, err = os.OpenFile(filepath.Join(p.s.dir, "partial", name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	info, err := p.file.Stat()
	if err == nil {
		p.blocks = onDisk(info)
		p.length, p.sums, p.blind = decodePartial(v, info.Size())
		p.noted = p.length
		if len(v) > 0 && p.length == 0 {
			// The record would promise what is written now before it is durable.
			err = p.s.update(func(tx *database.Tx) error { return tx.Delete(bucketPartials, []byte(name)) })
		}
	}
	if err == nil {
		err = p.file.Truncate(p.length)
	}
	if err != nil {
		return errors.Join(err, p.file.Close())
	}
	return nil
}

// Len returns how many bytes are there.
func (p *Partial) Len() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.length
}

// Expect says how many bytes the whole will have. There is room for what is small
// when there is none for other content: a config is needed to run an image that
// is here.
func (p *Partial) Expect(size int64) { p.whole.Store(size) }

// Write appends b. The error is ErrNoSpace if there is no room for it.
func (p *Partial) Write(b []byte) (int, error) {
	err := p.s.roomIn(int64(len(b)), p.whole.Load())
	n := 0
	if err == nil {
		p.writing.RLock()
		n, err = p.file.WriteAt(b, p.Len())
		p.writing.RUnlock()
	}
	p.add(b[:n])
	p.s.space.pending.Add(int64(n))
	p.s.changed()
	if err != nil {
		return n, fmt.Errorf("store: write partial blob %s: %w", p.d, noSpace(err))
	}
	return n, nil
}

// add notes that b was written behind what is there.
func (p *partial) add(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(b) > 0 && !p.blind {
		if p.length%pieceSize == 0 {
			p.sums = append(p.sums, 0)
		}
		n := min(int64(len(b)), pieceSize-p.length%pieceSize)
		last := len(p.sums) - 1
		p.sums[last] = crc32.Update(p.sums[last], castagnoli, b[:n])
		p.length += n
		b = b[n:]
	}
	p.length += int64(len(b))
}

// ReadAt reads what was written. The bytes are not verified yet.
func (p *Partial) ReadAt(b []byte, off int64) (int, error) { return p.file.ReadAt(b, off) }

// Commit verifies the whole blob and makes it complete. If the bytes don't have
// the digest, the error is ErrMismatch: all of them are thrown away, unless it
// is ErrDamaged as well, because the disk has changed some of them; then those
// before the damage stay. The Partial must be closed all the same.
func (p *Partial) Commit() error {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(p.file, 0, p.Len())); err != nil {
		return fmt.Errorf("store: commit blob %s: %w", p.d, err)
	}
	name := p.d.Encoded()
	if hex.EncodeToString(h.Sum(nil)) != name {
		if sound, damaged := p.soundLength(); damaged {
			return errors.Join(fmt.Errorf("store: commit blob %s: from byte %d on: %w: %w", p.d, sound, ErrDamaged, ErrMismatch), p.cut(sound))
		}
		return errors.Join(fmt.Errorf("store: commit blob %s: %w", p.d, ErrMismatch), p.discard())
	}
	path := p.s.path("blobs", name)
	err := p.file.Sync()
	if err == nil {
		p.account()
		err = p.s.move(p.file.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("store: commit blob %s: %w", p.d, noSpace(err))
	}
	p.s.know(name)
	return p.forget()
}

// soundLength returns how many bytes, from the beginning, are those that were
// written; damaged is false if that is all of them or can't be told.
func (p *partial) soundLength() (n int64, damaged bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := make([]byte, pieceSize)
	for i, want := range p.sums {
		at := int64(i) * pieceSize
		n := min(pieceSize, p.length-at)
		if _, err := p.file.ReadAt(b[:n], at); err != nil || crc32.Checksum(b[:n], castagnoli) != want {
			return at, true
		}
	}
	return p.length, false
}

// cut keeps the first n bytes, whole pieces. The record goes first: it must not
// promise what is written behind them from now on.
func (p *Partial) cut(n int64) error {
	if err := p.forget(); err != nil {
		return err
	}
	p.s.losses.Add(1)
	p.mu.Lock()
	p.length, p.noted, p.sums = n, 0, p.sums[:n/pieceSize]
	p.mu.Unlock()
	if err := p.file.Truncate(n); err != nil {
		return err
	}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.s.partials[p.d.Encoded()] = p.partial
	return nil
}

// discard throws the bytes away.
func (p *Partial) discard() error {
	err := os.Remove(p.file.Name())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	p.mu.Lock()
	p.s.space.used.Add(-p.blocks)
	p.blocks = 0
	p.mu.Unlock()
	return errors.Join(err, p.forget())
}

// forget removes the record; nothing is left to note.
func (p *Partial) forget() error {
	p.s.flushMu.Lock()
	defer p.s.flushMu.Unlock()
	p.s.mu.Lock()
	delete(p.s.partials, p.d.Encoded())
	p.s.mu.Unlock()
	if err := p.s.update(func(tx *database.Tx) error { return tx.Delete(bucketPartials, []byte(p.d.Encoded())) }); err != nil {
		return fmt.Errorf("store: forget partial blob %s: %w", p.d, err)
	}
	return nil
}

// Close gives the Partial back. What was written stays for the next writer.
func (p *Partial) Close() error {
	err := p.s.Flush()
	name := p.d.Encoded()
	p.s.mu.Lock()
	delete(p.s.partials, name)
	delete(p.s.busy, name)
	p.s.mu.Unlock()
	if err = errors.Join(err, p.file.Close()); err != nil {
		return fmt.Errorf("store: close partial blob %s: %w", p.d, err)
	}
	return nil
}
