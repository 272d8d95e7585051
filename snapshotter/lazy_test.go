package snapshotter_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/airstream-io/airstream/snapshotter"
)

// layerSpec is a layer as an image has it. A lazy one is served by the tree.
type layerSpec struct {
	chainID string
	file    string // it holds one file with this name and content
}

var (
	base = layerSpec{"sha256:base", "b"}
	mid  = layerSpec{"sha256:mid", "m"}
	top  = layerSpec{"sha256:top", "t"}
)

// rig is a snapshotter and a directory that stands for the mounted tree.
type rig struct {
	*snapshotter.Snapshotter
	root, tree string
	layers     *fakeLayers
	log        *bytes.Buffer
}

func newRig(tb testing.TB) *rig {
	tb.Helper()
	r := &rig{root: filepath.Join(tb.TempDir(), "state"), tree: filepath.Join(tb.TempDir(), "tree"), layers: newFakeLayers(), log: new(bytes.Buffer)}
	r.Snapshotter = open(tb, r.root, r.tree, r.layers, snapshotter.Options{Logger: slog.New(slog.NewTextHandler(r.log, nil))})
	return r
}

// serveLazily makes a layer lazy, in a slot.
func (r *rig) serveLazily(tb testing.TB, slot int, l layerSpec) {
	tb.Helper()
	for _, view := range []string{"", ".base"} {
		dir := filepath.Join(r.tree, fmt.Sprint(slot, view))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			tb.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, l.file), []byte(l.file), 0o644); err != nil {
			tb.Fatal(err)
		}
	}
	r.layers.mu.Lock()
	defer r.layers.mu.Unlock()
	r.layers.dirs[l.chainID] = fmt.Sprint(slot)
}

// pull does with a snapshotter what containerd 2.4's unpacker does for an
// image, and returns which layers it had to download.
func pull(ctx context.Context, tb testing.TB, sn snapshots.Snapshotter, uniq string, labels map[string]string, layers ...layerSpec) (downloaded []string) {
	tb.Helper()
	parent := ""
	for _, l := range layers {
		key := fmt.Sprintf(snapshots.UnpackKeyFormat, uniq, l.chainID)
		all := map[string]string{snapshots.LabelSnapshotRef: l.chainID, "containerd.io/snapshot/kept": "yes"}
		maps.Copy(all, labels)
		mounts, err := sn.Prepare(ctx, key, parent, snapshots.WithLabels(all))
		switch {
		case errdefs.IsAlreadyExists(err):
			if info, err := sn.Stat(ctx, l.chainID); err != nil || info.Kind != snapshots.KindCommitted || info.Parent != parent {
				tb.Fatalf("%s: already exists, but stat says %+v, %v; want parent %q", l.chainID, info, err, parent)
			}
		case err != nil:
			tb.Fatalf("prepare %s: %v", l.chainID, err)
		default:
			downloaded = append(downloaded, l.chainID)
			if err := mount.WithTempMount(ctx, mounts, func(root string) error {
				return os.WriteFile(filepath.Join(root, l.file), []byte(l.file), 0o644)
			}); err != nil {
				tb.Fatalf("unpack %s: %v", l.chainID, err)
			}
			if err := sn.Commit(ctx, l.chainID, key, snapshots.WithLabels(all)); err != nil {
				tb.Fatalf("commit %s: %v", l.chainID, err)
			}
		}
		parent = l.chainID
	}
	return downloaded
}

