package store

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/internal/toc"
)

// PutTree stores the tree of the layer whose table of contents has digest d.
// The caller has verified the table.
func (s *Store) PutTree(d digest.Digest, tree *toc.Tree) error {
	name, err := blobName(d)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	path, err := s.path("trees", name, true)
	if err == nil {
		err = s.writeFile(path, tree.Bytes())
	}
	if err == nil {
		sum := sha256.Sum256(tree.Bytes())
		err = s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketTrees).Put([]byte(name), sum[:]) })
	}
	if err != nil {
		return fmt.Errorf("store: put tree %s: %w", d, err)
	}
	return nil
}

// Tree returns the tree of the layer whose table of contents has digest d,
// mapped from disk; it is valid until the store is closed. The error is
// fs.ErrNotExist if it isn't stored, and ErrDamaged if the disk has changed it
// (the table must be fetched and parsed again).
func (s *Store) Tree(d digest.Digest) (*toc.Tree, error) {
	name, err := blobName(d)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	s.treeMu.Lock()
	defer s.treeMu.Unlock()
	if t, ok := s.trees[name]; ok {
		return t, nil
	}
	t, raw, err := s.mapTree(name)
	if err != nil {
		return nil, fmt.Errorf("store: tree %s: %w", d, err)
	}
	s.trees[name] = t
	s.mapped = append(s.mapped, raw)
	return t, nil
}

func (s *Store) mapTree(name string) (*toc.Tree, []byte, error) {
	var want []byte
	err := s.db.View(func(tx *bbolt.Tx) error {
		want = append(want, tx.Bucket(bucketTrees).Get([]byte(name))...)
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	if len(want) != sha256.Size {
		return nil, nil, fs.ErrNotExist
	}
	path, err := s.path("trees", name, false)
	if err != nil {
		return nil, nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, nil, err
	}
	raw, err := mapFile(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, nil, err
	}
	if sum := sha256.Sum256(raw); string(sum[:]) != string(want) {
		return nil, nil, errors.Join(ErrDamaged, unix.Munmap(raw))
	}
	t, err := toc.Load(raw)
	if err != nil {
		return nil, nil, errors.Join(ErrDamaged, err, unix.Munmap(raw))
	}
	return t, raw, nil
}

func mapFile(f *os.File) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() == 0 || info.Size() > 1<<32 {
		return nil, ErrDamaged
	}
	return unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
}
