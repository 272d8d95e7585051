package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// stage is the place where a step works: the folders of the layers beneath, and
// the one that is to become its own.
type stage struct {
	dir    string   // the step's temporary folder; has upper and work
	lowers []string // upper directories of the steps beneath, topmost first
}

// enter mounts the stage and everything a package's scripts expect around it,
// then runs what is in $script in the chroot with what is in $binds beneath
// /run/rig. It runs as the first process of its namespaces.
//
// The work in /run and /tmp, and what is mounted there, must not become part of
// the layer: both are memory.
const enter = `
root=$PWD/$dir/merged
mount -t overlay overlay -o "lowerdir=$lowers,upperdir=$dir/upper,workdir=$dir/work,index=off,redirect_dir=off,metacopy=off,xino=off" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/run"
mkdir "$root/run/lock" "$root/run/rig"
printf '%s\n' "$binds" | while IFS='=' read -r to from; do
	[ -n "$to" ] || continue
	if [ -d "$from" ]; then mkdir "$root/run/rig/$to"; else : > "$root/run/rig/$to"; fi
	mount --bind "$from" "$root/run/rig/$to"
done
cd /
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
	chroot "$root" /bin/sh -ec "$script"
`

// chroot runs a shell script in the stage. binds maps names to files or folders
// of the machine that it finds as /run/rig/NAME.
func (s *stage) chroot(ctx context.Context, script string, binds map[string]string) error {
	for _, sub := range []string{"upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(s.dir, sub), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	var lines strings.Builder
	for to, from := range binds {
		fmt.Fprintf(&lines, "%s=%s\n", to, from)
	}
	// Mount options are a list with separators and the kernel takes one page of
	// them: so lowerdir is relative to the folder of all steps.
	steps := filepath.Dir(s.dir)
	var lowers []string
	for _, dir := range s.lowers {
		rel, err := filepath.Rel(steps, dir)
		if err != nil {
			return err
		}
		lowers = append(lowers, rel)
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-ec", enter)
	cmd.Dir = steps
	cmd.Env = []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8",
		"dir=" + filepath.Base(s.dir), "lowers=" + strings.Join(lowers, ":"), "binds=" + lines.String(), "script=" + script,
	}
	return contain(ctx, cmd, syscall.CLONE_NEWNET|syscall.CLONE_NEWIPC|syscall.CLONE_NEWUTS)
}

// contain runs cmd, which ends with ctx, as the first process of its own process and mount
// namespaces, and the given ones: whatever it mounted or started is gone when
// it ends, whoever ends it. The error carries the end of what it printed.
func contain(ctx context.Context, cmd *exec.Cmd, namespaces uintptr) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: namespaces | syscall.CLONE_NEWPID,
		// Unshareflags rather than Cloneflags: Go then also makes the mounts
		// private, so that none shows up outside.
		Unshareflags: syscall.CLONE_NEWNS,
		Pdeathsig:    syscall.SIGKILL,
	}
	cmd.WaitDelay = 10 * time.Second
	out := &tail{limit: 4 << 10}
	cmd.Stdout, cmd.Stderr = out, out

	// Pdeathsig fires when the thread that started cmd ends, so the thread has
	// to live as long as cmd.
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- cmd.Run()
	}()
	err := <-done
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil: // we were stopped: what it printed doesn't matter
		return ctx.Err()
	default:
		return fmt.Errorf("%w: %s", err, out)
	}
}

// tail keeps the last limit bytes of what is written to it.
type tail struct {
	limit int
	kept  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - t.limit; over > 0 {
		t.kept = append(t.kept[:0], t.kept[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return strings.TrimSpace(string(t.kept)) }
