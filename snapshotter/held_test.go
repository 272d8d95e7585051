package snapshotter_test

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What lies beneath a container or a view is mounted; an image that nobody runs
// is only there. Plain layers that containerd has unpacked are known by their
// chain IDs.
func TestMountedAndUnpackedLayers(t *testing.T) {
	needRoot(t)
	ctx := t.Context()
	r := newRig(t)
	r.serveLazily(t, 1, base)
	r.serveLazily(t, 3, top)
	check := func(what string, got func(context.Context) (map[string]bool, error), want ...string) {
		t.Helper()
		set := map[string]bool{}
		for _, w := range want {
			set[w] = true
		}
		have, err := got(ctx)
		if diff := cmp.Diff(set, have); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", what, err, diff)
		}
	}
	check("nothing pulled", r.Mounted)
	pull(ctx, t, r, "a", nil, base, mid, top)
	check("pulled, not run", r.Mounted)
	check("pulled", r.Unpacked, mid.chainID)

	if _, err := r.Prepare(ctx, "container", top.chainID); err != nil {
		t.Fatal(err)
	}
	check("a container", r.Mounted, "1.base", "3")
	if _, err := r.View(ctx, "view", base.chainID); err != nil {
		t.Fatal(err)
	}
	if err := r.Remove(ctx, "container"); err != nil {
		t.Fatal(err)
	}
	check("a view", r.Mounted, "1.base")
	if err := r.Remove(ctx, "view"); err != nil {
		t.Fatal(err)
	}
	check("nothing runs any more", r.Mounted)
}
