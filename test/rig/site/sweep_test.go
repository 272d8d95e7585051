package site

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/test/rig/netns"
	"github.com/airstream-io/airstream/test/rig/tools"
)

// What a killed run has left is gone after the next start, and what a run has
// that is alive stays.
func TestSweepTakesOnlyTheDead(t *testing.T) {
	tools.Need(t, tools.Root)
	t.Setenv("TMPDIR", t.TempDir())
	own, err := makeDir()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	owner, err := netns.Owner(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	dead := filepath.Join(os.TempDir(), "airstream."+owner+".1."+label)
	if got, ok := netns.OwnerOf(filepath.Base(dead)); !ok || got != owner {
		t.Fatalf("the owner of %s is %q, %v; want %q", dead, got, ok, owner)
	}
	tree := filepath.Join(dead, "a", "tree")
	if err := os.MkdirAll(tree, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("left", tree, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dead); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", dead, err)
	}
	if _, err := os.Stat(own); err != nil {
		t.Errorf("the directory of this run is gone: %v", err)
	}
}
