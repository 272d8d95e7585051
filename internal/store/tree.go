package store

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/internal/database"
	"github.com/airstream-io/airstream/internal/toc"
)

// PutTree stores the tree of the layer whose table of contents has digest d, in place
// of one that is there; that stays valid for who has it. The caller has verified the
// table.
func (s *Store) PutTree(d digest.Digest, tree *toc.Tree) error {
	name, err := blobName(d)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	raw := tree.Bytes()
	sum := treeSum(name, raw)
	if err = s.roomFor(int64(len(raw))); err == nil {
		err = s.writeFile(s.path("trees", name), raw, sum[:])
	}
	if err == nil {
		s.treeMu.Lock()
		delete(s.trees, name)
		s.treeMu.Unlock()
		err = s.update(func(tx *database.Tx) error { return tx.Put(bucketTrees, []byte(name), nil) })
	}
	if err != nil {
		return fmt.Errorf("store: put tree %s: %w", d, err)
	}
	return nil
}

// TreesLost tells whether a tree that was stored is gone without having been
// deleted: then nobody can say which objects its layer has.
func (s *Store) TreesLost() (lost bool, err error) {
	var names []string
	err = s.db.View(func(tx *database.Tx) error {
		names = nil
		return tx.From(bucketTrees, nil, func(key, _ []byte, _ error) (bool, error) {
			names = append(names, string(key))
			return true, nil
		})
	})
	if err != nil {
		return false, fmt.Errorf("store: list trees: %w", err)
	}
	for _, name := range names {
		if len(name) != 64 {
			continue
		}
		if _, err := os.Stat(s.path("trees", name)); err != nil {
			return true, nil //nolint:nilerr // whatever it is, the tree can't be read
		}
	}
	return false, nil
}

// loseTree removes a damaged tree, and remembers that there was one.
func (s *Store) loseTree(name string) error {
	if _, err := s.unlink(s.path("trees", name)); err != nil {
		return err
	}
	s.losses.Add(1)
	s.treeMu.Lock()
	defer s.treeMu.Unlock()
	delete(s.trees, name)
	return s.update(func(tx *database.Tx) error { return tx.Put(bucketTrees, []byte(name), nil) })
}

// treeSum is what stands behind a tree in its file. The digest in its name is
// that of the table that it was made from.
func treeSum(name string, raw []byte) (sum [sha256.Size]byte) {
	h := sha256.New()
	h.Write([]byte(name))
	h.Write(raw)
	h.Sum(sum[:0])
	return sum
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
	f, err := os.Open(s.path("trees", name))
	if err != nil {
		return nil, nil, err
	}
	all, err := mapFile(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, nil, err
	}
	n := len(all) - sha256.Size
	if sum := treeSum(name, all[:n]); string(sum[:]) != string(all[n:]) {
		return nil, nil, errors.Join(ErrDamaged, unix.Munmap(all))
	}
	t, err := toc.Load(all[:n:n])
	if err != nil {
		return nil, nil, errors.Join(ErrDamaged, err, unix.Munmap(all))
	}
	return t, all, nil
}

func mapFile(f *os.File) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() <= sha256.Size || info.Size() > 1<<32 {
		return nil, ErrDamaged
	}
	return unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
}
