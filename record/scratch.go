package record

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	prefix     = ".airstream-record-" // of directories in the scratch space
	cgroupDir  = "airstream-record"
	cgroupRoot = "/sys/fs/cgroup"
)

// Scratch is a directory for recordings. It belongs to this process as long as
// that lives.
type Scratch struct {
	dir  string
	lock *os.File // of the directory
	runs int
}

// OpenScratch makes a scratch directory in dir, and removes what processes that
// died have left there.
func OpenScratch(dir string) (*Scratch, error) {
	s, err := openScratch(dir)
	if err != nil {
		return nil, fmt.Errorf("record: make scratch directory: %w", err)
	}
	return s, nil
}

func openScratch(dir string) (*Scratch, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := sweep(dir); err != nil {
		return nil, err
	}
	own, err := os.MkdirTemp(dir, prefix)
	if err != nil {
		return nil, err
	}
	if own, err = filepath.Abs(own); err != nil {
		return nil, err
	}
	// Between the two somebody else's sweep may come; then there is nothing to
	// lock, which is said and no harm.
	lock, ok, err := lockDir(own)
	if err == nil && !ok {
		err = fmt.Errorf("%s: %w", own, unix.EWOULDBLOCK)
	}
	if err != nil {
		return nil, err
	}
	return &Scratch{dir: own, lock: lock}, nil
}

// Dir returns the directory, for what else the caller keeps there.
func (s *Scratch) Dir() string { return s.dir }

// Close removes the directory.
func (s *Scratch) Close() error {
	if err := errors.Join(os.RemoveAll(s.dir), s.lock.Close()); err != nil {
		return fmt.Errorf("record: remove scratch directory: %w", err)
	}
	return nil
}

// next makes the directory of one recording, and names its container.
func (s *Scratch) next() (id, dir string, err error) {
	s.runs++
	dir = filepath.Join(s.dir, fmt.Sprint(s.runs))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", "", err
	}
	return fmt.Sprintf("%s-%d", s.name(), s.runs), dir, nil
}

// name is what the scratch directory is called in the names of cgroups.
func (s *Scratch) name() string { return strings.TrimPrefix(filepath.Base(s.dir), prefix) }

// clear removes what a recording whose worker has ended leaves.
func (s *Scratch) clear(id, dir string) error {
	return errors.Join(bury(id), os.RemoveAll(dir))
}

// burial is how long the kernel may take for the processes of a container that
// was killed; they are in its cgroup until then.
const burial = 5 * time.Second

// bury removes the cgroups with a name, of containers that are dead or dying.
// Whoever gives up recording waits for this, too: it is short.
func bury(pattern string) error {
	late := time.NewTimer(burial)
	defer late.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := removeCgroups(pattern)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-tick.C:
		case <-late.C:
			return err
		}
	}
}

// sweep removes the directories, and cgroups, of processes that are dead.
func sweep(dir string) error {
	all, err := filepath.Glob(filepath.Join(dir, prefix+"*"))
	if err != nil {
		return err
	}
	for _, old := range all {
		lock, ok, err := lockDir(old)
		if err != nil {
			return err
		}
		if !ok {
			continue // its process lives, or it has just gone
		}
		// Mounts went with the worker's namespace, so this is all on disk.
		name := strings.TrimPrefix(filepath.Base(old), prefix)
		err = errors.Join(bury(name+"-*"), os.RemoveAll(old), lock.Close())
		if err != nil {
			return err
		}
	}
	return nil
}

// lockDir locks a directory for as long as the file is open; ok is false if
// another process has it, or it is not there.
func lockDir(dir string) (f *os.File, ok bool, err error) {
	f, err = os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, true, nil
	}
	_ = f.Close() // only opened for the lock
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = nil
	}
	return nil, false, err
}

// removeCgroups removes the empty cgroups with a name, in every hierarchy that
// there is.
func removeCgroups(pattern string) error {
	var errs []error
	for _, root := range []string{cgroupRoot, filepath.Join(cgroupRoot, "*")} {
		all, err := filepath.Glob(filepath.Join(root, cgroupDir, pattern))
		if err != nil {
			return err
		}
		for _, dir := range all {
			// A container that makes cgroups of its own leaves them inside.
			_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() && path != dir {
					_ = unix.Rmdir(path)
				}
				return nil
			})
			if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dir, err))
			}
			_ = unix.Rmdir(filepath.Dir(dir)) // if it was the last
		}
	}
	return errors.Join(errs...)
}
