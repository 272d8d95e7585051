package layerfs_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/snapshotter/layerfs"
)

func needFUSE(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("skipped: mounting FUSE needs root")
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		tb.Skipf("skipped: this machine can't do FUSE: %v", err)
	}
	_ = f.Close()
}

// mount serves n below a directory of the test, until the test ends.
func mount(tb testing.TB, n *node, opts layerfs.Options) (*layerfs.Server, string) {
	tb.Helper()
	needFUSE(tb)
	at := filepath.Join(tb.TempDir(), "tree")
	s, err := layerfs.Mount(at, n, opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
		if n := n.opened.Load(); n != 0 {
			tb.Errorf("%d contents are still open after Close", n)
		}
	})
	return s, at
}

// overlay mounts overlayfs with these lower directories, the highest first,
// and a fresh upper one.
func overlay(tb testing.TB, lower ...string) string {
	tb.Helper()
	base := tb.TempDir()
	for _, d := range []string{"upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	merged := filepath.Join(base, "merged")
	data := fmt.Sprintf("index=off,lowerdir=%s,upperdir=%s,workdir=%s", strings.Join(lower, ":"), filepath.Join(base, "upper"), filepath.Join(base, "work"))
	if err := unix.Mount("overlay", merged, "overlay", 0, data); err != nil {
		tb.Fatalf("mount overlay: %v", err)
	}
	tb.Cleanup(func() {
		if err := unix.Unmount(merged, unix.MNT_DETACH); err != nil {
			tb.Error(err)
		}
	})
	return merged
}

// eventually waits until a condition that other processes bring about is true.
func eventually(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	limit := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-limit:
			tb.Fatalf("not within 20 s: %s", what)
		case <-tick.C:
		}
	}
}

// start runs a command that the test must end by itself.
func start(tb testing.TB, cmd *exec.Cmd) {
	tb.Helper()
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
}
