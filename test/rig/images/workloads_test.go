package images

import (
	"slices"
	"testing"
)

// Each workload has two versions that differ, and tests don't build what only
// the benchmark needs.
func TestWorkloads(t *testing.T) {
	if n := len(Workloads()); n < 6 {
		t.Errorf("%d workloads", n)
	}
	for _, w := range Workloads() {
		older, err := find(w.Versions[0])
		if err != nil {
			t.Fatal(err)
		}
		newer, err := find(w.Versions[1])
		if err != nil {
			t.Fatal(err)
		}
		a, b := len(older.steps)-1, len(newer.steps)-1
		if older.stepDir(0) != newer.stepDir(0) || older.stepDir(a) == newer.stepDir(b) {
			t.Errorf("%s: the lowest layers have to be the same, and the highest different", w.Name)
		}
		if slices.Contains(Names(), w.Versions[0]) {
			t.Errorf("%s is built by tests", w.Versions[0])
		}
	}
}

func TestProgramName(t *testing.T) {
	for program, want := range map[string]string{
		"example.org/one/server/v2@v2.1.0": "server",
		"example.org/one/server@latest":    "server",
		"example.org/v2x@v0.1.0":           "v2x",
	} {
		if got := programName(program); got != want {
			t.Errorf("%s: %s", program, got)
		}
	}
}
