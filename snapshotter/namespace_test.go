package snapshotter_test

import (
	"context"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"go.etcd.io/bbolt"
)

// containerd puts its own metadata store on top of a snapshotter: namespaces,
// leases and garbage collection. Everything here goes through it and a socket.
func TestNamespacesShareLayersAndGCKeepsThem(t *testing.T) {
	needRoot(t)
	r := newRig(t)
	r.serveLazily(t, 0, base)
	r.serveLazily(t, 9, top)
	client, stop, err := serve(t.Context(), filepath.Join(t.TempDir(), "s"), r.Snapshotter)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	bdb, err := bbolt.Open(filepath.Join(t.TempDir(), "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = bdb.Close() })
	content, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	db := metadata.NewDB(bdb, content, map[string]snapshots.Snapshotter{"airstream": client})
	if err := db.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	sn := db.Snapshotter("airstream")
	one, two := namespaces.WithNamespace(t.Context(), "one"), namespaces.WithNamespace(t.Context(), "two")
	root := map[string]string{"containerd.io/gc.root": "2026-01-01T00:00:00Z"}

	// mid is plain: the first namespace downloads it, the second finds it.
	if got := pull(one, t, sn, "1", root, base, mid, top); !slices.Equal(got, []string{mid.chainID}) {
		t.Errorf("first namespace downloaded %v", got)
	}
	if got := pull(two, t, sn, "2", root, base, mid, top); len(got) != 0 {
		t.Errorf("second namespace downloaded %v", got)
	}
	see := func(ctx context.Context, key string) {
		t.Helper()
		mounts, err := sn.Prepare(ctx, key, top.chainID, snapshots.WithLabels(root))
		if err != nil {
			t.Fatal(err)
		}
		if got := files(ctx, t, mounts, true); !slices.Equal(got, []string{"b", "m", "t"}) {
			t.Errorf("container sees %v", got)
		}
		if err := sn.Remove(ctx, key); err != nil {
			t.Fatal(err)
		}
	}
	see(one, "c1")
	see(two, "c2")

	// containerd replaces all labels of the snapshot with those it knows.
	if _, err := sn.Update(two, snapshots.Info{Name: top.chainID, Labels: map[string]string{snapshots.LabelSnapshotRef: top.chainID, "containerd.io/gc.root": "x"}}, "labels"); err != nil {
		t.Fatal(err)
	}
	see(two, "c3")

	drop := func(ctx context.Context) {
		t.Helper()
		for _, l := range []layerSpec{top, mid, base} {
			if err := sn.Remove(ctx, l.chainID); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := db.GarbageCollect(ctx); err != nil {
			t.Fatal(err)
		}
	}
	drop(one)
	if got := r.layers.releasedDirs(); len(got) != 0 {
		t.Errorf("released %v although the second namespace has them", got)
	}
	see(two, "c4")
	drop(two)
	got := r.layers.releasedDirs()
	slices.Sort(got)
	if !slices.Equal(got, []string{"0.base", "9"}) {
		t.Errorf("released %v after both let go", got)
	}
	left := 0
	if err := r.Walk(t.Context(), func(context.Context, snapshots.Info) error { left++; return nil }); err != nil || left != 0 {
		t.Errorf("%d snapshots left, %v", left, err)
	}
	if dirs, err := filepath.Glob(filepath.Join(r.root, "snapshots", "*")); err != nil || len(dirs) != 0 {
		t.Errorf("directories left: %v, %v", dirs, err)
	}
}