// files returns what a container sees in its root directory, and checks that
// it can write if it should.
func files(ctx context.Context, tb testing.TB, mounts []mount.Mount, writable bool) []string {
	tb.Helper()
	var names []string
	err := mount.WithTempMount(ctx, mounts, func(root string) error {
		entries, err := os.ReadDir(root)
		if err != nil {
			return err
		}
		for _, e := range entries {
			names = append(names, e.Name())
			if b, err := os.ReadFile(filepath.Join(root, e.Name())); err != nil || string(b) != e.Name() {
				return fmt.Errorf("%s: %q, %w", e.Name(), b, err)
			}
		}
		err = os.WriteFile(filepath.Join(root, "new"), []byte("new"), 0o644)
		if writable != (err == nil) {
			return fmt.Errorf("write: %w; want writable %v", err, writable)
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return names
}

func TestLazyLayersAreCommittedAtPrepare(t *testing.T) {
	needRoot(t)
	ctx := t.Context()
	r := newRig(t)
	r.serveLazily(t, 0, base)
	r.serveLazily(t, 17, top)
	if got := pull(ctx, t, r, "1", nil, base, top); len(got) != 0 {
		t.Fatalf("downloaded %v", got)
	}
	// containerd's metadata store looks for it in this way.
	var found []snapshots.Info
	if err := r.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		found = append(found, info)
		return nil
	}, fmt.Sprintf(`labels.%q==%s,parent==%q`, snapshots.LabelSnapshotRef, top.chainID, base.chainID)); err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0].Name != top.chainID || found[0].Kind != snapshots.KindCommitted {
		t.Fatalf("walk found %+v", found)
	}
	want := map[string]string{snapshots.LabelSnapshotRef: top.chainID, "containerd.io/snapshot/kept": "yes", snapshotter.DirLabel: "17"}
	if diff := cmp.Diff(want, found[0].Labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	if entries, err := os.ReadDir(filepath.Join(r.root, "snapshots")); err != nil || len(entries) != 0 {
		t.Errorf("a lazy layer has directories: %v, %v", entries, err)
	}
	if _, err := r.Prepare(ctx, "extract-2 x", base.chainID, snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: top.chainID})); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second Prepare: %v", err)
	}
	if u, err := r.Usage(ctx, top.chainID); err != nil || u != (snapshots.Usage{Size: 12345, Inodes: 6}) {
		t.Errorf("usage %+v, %v", u, err)
	}

	mounts, err := r.Prepare(ctx, "container", top.chainID)
	if err != nil {
		t.Fatal(err)
	}
	if lower := mounts[0].Options[2]; lower != "lowerdir="+r.tree+"/17:"+r.tree+"/0.base" {
		t.Errorf("options %v", mounts[0].Options)
	}
	if got := files(ctx, t, mounts, true); !slices.Equal(got, []string{"b", "t"}) {
		t.Errorf("container sees %v", got)
	}
	again, err := r.Mounts(ctx, "container")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(mounts, again); diff != "" {
		t.Errorf("Mounts differs from Prepare:\n%s", diff)
	}
	for parent, want := range map[string][]string{base.chainID: {"b"}, top.chainID: {"b", "t"}} {
		mounts, err := r.View(ctx, "view-"+parent, parent)
		if err != nil {
			t.Fatal(err)
		}
		if got := files(ctx, t, mounts, false); !slices.Equal(got, want) {
			t.Errorf("view of %s sees %v, want %v", parent, got, want)
		}
	}
	if strings.Contains(r.log.String(), "not lazy") {
		t.Errorf("log: %s", r.log)
	}
}

func TestPlainAndLazyLayersMix(t *testing.T) {
	needRoot(t)
	ctx := t.Context()
	for _, lazy := range [][]layerSpec{{base, top}, {mid}, {base}, {top}, {}} {
		r := newRig(t)
		var want []string
		for i, l := range lazy {
			r.serveLazily(t, i, l)
		}
		for _, l := range []layerSpec{base, mid, top} {
			if !slices.Contains(lazy, l) {
				want = append(want, l.chainID)
			}
		}
		if got := pull(ctx, t, r, "1", nil, base, mid, top); !slices.Equal(got, want) {
			t.Errorf("lazy %v: downloaded %v, want %v", lazy, got, want)
		}
		mounts, err := r.Prepare(ctx, "container", top.chainID)
		if err != nil {
			t.Fatal(err)
		}
		if got := files(ctx, t, mounts, true); !slices.Equal(got, []string{"b", "m", "t"}) {
			t.Errorf("lazy %v: container sees %v", lazy, got)
		}
		if got := strings.Count(r.log.String(), `msg="layer is not lazy"`); got != len(want) {
			t.Errorf("lazy %v: log says %d times that a layer is not lazy, want %d:\n%s", lazy, got, len(want), r.log)
		}
	}
}

