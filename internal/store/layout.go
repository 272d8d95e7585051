package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// kinds are the directories whose items are spread over 256 more.
var kinds = []string{"objects", "blobs", "trees"}

// makeLayout makes the store's directories, durably, so that later only what is
// put into them has to be made durable.
func makeLayout(dir string) error {
	if err := makeDir(dir); err != nil {
		return err
	}
	for _, d := range []string{"partial", "tmp"} {
		if err := makeDir(filepath.Join(dir, d)); err != nil {
			return err
		}
	}
	for _, kind := range kinds {
		// The last one is made last: if it is there, all are, and durable.
		if _, err := os.Stat(filepath.Join(dir, kind, "ff")); err == nil {
			continue
		}
		if err := makeDir(filepath.Join(dir, kind)); err != nil {
			return err
		}
		for i := range 256 {
			err := os.Mkdir(filepath.Join(dir, kind, fmt.Sprintf("%02x", i)), 0o700)
			if err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			if i == 254 {
				if err := syncDir(filepath.Join(dir, kind)); err != nil {
					return err
				}
			}
		}
		if err := syncDir(filepath.Join(dir, kind)); err != nil {
			return err
		}
	}
	return nil
}

// makeDir makes a directory durably if it isn't there.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

// clearDir removes the files in a directory.
func clearDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// path returns the file of an item.
func (s *Store) path(kind, name string) string { return filepath.Join(s.dir, kind, name[:2], name) }

// writeFile makes name with the parts of its content, whole or not at all, and
// durable.
func (s *Store) writeFile(name string, parts ...[]byte) (err error) {
	f, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "new-")
	if err != nil {
		return noSpace(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(noSpace(err), f.Close(), os.Remove(f.Name()))
		}
	}()
	for _, p := range parts {
		if _, err := f.Write(p); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := s.move(f.Name(), name); err != nil {
		return err
	}
	s.space.used.Add(onDisk(info))
	return errors.Join(f.Close(), syncDir(filepath.Dir(name)))
}

// move renames a file, and takes what it replaces out of the account.
func (s *Store) move(from, to string) error {
	old, err := os.Lstat(to)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if old != nil {
		s.space.used.Add(-onDisk(old))
	}
	return nil
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// noSpace marks errors that say that the disk is full.
func noSpace(err error) error {
	if (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) && !errors.Is(err, ErrNoSpace) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}
