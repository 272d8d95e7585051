package store

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/internal/database"
	"github.com/airstream-io/airstream/internal/toc"
)

// doubtful returns the record of an object whose own is lost. A file without
// holes is taken for complete: every chunk is hashed before it is used anyhow.
// Of another, nothing is claimed, but what is asked for is looked for in it.
func doubtful(info fs.FileInfo) []byte {
	if onDisk(info) >= info.Size() {
		return []byte{stateComplete}
	}
	return []byte{stateDoubt}
}

// Settle ends the doubt about the object of the file at entry of a tree, if there
// is any: chunks that its map doesn't have are looked for in the parts of its
// file that are no holes. It reads from the disk what may be there. The error is
// ctx's or the disk's.
func (s *Store) Settle(ctx context.Context, tree *toc.Tree, entry uint32) error {
	first, end := tree.Chunks(entry)
	o, err := s.Object(tree.ObjectID(entry), tree.Attr(entry).Size, end-first)
	if err != nil {
		return err
	}
	for i := range end - first {
		o.mu.Lock()
		look := o.there.doubt && !o.there.has(i)
		o.mu.Unlock()
		c := tree.Chunk(first + i)
		if !look || o.isHole(c) {
			continue
		}
		if err = ctx.Err(); err != nil {
			break
		}
		if err = o.hash(i, c); err != nil && !errors.Is(err, fs.ErrNotExist) {
			break
		}
		err = nil
	}
	if err == nil {
		o.believe()
	}
	return errors.Join(err, o.Close())
}

// isHole tells whether nothing was ever written where a chunk would be.
func (o *object) isHole(c toc.Chunk) bool {
	data, err := unix.Seek(int(o.file.Fd()), c.Offset, unix.SEEK_DATA)
	return errors.Is(err, unix.ENXIO) || err == nil && data >= c.Offset+int64(c.Size)
}

// rebuild adds to a new database what the files tell of what the damaged one
// has lost.
func (s *Store) rebuild(tx *database.Tx) ([]slog.Attr, error) {
	objects, err := s.rebuildObjects(tx)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, "partial"))
	if err != nil {
		return nil, err
	}
	partials := 0
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if v, err := tx.Get(bucketPartials, []byte(e.Name())); v != nil || err != nil {
			continue
		}
		// The whole is verified when it is complete.
		partials++
		if err := tx.Put(bucketPartials, []byte(e.Name()), binary.LittleEndian.AppendUint64(nil, uint64(info.Size()))); err != nil {
			return nil, err
		}
	}
	if objects+partials > 0 {
		mark := binary.LittleEndian.AppendUint64(nil, uint64(time.Now().UnixNano()))
		if err := tx.Put(bucketSpace, keyRebuilt, mark); err != nil {
			return nil, err
		}
	}
	return []slog.Attr{slog.Int("objectsFromFiles", objects), slog.Int("partialBlobsFromFiles", partials)}, nil
}

// keyRebuilt is there from when the database was made anew, and content found by
// its files, until a deep Verify has mended all of it. Its value tells one such
// time from another.
var keyRebuilt = []byte("rebuilt")

// Rebuilt tells whether the store has content of which it knows by its files
// alone, because its database was damaged. Each chunk of it is verified before
// it is used, but until a deep Verify with Repair has ended, more may be missing
// than the store says.
func (s *Store) Rebuilt() (bool, error) {
	mark, err := s.rebuilt()
	return mark != "", err
}

func (s *Store) rebuilt() (mark string, err error) {
	err = s.db.View(func(tx *database.Tx) error {
		v, err := tx.Get(bucketSpace, keyRebuilt)
		if errors.Is(err, database.ErrValue) {
			v, err = []byte("damaged"), nil
		}
		mark = string(v)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("store: %w", err)
	}
	return mark, nil
}

// confirm notes that all content was verified that there was at the time of
// mark.
func (s *Store) confirm(mark string) error {
	now, err := s.rebuilt()
	if err != nil || mark == "" || now != mark {
		return err
	}
	return s.update(func(tx *database.Tx) error { return tx.Delete(bucketSpace, keyRebuilt) })
}

func (s *Store) rebuildObjects(tx *database.Tx) (n int, err error) {
	err = filepath.WalkDir(filepath.Join(s.dir, "objects"), func(_ string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		id, err := hex.DecodeString(e.Name())
		if err != nil || len(id) != 32 {
			return nil //nolint:nilerr // not an object; Verify reports it
		}
		if v, err := tx.Get(bucketObjects, id); v != nil || err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil || onDisk(info) == 0 {
			return nil //nolint:nilerr // gone, or nothing in it
		}
		n++
		return tx.Put(bucketObjects, id, doubtful(info))
	})
	return n, err
}