func TestRestartKeepsSnapshotsAndLiveDirs(t *testing.T) {
	needRoot(t)
	ctx := t.Context()
	r := newRig(t)
	r.serveLazily(t, 3, base)
	pull(ctx, t, r, "1", nil, base, top)
	before, err := r.Prepare(ctx, "container", top.chainID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := snapshotter.Open(ctx, r.root, r.tree, r.layers, snapshotter.Options{}); !errdefs.IsUnavailable(err) {
		t.Errorf("a second Open of the same state: %v, want unavailable", err)
	}
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Fatal(err)
	}

	// Dark: the node knows nothing of the layers any more but what we kept.
	dark := newFakeLayers()
	sn := open(t, r.root, r.tree, dark, snapshotter.Options{})
	after, err := sn.Mounts(ctx, "container")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("mounts after restart:\n%s", diff)
	}
	if got := pull(ctx, t, sn, "2", nil, base, top); len(got) != 0 {
		t.Errorf("downloaded %v after restart", got)
	}
	if dark.timesAsked() != 0 {
		t.Error("Layers was asked for what is here already")
	}
	if dirs, err := sn.Dirs(ctx); err != nil || !slices.Equal(dirs, []string{"3.base"}) {
		t.Errorf("Dirs: %v, %v", dirs, err)
	}
}

func TestRemoveReleasesDirAfterItsLastSnapshot(t *testing.T) {
	needRoot(t)
	ctx := t.Context()
	r := newRig(t)
	r.serveLazily(t, 1, top)
	// Two namespaces have a plain layer of their own below the same lazy one.
	for _, ns := range []string{"a/", "b/"} {
		key, parent := ns+"extract", ns+base.chainID
		if _, err := r.Prepare(ctx, key, ""); err != nil {
			t.Fatal(err)
		}
		if err := r.Commit(ctx, parent, key); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Prepare(ctx, key, parent, snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: top.chainID})); !errdefs.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	var names []string
	if err := r.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Labels[snapshots.LabelSnapshotRef] == top.chainID {
			names = append(names, info.Name)
		}
		return nil
	}); err != nil || len(names) != 2 {
		t.Fatalf("%v, %v; want a snapshot for each parent", names, err)
	}
	if err := r.Remove(ctx, "a/"+base.chainID); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("remove a parent: %v", err)
	}
	for i, name := range names {
		if got := r.layers.releasedDirs(); len(got) != 0 {
			t.Errorf("released %v with %d snapshots left", got, 2-i)
		}
		if err := r.Remove(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.layers.releasedDirs(); !slices.Equal(got, []string{"1"}) {
		t.Errorf("released %v", got)
	}
	if err := r.Remove(ctx, names[0]); !errdefs.IsNotFound(err) {
		t.Errorf("remove twice: %v", err)
	}
}

// A layer must never be released while a snapshot of it has just come to be.
func TestReleaseAndPrepareDoNotCross(t *testing.T) {
	ctx := t.Context()
	r := newRig(t)
	r.serveLazily(t, 1, base)
	r.layers.onFree = func(dir string) {
		if dirs, err := r.Dirs(ctx); err != nil || slices.Contains(dirs, dir) {
			t.Errorf("released %s while needed: %v, %v", dir, dirs, err)
		}
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 15 {
				_, err := r.Prepare(ctx, fmt.Sprint("extract-", w, i), "", snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: base.chainID}))
				if !errdefs.IsAlreadyExists(err) {
					t.Errorf("prepare: %v", err)
				}
				if err := r.Remove(ctx, base.chainID); err != nil && !errdefs.IsNotFound(err) {
					t.Errorf("remove: %v", err)
				}
			}
		})
	}
	wg.Wait()
}
