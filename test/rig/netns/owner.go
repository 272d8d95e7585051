package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
)

// prefix begins the name of everything that the rig owns.
const prefix = "airstream"

var sequence atomic.Uint64 // of the names made by this process

// OwnName makes a name that no other process and no other call makes, and
// that says who owns it:
// airstream.PID.STARTTIME.SEQUENCE.LABEL.
func OwnName(label string) (string, error) {
	owner, err := Owner(os.Getpid())
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s.%s.%d.%s", prefix, owner, sequence.Add(1), label), nil
}

// Owner returns what identifies a running process for as long as the machine
// is up, a reused pid notwithstanding: "PID.STARTTIME". It is an error that
// wraps os.ErrNotExist if there is no such process.
func Owner(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", fmt.Errorf("netns: owner %d: %w", pid, err)
	}
	// The second field is the command in parentheses and may hold anything;
	// proc(5) numbers the start time 22, the first behind it is 3.
	_, rest, ok := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return "", fmt.Errorf("netns: owner %d: cannot read /proc/%d/stat", pid, pid)
	}
	return fmt.Sprintf("%d.%s", pid, fields[19]), nil
}

// Alive reports whether the process that Owner described is still running.
func Alive(owner string) bool {
	text, _, ok := strings.Cut(owner, ".")
	pid, err := strconv.Atoi(text)
	if !ok || err != nil {
		return false
	}
	now, err := Owner(pid)
	return err == nil && now == owner
}

// Sweep deletes the namespaces whose owner is dead and returns their names.
func Sweep() ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return nil, fmt.Errorf("netns: sweep: %w", err)
	}
	var swept []string
	var errs []error
	for _, entry := range entries {
		owner, ok := OwnerOf(entry.Name())
		if !ok || Alive(owner) {
			continue
		}
		switch err := remove(filepath.Join(dir, entry.Name())); {
		case err == nil:
			swept = append(swept, entry.Name())
		case errors.Is(err, os.ErrNotExist): // another run swept it first
		default:
			errs = append(errs, fmt.Errorf("netns: sweep %s: %w", entry.Name(), err))
		}
	}
	return swept, errors.Join(errs...)
}

// OwnerOf takes the owner from a name that OwnName made.
func OwnerOf(name string) (owner string, ok bool) {
	parts := strings.SplitN(name, ".", 5)
	if len(parts) != 5 || parts[0] != prefix {
		return "", false
	}
	for _, number := range parts[1:4] {
		if _, err := strconv.ParseUint(number, 10, 64); err != nil {
			return "", false
		}
	}
	return parts[1] + "." + parts[2], true
}
