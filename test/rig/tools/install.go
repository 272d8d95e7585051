package tools

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Install brings the named programs onto the machine, or with no name all that
// the rig needs, and then checks the named features too. It writes a line to
// log for each thing that takes time. What is there already is left alone; when
// everything is, Install takes milliseconds.
//
// Two processes may install at once: a lock in the cache folder lets one wait
// for the other. The returned error joins one Missing for each thing that is
// still not there.
func Install(ctx context.Context, log io.Writer, names ...string) error {
	if len(names) == 0 {
		names = Needs()
	}
	if len(Check(ctx, names...)) == 0 {
		return nil
	}
	dir, err := Dir()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("tools: make %s: %w", dir, err)
	}
	unlock, err := Lock(ctx, filepath.Join(dir, ".lock"))
	if err != nil {
		return err
	}
	defer unlock()

	// The second look is after the lock: another process may have done it all.
	var debian []string
	var problems []error
	for _, m := range Check(ctx, names...) {
		i := slices.IndexFunc(programs, func(p Program) bool { return p.Name == m.Name })
		switch {
		case i < 0:
			problems = append(problems, m)
		case programs[i].Debian != "":
			debian = append(debian, programs[i].Debian)
		default:
			if err := goInstall(ctx, log, programs[i], dir); err != nil {
				problems = append(problems, err)
			}
		}
	}
	if len(debian) > 0 {
		if err := aptInstall(ctx, log, debian); err != nil {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

// goInstall builds p into a folder beside dir and renames it into place, so
// that a stopped build leaves the old program and a running one keeps its file.
func goInstall(ctx context.Context, log io.Writer, p Program, dir string) error {
	begin := time.Now()
	say(log, "building %s %s", p.Name, p.Version)
	tmp, err := os.MkdirTemp(dir, ".build-")
	if err != nil {
		return fmt.Errorf("tools: make build folder: %w", err)
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // what stays is hidden and harmless

	// The build runs outside of any module: neither this module's go.mod nor a
	// workspace around it may bend what the pinned version means.
	cmd := command(ctx, "go", "install", p.Module+"/"+p.Package+"@"+p.Version)
	cmd.Dir = tmp
	cmd.Env = append(os.Environ(), "GOBIN="+tmp, "CGO_ENABLED=0", "GOWORK=off", "GOOS=", "GOARCH=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return Missing{Name: p.Name, Problem: "go install: " + lastLine(out, err)}
	}
	built := filepath.Join(tmp, p.Name)
	if err := p.verify(built); err != nil {
		return err
	}
	if err := os.Rename(built, filepath.Join(dir, p.Name)); err != nil {
		return fmt.Errorf("tools: install %s: %w", p.Name, err)
	}
	say(log, "built %s %s in %.0f s", p.Name, p.Version, time.Since(begin).Seconds())
	return nil
}

// aptInstall installs Debian packages. It first tries with the package lists
// that the machine has, and fetches new ones only where those don't do: on a
// machine that was just installed there are none.
func aptInstall(ctx context.Context, log io.Writer, packages []string) error {
	wanted := strings.Join(packages, " ")
	if os.Geteuid() != 0 {
		return Missing{Name: wanted, Problem: "only root can install it", Remedy: "apt-get install " + wanted}
	}
	say(log, "apt-get install %s", wanted)
	install := append([]string{"install", "-y", "--no-install-recommends"}, packages...)
	if out, err := apt(ctx, install...); err != nil {
		say(log, "apt-get update (%s)", lastLine(out, err))
		if out, err := apt(ctx, "update"); err != nil {
			return Missing{Name: wanted, Problem: "apt-get update: " + lastLine(out, err)}
		}
		if out, err := apt(ctx, install...); err != nil {
			return Missing{Name: wanted, Problem: "apt-get install: " + lastLine(out, err)}
		}
	}
	return nil
}

func say(log io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(log, "tools: "+format+"\n", args...) // nobody to tell
}

func apt(ctx context.Context, args ...string) ([]byte, error) {
	// Another apt on the machine holds the lock for as long as it works; two
	// minutes is what unattended upgrades were seen to take (a guess).
	cmd := command(ctx, "apt-get", append([]string{"-q", "-o", "DPkg::Lock::Timeout=120"}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
	// A killed apt-get leaves dpkg half done: ask it to stop instead, it then
	// finishes the package that it is at.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.Bytes(), err
}

// lockPoll is how often a waiter looks again. The kernel's blocking lock can't
// be interrupted by a context.
const lockPoll = 100 * time.Millisecond

// Lock takes the exclusive lock of file, which it makes if need be, and waits
// until whoever else has it lets go or ctx ends. A lock dies with its process.
func Lock(ctx context.Context, file string) (unlock func(), err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("tools: open lock: %w", err)
	}
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil // closing unlocks, also where it fails
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = f.Close() // not locked
			return nil, fmt.Errorf("tools: lock %s: %w", file, err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close() // not locked
			return nil, fmt.Errorf("tools: wait for %s: %w", file, ctx.Err())
		case <-tick.C:
		}
	}
}
