package snapshotter_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/snapshotter"
)

func TestPrepareNeverWaitsAndMountsWaitsForOwner(t *testing.T) {
	needRoot(t)
	ctx := t.Context()
	r := newRig(t)
	r.serveLazily(t, 5, base)
	here := make(chan struct{})
	r.layers.crossing["5.base"] = here
	r.layers.owners["5.base"] = [2]uint32{1000, 1001}
	pull(ctx, t, r, "1", nil, base)
	if _, err := r.Prepare(ctx, "container", base.chainID); err != nil { // would hang if it waited
		t.Fatal(err)
	}
	short, cancel := context.WithCancel(ctx)
	waited := make(chan error, 1)
	go func() {
		_, err := r.Mounts(short, "container")
		waited <- err
	}()
	cancel()
	if err := <-waited; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Mounts: %v", err)
	}
	close(here)
	mounts, err := r.Mounts(ctx, "container")
	if err != nil {
		t.Fatal(err)
	}
	owner := func(root string) [2]uint32 {
		var st unix.Stat_t
		if err := unix.Stat(root, &st); err != nil {
			t.Fatal(err)
		}
		return [2]uint32{st.Uid, st.Gid}
	}
	if err := mount.WithTempMount(ctx, mounts, func(root string) error {
		if got := owner(root); got != [2]uint32{1000, 1001} {
			t.Errorf("owner of / is %v", got)
		}
		return os.Chown(root, 7, 8) // the container may
	}); err != nil {
		t.Fatal(err)
	}
	if mounts, err = r.Mounts(ctx, "container"); err != nil {
		t.Fatal(err)
	}
	if err := mount.WithTempMount(ctx, mounts, func(root string) error {
		if got := owner(root); got != [2]uint32{7, 8} {
			t.Errorf("owner of / after the container changed it is %v", got)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestRefusedDownloadFailsPrepare(t *testing.T) {
	ctx := t.Context()
	r := newRig(t)
	r.layers.refuse = errors.New("policy refuses a full download of 300 MB")
	labels := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: base.chainID})
	_, err := r.Prepare(ctx, "extract-1 x", "", labels)
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "300 MB") {
		t.Errorf("%v, want unavailable with the reason", err)
	}
	r.layers.refuse = fmt.Errorf("no: %w", errdefs.ErrPermissionDenied)
	if _, err := r.Prepare(ctx, "extract-1 x", "", labels); !errdefs.IsPermissionDenied(err) {
		t.Errorf("%v, want permission denied", err)
	}
}

func TestUserNamespaceMapping(t *testing.T) {
	needRoot(t)
	ctx := t.Context()
	r := newRig(t)
	r.serveLazily(t, 1, base)
	pull(ctx, t, r, "1", nil, base, mid)
	mapping := func(m string) snapshots.Opt {
		return snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotUIDMapping: m, snapshots.LabelSnapshotGIDMapping: m})
	}
	if _, err := r.Prepare(ctx, "on-lazy", base.chainID, mapping("0:100000:65536")); !errdefs.IsNotImplemented(err) {
		t.Errorf("mapping on a lazy layer: %v", err)
	}
	mounts, err := r.Prepare(ctx, "on-plain", mid.chainID, mapping("65536:1:1,0:100000:65536"))
	if err != nil {
		t.Fatal(err)
	}
	if err := mount.WithTempMount(ctx, mounts, func(root string) error {
		var st unix.Stat_t
		if err := unix.Stat(root, &st); err != nil || st.Uid != 100000 || st.Gid != 100000 {
			t.Errorf("owner of / is %d:%d, %v", st.Uid, st.Gid, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"1:2", "a:b:c", "5:100:10", "0:1:0", "0:-1:5"} {
		if _, err := r.Prepare(ctx, "bad", mid.chainID, mapping(bad)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("mapping %q: %v", bad, err)
		}
	}
}

func TestClientsCannotSetTheDirectory(t *testing.T) {
	needRoot(t)
	ctx := t.Context()
	r := newRig(t)
	r.serveLazily(t, 1, base)
	evil := map[string]string{snapshotter.DirLabel: "../../etc"}
	pull(ctx, t, r, "1", evil, base, top)
	for _, name := range []string{base.chainID, top.chainID} {
		for _, paths := range [][]string{nil, {"labels"}, {"labels." + snapshotter.DirLabel}} {
			if _, err := r.Update(ctx, snapshots.Info{Name: name, Labels: evil}, paths...); err != nil {
				t.Fatal(err)
			}
			info, err := r.Stat(ctx, name)
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]string{base.chainID: "1.base"}[name]
			if got := info.Labels[snapshotter.DirLabel]; got != want {
				t.Errorf("%s after update of %v: directory %q, want %q", name, paths, got, want)
			}
		}
	}
	r.layers.dirs[mid.chainID] = "a:b"
	if _, err := r.Prepare(ctx, "x", "", snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: mid.chainID})); !errdefs.IsInvalidArgument(err) {
		t.Errorf("directory name with a colon: %v", err)
	}
}

func TestCleanupDeletesRemovedAndLeftover(t *testing.T) {
	needRoot(t)
	ctx := t.Context()
	r := newRig(t)
	pull(ctx, t, r, "1", nil, base, top)
	usage, err := r.Usage(ctx, base.chainID)
	if err != nil || usage.Size == 0 || usage.Inodes == 0 {
		t.Fatalf("usage %+v, %v", usage, err)
	}
	kept := filepath.Join(r.root, "snapshots", "2")
	// Counted once: what changes behind our back is not seen.
	if err := os.WriteFile(filepath.Join(kept, "fs", "more"), []byte("more"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := r.Usage(ctx, base.chainID); err != nil || again != usage {
		t.Errorf("usage again %+v, %v; want %+v", again, err, usage)
	}
	// What a crash leaves: a directory whose ID is given away again.
	if err := os.MkdirAll(filepath.Join(r.root, "snapshots", "4", "fs", "stale"), 0o700); err != nil {
		t.Fatal(err)
	}
	mounts, err := r.Prepare(ctx, "container", top.chainID)
	if err != nil {
		t.Fatal(err)
	}
	if got := files(ctx, t, mounts, true); !slices.Contains(got, "b") || slices.Contains(got, "stale") {
		t.Errorf("container sees %v", got)
	}
	if err := errors.Join(r.Remove(ctx, "container"), r.Remove(ctx, top.chainID)); err != nil {
		t.Fatal(err)
	}
	if err := r.Cleanup(ctx); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(r.root, "snapshots"))
	if err != nil || len(entries) != 1 || entries[0].Name() != "2" {
		t.Errorf("after Cleanup: %v, %v", entries, err)
	}
}
