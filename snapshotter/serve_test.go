package snapshotter_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/airstream-io/airstream/snapshotter"
)

func TestListen(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "run", "airstream", "a.sock")
	lis, err := snapshotter.Listen(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{path: os.ModeSocket | 0o600, filepath.Dir(path): os.ModeDir | 0o700} {
		if info, err := os.Stat(name); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v, want %v", name, info.Mode(), err, want)
		}
	}
	_, err = snapshotter.Listen(ctx, path)
	if me := fmt.Sprintf("process %d", os.Getpid()); err == nil || !strings.Contains(err.Error(), me) || !strings.Contains(err.Error(), path) {
		t.Errorf("listen where a process listens: %v; want the path and %q", err, me)
	}
	// As a killed process leaves it.
	unix, ok := lis.(*net.UnixListener)
	if !ok {
		t.Fatalf("listener is a %T", lis)
	}
	unix.SetUnlinkOnClose(false)
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	lis, err = snapshotter.Listen(ctx, path)
	if err != nil {
		t.Fatalf("stale socket: %v", err)
	}
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("socket after Close: %v", err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := snapshotter.Listen(ctx, path); err == nil {
		t.Error("listen replaced a file")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("the file holds %q, %v", b, err)
	}
	if _, err := snapshotter.Listen(ctx, "/tmp/"+strings.Repeat("x", 120)); err == nil || !strings.Contains(err.Error(), "107") {
		t.Errorf("long path: %v", err)
	}
}

func TestServeStopsThoughACallWaits(t *testing.T) {
	needRoot(t)
	ctx := t.Context()
	r := newRig(t)
	r.serveLazily(t, 1, base)
	r.layers.crossing["1.base"] = make(chan struct{}) // never comes
	pull(ctx, t, r, "1", nil, base)
	client, stop, err := serve(ctx, filepath.Join(t.TempDir(), "s"), r.Snapshotter)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Prepare(ctx, "container", base.chainID); err != nil {
		t.Fatal(err)
	}
	waits := make(chan error, 1)
	go func() {
		_, err := client.Mounts(ctx, "container")
		waits <- err
	}()
	// Other calls go on meanwhile.
	if _, err := client.Stat(ctx, base.chainID); err != nil {
		t.Error(err)
	}
	if err := client.Walk(ctx, func(context.Context, snapshots.Info) error { return nil }); err != nil {
		t.Error(err)
	}
	begin := time.Now()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("stop took %v", took)
	}
	if err := <-waits; err == nil {
		t.Error("the call that waited got mounts")
	}
}

func TestErrorsKeepTheirKindOverTheSocket(t *testing.T) {
	ctx := t.Context()
	r := newRig(t)
	client, stop, err := serve(ctx, filepath.Join(t.TempDir(), "s"), r.Snapshotter)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stop() }()
	if _, err := client.Stat(ctx, "nothing"); !errdefs.IsNotFound(err) {
		t.Errorf("stat: %v", err)
	}
	if _, err := client.Mounts(ctx, "nothing"); !errdefs.IsNotFound(err) {
		t.Errorf("mounts: %v", err)
	}
	if _, err := client.Prepare(ctx, "a", "nothing"); !errdefs.IsNotFound(err) {
		t.Errorf("prepare: %v", err)
	}
	r.serveLazily(t, 1, base)
	if _, err := client.Prepare(ctx, "a", "", snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: base.chainID})); !errdefs.IsAlreadyExists(err) {
		t.Errorf("prepare of a lazy layer: %v", err)
	}
	if _, err := client.Usage(ctx, base.chainID); err != nil {
		t.Errorf("usage: %v", err)
	}
}
