package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/database"
	"github.com/airstream-io/airstream/internal/toc"
)

// ErrInUse says that something is open and was not deleted.
var ErrInUse = errors.New("in use")

// DeleteObjects removes objects and returns how many that were, and how many
// bytes of disk it freed. Those that are open stay; those that aren't there are
// no error. It is one transaction: hand it some hundreds at a time.
func (s *Store) DeleteObjects(ids ...toc.ObjectID) (n int, freed int64, err error) {
	gone := make(chan struct{})
	free := make([]toc.ObjectID, 0, len(ids))
	s.mu.Lock()
	for _, id := range ids {
		if s.objects[id] == nil && s.deleting[id] == nil {
			s.deleting[id] = gone
			free = append(free, id)
		}
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, id := range free {
			delete(s.deleting, id)
		}
		close(gone)
	}()
	if len(free) == 0 {
		return 0, 0, nil
	}
	// The record goes first: a file without one is an orphan, a record without
	// its file would claim what is not there.
	err = s.update(func(tx *database.Tx) error {
		for _, id := range free {
			if err := tx.Delete(bucketObjects, id[:]); err != nil {
				return err
			}
		}
		return nil
	})
	for _, id := range free {
		if err != nil {
			break
		}
		var took int64
		var was bool
		took, was, err = s.unlinkIf(s.path("objects", id.String()))
		freed += took
		if was {
			n++
		}
	}
	if n > 0 {
		s.losses.Add(1)
	}
	if err != nil {
		return n, freed, fmt.Errorf("store: delete objects: %w", err)
	}
	return n, freed, nil
}

// DeleteObject removes one object, likewise; one that is open is ErrInUse.
func (s *Store) DeleteObject(id toc.ObjectID) (freed int64, err error) {
	s.mu.Lock()
	open := s.objects[id] != nil
	s.mu.Unlock()
	if open {
		return 0, fmt.Errorf("store: delete object %s: %w", id, ErrInUse)
	}
	_, freed, err = s.DeleteObjects(id)
	return freed, err
}

// DeleteBlob removes a complete blob and returns how many bytes of disk that
// freed. Readers that have it open can
// read on.
func (s *Store) DeleteBlob(d digest.Digest) (freed int64, err error) {
	freed, err = s.deleteNamed("blobs", d)
	if err == nil {
		s.unknow(d.Encoded())
	}
	return freed, err
}

// DeleteTree removes the tree of a layer, likewise. A tree that this process
// has handed out stays valid, and its space is freed when the store is closed.
func (s *Store) DeleteTree(d digest.Digest) (freed int64, err error) {
	freed, err = s.deleteNamed("trees", d)
	if err == nil {
		s.treeMu.Lock()
		delete(s.trees, d.Encoded())
		s.treeMu.Unlock()
		s.losses.Add(1)
		err = s.update(func(tx *database.Tx) error { return tx.Delete(bucketTrees, []byte(d.Encoded())) })
	}
	return freed, err
}

func (s *Store) deleteNamed(kind string, d digest.Digest) (int64, error) {
	name, err := blobName(d)
	if err != nil {
		return 0, fmt.Errorf("store: %w", err)
	}
	freed, err := s.unlink(s.path(kind, name))
	if err != nil {
		return 0, fmt.Errorf("store: delete %s/%s: %w", kind, d, err)
	}
	return freed, nil
}

// DeletePartial removes the beginning of a blob that nobody is writing.
func (s *Store) DeletePartial(d digest.Digest) (freed int64, err error) {
	p, err := s.Partial(d)
	if errors.Is(err, ErrBusy) {
		return 0, fmt.Errorf("store: delete partial blob %s: %w", d, ErrInUse)
	}
	if err != nil {
		return 0, err
	}
	p.mu.Lock()
	freed = p.blocks
	p.mu.Unlock()
	return freed, errors.Join(p.discard(), p.Close())
}

// unlink removes a file, takes it out of the account, and returns what it took,
// in bytes of disk. One that isn't there takes none.
func (s *Store) unlink(name string) (int64, error) {
	freed, _, err := s.unlinkIf(name)
	return freed, err
}

func (s *Store) unlinkIf(name string) (freed int64, was bool, err error) {
	info, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err == nil {
		err = os.Remove(name)
	}
	if err != nil {
		return 0, false, err
	}
	s.space.used.Add(-onDisk(info))
	return onDisk(info), true, nil
}

// HasBlob tells how large a complete blob is, in bytes, without looking at its
// content; ok is false if it isn't there.
func (s *Store) HasBlob(d digest.Digest) (size int64, ok bool) {
	name, err := blobName(d)
	if err != nil {
		return 0, false
	}
	info, err := os.Stat(s.path("blobs", name))
	if err != nil {
		return 0, false
	}
	return info.Size(), true
}

// HasTree tells whether the tree of the layer whose table of contents has
// digest d is stored, without looking at its content.
func (s *Store) HasTree(d digest.Digest) bool {
	name, err := blobName(d)
	if err != nil {
		return false
	}
	_, err = os.Stat(s.path("trees", name))
	return err == nil
}

// ObjectSize returns how many bytes of disk an object takes.
func (s *Store) ObjectSize(id toc.ObjectID) int64 { return sizeOf(s.path("objects", id.String())) }

// BlobOnDisk returns how many bytes of disk a blob takes, or its beginning.
func (s *Store) BlobOnDisk(d digest.Digest) int64 {
	name, err := blobName(d)
	if err != nil {
		return 0
	}
	return sizeOf(s.path("blobs", name)) + sizeOf(filepath.Join(s.dir, "partial", name))
}

// TreeOnDisk returns how many bytes of disk a layer's tree takes.
func (s *Store) TreeOnDisk(d digest.Digest) int64 {
	name, err := blobName(d)
	if err != nil {
		return 0
	}
	return sizeOf(s.path("trees", name))
}

func sizeOf(name string) int64 {
	info, err := os.Lstat(name)
	if err != nil {
		return 0
	}
	return onDisk(info)
}

// StoredBlob is a blob that is on disk, or the beginning of one.
type StoredBlob struct {
	Digest digest.Digest
	// Young tells that it was written a moment ago: who wants it may not have
	// said so yet.
	Young bool
}

// young is how long that moment is.
const young = time.Minute

// Blobs returns all blobs, and all that have begun.
func (s *Store) Blobs() ([]StoredBlob, error) {
	var all []StoredBlob
	for _, kind := range []string{"blobs", "partial"} {
		err := filepath.WalkDir(filepath.Join(s.dir, kind), func(_ string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
			info, err := e.Info()
			if err != nil || d.Validate() != nil {
				return nil //nolint:nilerr // deleted meanwhile, or not a blob
			}
			age := time.Since(info.ModTime())
			all = append(all, StoredBlob{Digest: d, Young: max(age, -age) < young})
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("store: list blobs: %w", err)
		}
	}
	return all, nil
}

// EachObject calls f for each object of which something is stored.
func (s *Store) EachObject(f func(id toc.ObjectID) error) error { return s.eachRecord(f) }
