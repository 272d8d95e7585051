package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
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

// soundness is what this process knows of a blob that is on disk.
type soundness struct {
	once sync.Once
	err  error // after once; nil: it has its digest
}

// Blob opens a complete blob. What an earlier process wrote is hashed before it
// is opened first, a large one for seconds. The error is fs.ErrNotExist if it
// isn't there, and ErrDamaged as well if it was, and the disk has changed it.
// The caller closes the file.
func (s *Store) Blob(d digest.Digest) (*os.File, error) {
	name, err := blobName(d)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	f, err := os.Open(s.path("blobs", name))
	if err != nil {
		return nil, fmt.Errorf("store: blob %s: %w", d, err)
	}
	if err := s.checkBlob(name, f); err != nil {
		return nil, errors.Join(fmt.Errorf("store: blob %s: %w", d, err), f.Close())
	}
	return f, nil
}

// checkBlob hashes a blob unless this process knows it.
func (s *Store) checkBlob(name string, f *os.File) error {
	s.mu.Lock()
	k := s.sound[name]
	if k == nil {
		k = &soundness{}
		s.sound[name] = k
	}
	s.mu.Unlock()
	k.once.Do(func() { k.err = s.hashBlob(name, f) })
	if k.err != nil {
		s.unknow(name)
	}
	return k.err
}

// hashBlob hashes a blob and removes it if it is damaged.
func (s *Store) hashBlob(name string, f *os.File) error {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, math.MaxInt64)); err != nil {
		return err
	}
	if hex.EncodeToString(h.Sum(nil)) == name {
		return nil
	}
	s.losses.Add(1)
	return errors.Join(fmt.Errorf("%w: %w", ErrDamaged, fs.ErrNotExist), s.removeSame(f))
}

// removeSame removes a file, unless another has taken its name.
func (s *Store) removeSame(f *os.File) error {
	mine, err := f.Stat()
	if err != nil {
		return err
	}
	now, err := os.Lstat(f.Name())
	if err != nil || !os.SameFile(mine, now) {
		return nil //nolint:nilerr // it is gone
	}
	_, err = s.unlink(f.Name())
	return err
}

// know notes that a blob is what this process wrote.
func (s *Store) know(name string) {
	k := &soundness{}
	k.once.Do(func() {})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sound[name] = k
}

func (s *Store) unknow(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sound, name)
}

// ReadBlob returns a whole small blob, at most limit bytes, and verifies it
// each time. Errors are Blob's.
func (s *Store) ReadBlob(d digest.Digest, limit int64) ([]byte, error) {
	name, err := blobName(d)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	f, err := os.Open(s.path("blobs", name))
	if err != nil {
		return nil, fmt.Errorf("store: blob %s: %w", d, err)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	switch {
	case err != nil:
	case int64(len(b)) > limit:
		err = fmt.Errorf("larger than %d bytes", limit)
	case digest.FromBytes(b) != d:
		s.losses.Add(1)
		s.unknow(name)
		err = errors.Join(fmt.Errorf("%w: %w", ErrDamaged, fs.ErrNotExist), s.removeSame(f))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("store: blob %s: %w", d, err)
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
	if err = s.roomFor(int64(len(b))); err == nil {
		err = s.writeFile(s.path("blobs", name), b)
	}
	if err != nil {
		return fmt.Errorf("store: put blob %s: %w", d, err)
	}
	s.know(name)
	return nil
}
