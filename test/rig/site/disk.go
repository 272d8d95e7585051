package site

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Disk is a file system for the daemon's root directory. The zero value is
// none: the root is where temporary files are.
type Disk struct {
	Size int64 // bytes
	// Durable makes it ext4 in a file, which forgets in PowerCut what was not
	// synced; else it is in memory, and ResizeDisk works.
	Durable bool
}

// Root returns the daemon's root directory.
func (s *Site) Root() string { return s.path("a") }

func (s *Site) mountDisk(ctx context.Context) error {
	d := s.opts.Disk
	if d.Size == 0 {
		return nil
	}
	if err := os.MkdirAll(s.Root(), 0o711); err != nil {
		return fmt.Errorf("site: %w", err)
	}
	if !d.Durable {
		if err := unix.Mount("airstream-disk", s.Root(), "tmpfs", 0, fmt.Sprintf("size=%d", d.Size)); err != nil {
			return fmt.Errorf("site: mount a disk: %w", err)
		}
		return nil
	}
	image := s.path("disk.img")
	if _, err := os.Stat(image); errors.Is(err, os.ErrNotExist) {
		if err := os.WriteFile(image, nil, 0o600); err != nil {
			return fmt.Errorf("site: %w", err)
		}
		if err := os.Truncate(image, d.Size); err != nil {
			return fmt.Errorf("site: %w", err)
		}
		if err := tool(ctx, "mkfs.ext4", "-q", "-F", image); err != nil {
			return err
		}
	}
	return tool(ctx, "mount", "-t", "ext4", "-o", "loop", image, s.Root())
}

// tool runs a program of the machine.
func tool(ctx context.Context, program string, args ...string) error {
	if out, err := exec.CommandContext(ctx, program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("site: %s: %w\n%s", program, err, out)
	}
	return nil
}

// unmountDisk takes the disk away, and the tree that a killed daemon has left
// on it.
func (s *Site) unmountDisk(ctx context.Context) error {
	if err := unmount(filepath.Join(s.Root(), "tree"), unix.MNT_DETACH); err != nil {
		return err
	}
	if s.opts.Disk.Size == 0 {
		return nil
	}
	// What was killed a moment ago may still hold it.
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(10 * time.Second)
	for {
		err := unmount(s.Root(), 0)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-tick.C:
		case <-limit:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// unmount is no error where nothing is mounted.
func unmount(dir string, flags int) error {
	err := unix.Unmount(dir, flags)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("site: unmount %s: %w", dir, err)
	}
	return nil
}

// ResizeDisk changes the size of a Disk that isn't durable.
func (s *Site) ResizeDisk(size int64) error {
	if err := unix.Mount("airstream-disk", s.Root(), "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%d", size)); err != nil {
		return fmt.Errorf("site: resize the disk: %w", err)
	}
	return nil
}

// Of ext4's and xfs's FS_IOC_SHUTDOWN (linux/fs/ext4/ext4.h): the file system
// takes nothing more, and what is in memory, its journal included, is dropped.
const (
	fsIocShutdown   = 0x8004587d
	shutdownNoFlush = 2
)

// PowerCut does to the node what a power failure does: its durable Disk loses
// what was not synced at that moment, and nothing runs any more. Reboot goes
// on from what is left.
func (s *Site) PowerCut(ctx context.Context) error {
	if !s.opts.Disk.Durable {
		return errors.New("site: without a durable disk nothing is lost")
	}
	root, err := os.Open(s.Root())
	if err != nil {
		return fmt.Errorf("site: %w", err)
	}
	err = unix.IoctlSetPointerInt(int(root.Fd()), fsIocShutdown, shutdownNoFlush)
	if err = errors.Join(err, root.Close()); err != nil {
		return fmt.Errorf("site: shut the disk down: %w", err)
	}
	return s.PowerOff(ctx)
}

// PowerOff ends all that runs on the node at once. What it has written stays
// unless PowerCut is called instead.
func (s *Site) PowerOff(ctx context.Context) error {
	// The daemon first: a container that waits for bytes can't end before.
	var err error
	if s.daemon.supervisor != nil {
		err = s.KillSupervisor()
	}
	if err = errors.Join(err, s.Node.PowerOff(ctx)); err != nil {
		return err
	}
	return s.unmountDisk(ctx)
}

// Reboot starts the node after PowerCut or PowerOff.
func (s *Site) Reboot(ctx context.Context) error {
	if err := s.mountDisk(ctx); err != nil {
		return err
	}
	if err := s.StartDaemon(ctx); err != nil {
		return err
	}
	return s.Node.Restart(ctx)
}
