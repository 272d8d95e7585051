package record

import (
	"os"
	"path/filepath"
	"testing"
)

// What a dead process has left is removed; what a living one uses is not.
func TestScratchSweepsWhatTheDeadLeft(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, prefix+"dead", "1", "image")
	if err := os.MkdirAll(dead, 0o700); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "mine")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	first, err := OpenScratch(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dead); err == nil {
		t.Error("what a dead process left is there")
	}
	second, err := OpenScratch(dir)
	if err != nil {
		t.Fatal(err)
	}
	id, run, err := first.next()
	if err != nil {
		t.Fatalf("the second has removed the first: %v", err)
	}
	if id2, run2, err := first.next(); err != nil || id == id2 || run == run2 {
		t.Errorf("two recordings: %s in %s, %s in %s: %v", id, run, id2, run2, err)
	}
	if err := first.clear(id, run); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(run); err == nil {
		t.Error("a recording's directory is there after it")
	}
	for _, s := range []*Scratch{first, second} {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	left, err := filepath.Glob(dir + "/*")
	if err != nil || len(left) != 1 || left[0] != other {
		t.Errorf("left: %v, %v", left, err)
	}
	if hidden, err := filepath.Glob(dir + "/.*"); err != nil || len(hidden) != 0 {
		t.Errorf("left: %v, %v", hidden, err)
	}
}
