package tools

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTableIsComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range Programs() {
		if seen[p.Name] {
			t.Errorf("%s is listed twice", p.Name)
		}
		seen[p.Name] = true
		if (p.Module == "") == (p.Debian == "") {
			t.Errorf("%s: exactly one of Module and Debian must be set", p.Name)
		}
		if p.Module != "" && (p.Version == "" || p.Version == "latest" || p.Package == "") {
			t.Errorf("%s is not pinned: %s/%s@%s", p.Name, p.Module, p.Package, p.Version)
		}
	}
}

func TestCacheFollowsXDG(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CACHE_HOME", "")
	if got, err := Dir(); err != nil || got != filepath.Join(home, ".cache/airstream/bin") {
		t.Errorf("Dir() = %q, %v, want it below HOME", got, err)
	}
	t.Setenv("XDG_CACHE_HOME", filepath.Join(home, "xdg"))
	if got, err := Dir(); err != nil || got != filepath.Join(home, "xdg/airstream/bin") {
		t.Errorf("Dir() = %q, %v, want it below XDG_CACHE_HOME", got, err)
	}
}

func TestMissingProgramIsOneLineWithARemedy(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	gaps := Check(t.Context(), "containerd")
	if len(gaps) != 1 {
		t.Fatalf("Check = %v, want one gap", gaps)
	}
	line := gaps[0].Error()
	if !strings.Contains(line, "containerd: not installed") || !strings.Contains(line, "rigtools install containerd") || strings.Contains(line, "\n") {
		t.Errorf("line = %q", line)
	}
	if _, err := Path("containerd"); !errors.As(err, &Missing{}) {
		t.Errorf("Path = %v, want a Missing", err)
	}
}

func TestForeignBinaryDoesNotPass(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	dir, err := Dir()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, "ctr")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "registry"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"ctr": "built from", "registry": "not a Go program"} {
		if gaps := Check(t.Context(), name); len(gaps) != 1 || !strings.Contains(gaps[0].Error(), want) {
			t.Errorf("Check(%s) = %v, want %q", name, gaps, want)
		}
	}
}

func TestOtherVersionDoesNotPass(t *testing.T) {
	path, err := Path("registry")
	if err != nil {
		t.Skip(err)
	}
	i := 0
	for programs[i].Name != "registry" {
		i++
	}
	other := programs[i]
	other.Version = "v3.0.0"
	if err := other.verify(path); err == nil || !strings.Contains(err.Error(), "wanted v3.0.0") {
		t.Errorf("verify = %v, want a complaint about the version", err)
	}
}

func TestUnknownName(t *testing.T) {
	if _, err := Path("teleporter"); !errors.Is(err, ErrUnknown) {
		t.Errorf("Path = %v, want ErrUnknown", err)
	}
	if gaps := Check(t.Context(), "teleporter"); len(gaps) != 1 || gaps[0].Name != "teleporter" {
		t.Errorf("Check = %v, want one gap named teleporter", gaps)
	}
}

// When everything is there nothing is looked up on the network and nothing is
// said.
func TestInstallOfWhatIsThereIsInstant(t *testing.T) {
	Need(t)
	var log strings.Builder
	begin := time.Now()
	if err := Install(t.Context(), &log); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 5*time.Second || log.Len() > 0 {
		t.Errorf("took %v and said %q, want neither", took, log.String())
	}
}

func TestInstallSaysWhatItCannotGet(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("PATH", t.TempDir()) // no go here
	err := Install(t.Context(), &strings.Builder{}, "registry")
	if !errors.As(err, &Missing{}) || !strings.Contains(err.Error(), "registry: go install") {
		t.Errorf("Install = %v, want a line about go install", err)
	}
	dir, _ := Dir()
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.Name() != ".lock" {
			t.Errorf("left %s behind", e.Name())
		}
	}
}

func TestLockWaitsAndObeysContext(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	unlock, err := Lock(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Lock(ctx, file); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second Lock = %v, want the deadline", err)
	}
	unlock()
	again, err := Lock(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestErrorLineOfApt(t *testing.T) {
	out := []byte("Reading package lists...\nE: Unable to locate package runc\nW: something else\n")
	if got := lastLine(out, errors.New("exit status 100")); got != "E: Unable to locate package runc" {
		t.Errorf("lastLine = %q", got)
	}
	if got := lastLine(nil, errors.New("exit status 100")); got != "exit status 100" {
		t.Errorf("lastLine = %q", got)
	}
}
