package snapshotter_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/airstream-io/airstream/snapshotter"
)

// A container may run from other directories than its image's snapshots have. Which
// is decided when its snapshot is made, and doesn't change any more.
func TestStackIsChosenOnce(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	for slot, l := range []layerSpec{base, mid} {
		r.serveLazily(t, slot+1, l)
	}
	if got := pull(ctx, t, r, "1", nil, base, mid); len(got) > 0 {
		t.Fatalf("downloaded %v", got)
	}
	lower := func(key string) []string {
		t.Helper()
		mounts, err := r.Mounts(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range mounts[0].Options {
			if dirs, ok := strings.CutPrefix(o, "lowerdir="); ok {
				return strings.Split(strings.ReplaceAll(dirs, r.tree+"/", ""), ":")
			}
		}
		t.Fatalf("no overlay: %v", mounts)
		return nil
	}
	choose := func(dirs ...string) {
		r.layers.mu.Lock()
		defer r.layers.mu.Unlock()
		r.layers.stacks = map[string][]string{mid.chainID: dirs}
	}
	prepare := func(key string) {
		t.Helper()
		if _, err := r.Prepare(ctx, key, mid.chainID, snapshots.WithLabels(map[string]string{snapshotter.StackLabel: "9,9"})); err != nil {
			t.Fatal(err)
		}
	}
	tables, own := []string{"2", "1.base"}, []string{"8", "7.base"}
	prepare("before")
	choose(own...)
	prepare("after")
	choose()
	prepare("again")
	for key, want := range map[string][]string{"before": tables, "after": own, "again": tables} {
		if got := lower(key); !slices.Equal(got, want) {
			t.Errorf("%s: it mounts %v, want %v", key, got, want)
		}
	}

	// A client that changes labels doesn't change that, and what is mounted is in use.
	if _, err := r.Update(ctx, snapshots.Info{Name: "after", Labels: map[string]string{"a": "b", snapshotter.StackLabel: "9,9"}}); err != nil {
		t.Fatal(err)
	}
	if got := lower("after"); !slices.Equal(got, own) {
		t.Errorf("after an update it mounts %v, want %v", got, own)
	}
	used, err := r.Mounted(ctx)
	if err != nil || !used["8"] || !used["7.base"] {
		t.Errorf("mounted: %v, %v", used, err)
	}
	all, err := r.Dirs(ctx)
	if err != nil || !slices.Contains(all, "8") || !slices.Contains(all, "2") {
		t.Errorf("needed: %v, %v", all, err)
	}

	choose("only one")
	if _, err := r.Prepare(ctx, "wrong", mid.chainID); err == nil {
		t.Error("a stack of one directory for two layers was taken")
	}
	choose("..", "7.base")
	if _, err := r.View(ctx, "wrong", mid.chainID); err == nil {
		t.Error("a directory outside was taken")
	}
}
