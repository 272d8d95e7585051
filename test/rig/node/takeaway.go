package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/test/rig/netns"
)

// label ends the name of a node's directory.
const label = "node"

// Sweep takes away the nodes whose owner is dead.
func Sweep(ctx context.Context) error {
	entries, err := os.ReadDir(os.TempDir())
	if err != nil {
		return fmt.Errorf("node: sweep: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		owner, ok := netns.OwnerOf(entry.Name())
		if !ok || !strings.HasSuffix(entry.Name(), "."+label) || netns.Alive(owner) {
			continue
		}
		if err := takeAway(ctx, filepath.Join(os.TempDir(), entry.Name())); err != nil {
			errs = append(errs, fmt.Errorf("node: sweep: %w", err))
		}
	}
	return errors.Join(errs...)
}

// takeAway removes all that a node whose containerd has ended has left:
// containers, shims, mounts, control groups and the directory. It may be
// called again after it failed.
func takeAway(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	return errors.Join(
		killAll(ctx, filepath.Join(dir, "containerd.sock")),
		unmountBeneath(dir),
		removeCgroups(ctx, filepath.Base(dir)),
		os.RemoveAll(dir))
}

// pollEvery is how often processes and control groups are looked at while
// they go away.
const pollEvery = 20 * time.Millisecond

// killAll kills the shims that serve the containerd at socket, and what they
// run, and waits until they are gone. Containers first: a shim that is alive
// reaps them.
func killAll(ctx context.Context, socket string) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		parents, err := processes()
		if err != nil {
			return err
		}
		shims := shimsOf(parents, socket)
		if len(shims) == 0 {
			return nil
		}
		contained := descendants(parents, shims)
		if len(contained) == 0 {
			contained = shims
		}
		for _, pid := range contained {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill %d: %w", pid, err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("processes %v of %s don't end: %w", contained, socket, context.Cause(ctx))
		}
	}
}

// processes returns every process with its parent.
func processes() (parents map[int]int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	parents = make(map[int]int)
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "stat"))
		if err != nil {
			continue // it has ended
		}
		// After the command in parentheses: state, parent (proc(5)).
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(fields) < 2 || fields[0][0] == 'Z' {
			continue
		}
		if parent, err := strconv.Atoi(string(fields[1])); err == nil {
			parents[pid] = parent
		}
	}
	return parents, nil
}

// shimsOf returns the shims that serve the containerd at socket.
func shimsOf(parents map[int]int, socket string) []int {
	var shims []int
	for pid := range parents {
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue // it has ended
		}
		args := strings.Split(string(cmdline), "\x00")
		at := slices.Index(args, "-address")
		if strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") && at >= 0 && at+1 < len(args) && args[at+1] == socket {
			shims = append(shims, pid)
		}
	}
	return shims
}

// descendants returns the children of roots, their children, and so on.
func descendants(parents map[int]int, roots []int) []int {
	var all []int
	for pid := range parents {
		for up := parents[pid]; up > 1; up = parents[up] {
			if slices.Contains(roots, up) {
				all = append(all, pid)
				break
			}
		}
	}
	return all
}

// unmountBeneath unmounts everything beneath dir, the last mount first.
func unmountBeneath(dir string) error {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if point := unescape(fields[4]); strings.HasPrefix(point, dir+"/") {
			points = append(points, point)
		}
	}
	var errs []error
	for _, point := range slices.Backward(points) {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
	}
	return errors.Join(errs...)
}

// unescape undoes the octal escapes of white space in mountinfo (proc(5)).
func unescape(field string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(field)
}

// removeCgroups removes the control groups of that name from every hierarchy.
// They stay busy for a moment after their last process has ended.
func removeCgroups(ctx context.Context, name string) error {
	roots, err := cgroupRoots()
	if err != nil {
		return err
	}
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		var busy error
		for _, root := range roots {
			if err := removeTree(filepath.Join(root, name)); err != nil {
				busy = err
			}
		}
		if busy == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return busy
		}
	}
}

// cgroupRoots returns where hierarchies of control groups are mounted, those
// of version 1 and of version 2.
func cgroupRoots() ([]string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var roots []string
	for line := range strings.Lines(string(table)) {
		mount, filesystem, ok := strings.Cut(line, " - ")
		fields := strings.Fields(mount)
		if ok && len(fields) >= 5 && strings.HasPrefix(filesystem, "cgroup") {
			roots = append(roots, unescape(fields[4]))
		}
	}
	return roots, nil
}

// removeTree removes a control group with all beneath it. Their files can't
// be removed and go with the directory.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeTree(filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove control group %s: %w", dir, err)
	}
	return nil
}
