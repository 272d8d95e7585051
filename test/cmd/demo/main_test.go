package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestLinesBreakBetweenWords(t *testing.T) {
	for _, c := range []struct {
		in   string
		want []string
	}{
		{"one two three", []string{"one two", "three"}},
		{"one\n\t\ttwo   three", []string{"one two", "three"}},
		{"incomprehensible one", []string{"incomprehensible", "one"}},
		{"…… ……… …", []string{"…… ………", "…"}}, // characters, not bytes
		{"", []string{""}},
	} {
		if got := wrap(c.in, 7); !slices.Equal(got, c.want) {
			t.Errorf("%q: %q, want %q", c.in, got, c.want)
		}
	}
}

func TestQuantities(t *testing.T) {
	for n, want := range map[int64]string{430_000: "430 kB", 2_340_000: "2.3 MB", 72_440_389: "72 MB"} {
		if got := megabytes(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		1240 * time.Millisecond: "1.2 s", 73*time.Second + 400*time.Millisecond: "73 s",
		119700 * time.Millisecond: "120 s", 147 * time.Second: "2 min 27 s", 179600 * time.Millisecond: "3 min 00 s",
	} {
		if got := span(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

// What the demo says at its end is worth something only if it would notice.
func TestLeftoversAreFound(t *testing.T) {
	dir := filepath.Dir(t.TempDir()) // the one right below os.TempDir
	d := &demo{t: newTimeline(t.Output()), marks: []string{filepath.Base(dir)}}
	child := exec.CommandContext(t.Context(), "sleep", "60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	left, err := d.leftovers()
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(left, "\n")
	if !strings.Contains(all, dir) || !strings.Contains(all, "(sleep 60)") {
		t.Errorf("a folder and a process are there; found:\n%s", all)
	}
	if err := d.reportLeftovers(); err == nil {
		t.Error("the demo would say that nothing is left")
	}
	_ = child.Process.Kill() // it may have ended
	_ = child.Wait()         // it was killed
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := d.reportLeftovers(); err != nil {
		t.Error(err)
	}
}
