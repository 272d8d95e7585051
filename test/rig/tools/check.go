package tools

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Features of the machine that Check and Need know besides the programs.
const (
	Root    = "root"    // effective user id 0
	FUSE    = "fuse"    // /dev/fuse can be opened
	TUN     = "tun"     // /dev/net/tun can be opened
	Overlay = "overlay" // overlayfs can be mounted over the cache folder
	NetNS   = "netns"   // network namespaces can be made
)

// features in the order in which they are worth reading: without root nothing
// else can be told.
var features = []struct {
	name  string
	check func(context.Context) error
}{
	{Root, checkRoot},
	{FUSE, func(context.Context) error { return checkDevice(FUSE, "/dev/fuse", "modprobe fuse") }},
	{TUN, func(context.Context) error { return checkDevice(TUN, "/dev/net/tun", "modprobe tun") }},
	{Overlay, checkOverlay},
	{NetNS, checkNetNS},
}

// Missing says that the machine lacks one thing. As an error it is one line.
type Missing struct {
	Name    string // program or feature
	Problem string // what is wrong with it
	Remedy  string // what helps, if anything is known to
}

// Error returns the line for the user.
func (m Missing) Error() string {
	line := m.Name + ": " + m.Problem
	if m.Remedy != "" {
		line += " (" + m.Remedy + ")"
	}
	return line
}

// Check returns what is missing of the named programs and features, in the
// order of the names; with no name, of all that the rig needs. It changes
// nothing, takes milliseconds, and returns nil where nothing is missing.
func Check(ctx context.Context, names ...string) []Missing {
	if len(names) == 0 {
		names = Needs()
	}
	var gaps []Missing
	for _, name := range names {
		err := check(ctx, name)
		if err == nil {
			continue
		}
		var m Missing
		if !errors.As(err, &m) {
			m = Missing{Name: name, Problem: err.Error()}
		}
		gaps = append(gaps, m)
	}
	return gaps
}

// Needs returns every name that Check looks at when it is given none.
func Needs() []string {
	var names []string
	for _, f := range features {
		names = append(names, f.name)
	}
	for _, p := range programs {
		if !p.Only {
			names = append(names, p.Name)
		}
	}
	return names
}

// Need skips the test, with one line that names every gap, unless all the named
// programs and features are there.
func Need(tb testing.TB, names ...string) {
	tb.Helper()
	gaps := Check(tb.Context(), names...)
	if len(gaps) == 0 {
		return
	}
	if gaps[0].Name == Root {
		gaps = gaps[:1] // the rest mostly follows from it
	}
	lines := make([]string, len(gaps))
	for i, m := range gaps {
		lines[i] = m.Error()
	}
	tb.Skip("the machine lacks " + strings.Join(lines, "; "))
}

func check(ctx context.Context, name string) error {
	for _, f := range features {
		if f.name == name {
			return f.check(ctx)
		}
	}
	_, err := Path(name)
	return err
}

func checkRoot(context.Context) error {
	if os.Geteuid() != 0 {
		return Missing{Name: Root, Problem: "not running as root", Remedy: "run again as root"}
	}
	return nil
}

func checkDevice(name, path, remedy string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrPermission) {
		remedy = "run again as root"
	}
	if err != nil {
		return Missing{Name: name, Problem: err.Error(), Remedy: remedy}
	}
	return f.Close()
}

// checkOverlay mounts a small overlay in a mount namespace of its own, which
// takes the mount along when it ends. It does so in the cache folder because
// that is where the rig will: a cache folder that is an overlay itself, as in
// most containers, can't carry another.
func checkOverlay(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return Missing{Name: Overlay, Problem: "only root can mount it", Remedy: "run again as root"}
	}
	cache, err := CacheDir()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return fmt.Errorf("tools: make cache folder: %w", err)
	}
	dir, err := os.MkdirTemp(cache, "overlay-check-")
	if err != nil {
		return fmt.Errorf("tools: make folder to try overlayfs: %w", err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // empty, and found again by whoever clears the cache
	for _, sub := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			return fmt.Errorf("tools: make folder to try overlayfs: %w", err)
		}
	}
	cmd := command(ctx, "mount", "-t", "overlay", "overlay", "-o", "lowerdir=lower,upperdir=upper,workdir=work", "merged")
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		return Missing{Name: Overlay, Problem: fmt.Sprintf("can't mount overlayfs in %s: %s", cache, lastLine(out, err))}
	}
	return nil
}

func checkNetNS(ctx context.Context) error {
	cmd := command(ctx, "true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if out, err := cmd.CombinedOutput(); err != nil {
		return Missing{Name: NetNS, Problem: "can't make a network namespace: " + lastLine(out, err)}
	}
	return nil
}

// command is exec.CommandContext with an end: where a grandchild keeps the
// output open after the program itself was killed, Wait gives up on it.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// lastLine picks the line of a failed program's output that says why: the last
// one that apt or Go marks as an error, else the last one.
func lastLine(out []byte, err error) string {
	best := err.Error()
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); line != "" {
			best = line
		}
		if strings.HasPrefix(line, "E: ") {
			return line
		}
	}
	return best
}
