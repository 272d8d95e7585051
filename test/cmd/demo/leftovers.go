package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/airstream-io/airstream/test/rig/netns"
	"github.com/airstream-io/airstream/test/rig/site"
)

// marks are texts that appear in the names of what the demo makes: in those of
// namespaces and node directories the identity of this process, in those of
// mounts and daemons also the site's directory.
func (d *demo) mark(s *site.Site) error {
	if len(d.marks) == 0 {
		owner, err := netns.Owner(os.Getpid())
		if err != nil {
			return err
		}
		d.marks = append(d.marks, "."+owner+".")
	}
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", s.DaemonPID()))
	if err != nil {
		return err
	}
	for arg := range bytes.SplitSeq(args, []byte{0}) {
		if dir, ok := strings.CutSuffix(string(arg), "/airstream.toml"); ok {
			d.marks = append(d.marks, dir)
			return nil
		}
	}
	return errors.New("the daemon's command line doesn't say where its files are")
}

func (d *demo) marked(name string) bool {
	return slices.ContainsFunc(d.marks, func(m string) bool { return strings.Contains(name, m) })
}

// leftovers names the processes, mounts, namespaces and folders that are still
// there of what the demo has made.
func (d *demo) leftovers() ([]string, error) {
	var left []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		// The fifth field is the mount point; octal escapes don't matter to marks.
		if fields := strings.Fields(line); len(fields) > 4 && d.marked(fields[4]) {
			left = append(left, "mount "+fields[4])
		}
	}
	for _, dir := range []string{"/run/netns", os.TempDir()} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if path := filepath.Join(dir, e.Name()); d.marked(path) {
				left = append(left, path)
			}
		}
	}
	processes, err := d.processes()
	return append(left, processes...), err
}

// processes finds children of this process, of whatever generation, and
// processes whose command line has a mark: containerd's shims have another
// parent.
func (d *demo) processes() ([]string, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	parents, said := map[int]int{}, map[int]string{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue // it has ended
		}
		// Behind the command, which is in parentheses, come state and parent.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) > 1 {
			parents[pid], _ = strconv.Atoi(fields[1]) // 0 is nobody's child
		}
		args, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil {
			said[pid] = strings.ReplaceAll(string(bytes.TrimRight(args, "\x00")), "\x00", " ")
		}
	}
	var left []string
	self := os.Getpid()
	for pid := range parents {
		ours := d.marked(said[pid]) && pid != self
		for p := parents[pid]; p > 1 && !ours; p = parents[p] {
			ours = p == self
		}
		if ours {
			left = append(left, fmt.Sprintf("process %d (%s)", pid, said[pid]))
		}
	}
	slices.Sort(left)
	return left, nil
}
