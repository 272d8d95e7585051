package layerfs

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// answerWait is how long a process that serves a tree at dir may take to say
// that it lives. It always can: nothing of the answer has to cross a link.
const answerWait = 5 * time.Second

// vacate detaches trees at dir whose process is dead.
func vacate(dir string, log *slog.Logger) error {
	const most = 64 // of them on top of each other
	for range most {
		fs, err := statfs(dir)
		switch {
		case errors.Is(err, errNoAnswer):
			// Somebody keeps the connection, and no process serves it.
			log.Warn("a tree that nobody serves is ended", slog.String("dir", dir))
			if err := unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
				return fmt.Errorf("end a tree that nobody serves: %w", err)
			}
			continue
		case errors.Is(err, unix.ENOENT):
			return nil
		case errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED):
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				return fmt.Errorf("detach the tree of a dead process: %w", err)
			}
			continue
		case err != nil:
			return err
		}
		if fs.Type == unix.FUSE_SUPER_MAGIC && isMountPoint(dir) {
			return errors.New("a living process serves a file system there; stop it or choose another directory")
		}
		return nil
	}
	return fmt.Errorf("more than %d dead trees", most)
}

var errNoAnswer = errors.New("no answer")

// statfs asks the file system at dir, which may have nobody who answers.
func statfs(dir string) (unix.Statfs_t, error) {
	type answer struct {
		fs  unix.Statfs_t
		err error
	}
	// Buffered: what never answers is ended by the caller, and the goroutine
	// with it.
	answered := make(chan answer, 1)
	go func() {
		var a answer
		a.err = unix.Statfs(dir, &a.fs) // always asks the serving process
		answered <- a
	}()
	timer := time.NewTimer(answerWait)
	defer timer.Stop()
	select {
	case a := <-answered:
		return a.fs, a.err
	case <-timer.C:
		return unix.Statfs_t{}, errNoAnswer
	}
}

func isMountPoint(dir string) bool {
	var here, up unix.Stat_t
	return unix.Lstat(dir, &here) == nil && unix.Lstat(filepath.Dir(dir), &up) == nil && here.Dev != up.Dev
}
