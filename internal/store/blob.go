package store

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"
)

// ErrMismatch says that a blob's bytes don't have its digest.
var ErrMismatch = errors.New("content does not match its digest")

// blobName returns the name of a digest's file. Only SHA-256 is supported: it
// is what every registry uses.
func blobName(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("digest %q: %w", d, err)
	}
	if d.Algorithm() != digest.SHA256 {
		return "", fmt.Errorf("digest %q: only sha256 is supported", d)
	}
	return d.Encoded(), nil
}

// Blob opens a complete blob. The error is fs.ErrNotExist if it isn't there.
// The caller closes the file.
func (s *Store) Blob(d digest.Digest) (*os.File, error) {
	name, err := blobName(d)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	path, err := s.path("blobs", name, false)
	if err != nil {
		return nil, fmt.Errorf("store: blob %s: %w", d, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("store: blob %s: %w", d, err)
	}
	return f, nil
}

// ReadBlob returns a whole small blob, at most limit bytes, and verifies it.
// A blob that the disk has changed is ErrDamaged, and is forgotten.
func (s *Store) ReadBlob(d digest.Digest, limit int64) ([]byte, error) {
	f, err := s.Blob(d)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("store: blob %s: %w", d, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("store: blob %s: larger than %d bytes", d, limit)
	}
	if digest.FromBytes(b) != d {
		return nil, errors.Join(fmt.Errorf("store: blob %s: %w", d, ErrDamaged), os.Remove(f.Name()))
	}
	return b, nil
}

// PutBlob stores a whole small blob durably. Other bytes than d names are
// ErrMismatch.
func (s *Store) PutBlob(d digest.Digest, b []byte) error {
	name, err := blobName(d)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	if digest.FromBytes(b) != d {
		return fmt.Errorf("store: blob %s: %w", d, ErrMismatch)
	}
	path, err := s.path("blobs", name, true)
	if err == nil {
		err = s.writeFile(path, b)
	}
	if err != nil {
		return fmt.Errorf("store: put blob %s: %w", d, err)
	}
	return nil
}

// partial is a blob that is still crossing.
type partial struct {
	mu     sync.Mutex
	length int64 // guarded by mu; bytes written
	noted  int64 // guarded by mu; bytes that are durable
}

func (p *partial) note() (length int64, changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.length, p.length != p.noted
}

func (p *partial) flushed(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.noted = n
}

// Partial is the beginning of a blob that is still crossing. It has one
// writer; any number may read what Len covers.
type Partial struct {
	*partial
	s    *Store
	d    digest.Digest
	file *os.File
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
	s.mu.Lock()
	if s.partials[name] != nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("store: partial blob %s: %w", d, ErrBusy)
	}
	p := &partial{}
	s.partials[name] = p
	s.mu.Unlock()
	f, err := s.openPartial(name, p)
	if err != nil {
		s.mu.Lock()
		delete(s.partials, name)
		s.mu.Unlock()
		return nil, fmt.Errorf("store: partial blob %s: %w", d, err)
	}
	return &Partial{partial: p, s: s, d: d, file: f}, nil
}

func (s *Store) openPartial(name string, p *partial) (*os.File, error) {
	var promised int64
	err := s.db.View(func(tx *bbolt.Tx) error {
		if v := tx.Bucket(bucketPartials).Get([]byte(name)); len(v) == 8 {
			promised = int64(binary.LittleEndian.Uint64(v))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(s.dir, "partial", name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil {
		p.length = min(promised, info.Size())
		p.noted = p.length
		err = f.Truncate(p.length)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func putLengths(b *bbolt.Bucket, lengths map[string]int64) error {
	for name, n := range lengths {
		if err := b.Put([]byte(name), binary.LittleEndian.AppendUint64(nil, uint64(n))); err != nil {
			return err
		}
	}
	return nil
}

// Len returns how many bytes are there.
func (p *Partial) Len() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.length
}

// Write appends b.
func (p *Partial) Write(b []byte) (int, error) {
	n, err := p.file.WriteAt(b, p.Len())
	p.mu.Lock()
	p.length += int64(n)
	p.mu.Unlock()
	p.s.changed()
	if err != nil {
		return n, fmt.Errorf("store: write partial blob %s: %w", p.d, err)
	}
	return n, nil
}

// ReadAt reads what was written. The bytes are not verified yet.
func (p *Partial) ReadAt(b []byte, off int64) (int, error) { return p.file.ReadAt(b, off) }

// Commit verifies the whole blob and makes it complete. If the bytes don't
// have the digest, all of them are thrown away and the error is ErrMismatch.
// The Partial must be closed all the same.
func (p *Partial) Commit() error {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(p.file, 0, p.Len())); err != nil {
		return fmt.Errorf("store: commit blob %s: %w", p.d, err)
	}
	name := p.d.Encoded()
	if hex.EncodeToString(h.Sum(nil)) != name {
		err := fmt.Errorf("store: commit blob %s: %w", p.d, ErrMismatch)
		return errors.Join(err, p.discard())
	}
	path, err := p.s.path("blobs", name, true)
	if err == nil {
		err = p.file.Sync()
	}
	if err == nil {
		err = os.Rename(p.file.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("store: commit blob %s: %w", p.d, err)
	}
	return p.forget()
}

// discard throws the bytes away.
func (p *Partial) discard() error {
	err := os.Remove(p.file.Name())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, p.forget())
}

func (p *Partial) forget() error {
	p.s.flushMu.Lock()
	defer p.s.flushMu.Unlock()
	p.mu.Lock()
	p.noted = p.length // nothing is left to note
	p.mu.Unlock()
	err := p.s.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketPartials).Delete([]byte(p.d.Encoded()))
	})
	if err != nil {
		return fmt.Errorf("store: forget partial blob %s: %w", p.d, err)
	}
	return nil
}

// Close gives the Partial back. What was written stays for the next writer.
func (p *Partial) Close() error {
	err := p.s.Flush()
	p.s.mu.Lock()
	delete(p.s.partials, p.d.Encoded())
	p.s.mu.Unlock()
	if err = errors.Join(err, p.file.Close()); err != nil {
		return fmt.Errorf("store: close partial blob %s: %w", p.d, err)
	}
	return nil
}
