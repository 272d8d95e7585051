package node

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"google.golang.org/grpc"
)

// spy is overlayfs behind a socket; it remembers the labels of Prepare.
type spy struct {
	snapshots.Snapshotter

	mu     sync.Mutex
	labels []map[string]string // guarded by mu
}

func (s *spy) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	s.labels = append(s.labels, info.Labels)
	s.mu.Unlock()
	return s.Snapshotter.Prepare(ctx, key, parent, opts...)
}

// has reports whether any Prepare carried a label, and forgets them all.
func (s *spy) has(label string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := slices.ContainsFunc(s.labels, func(l map[string]string) bool { _, ok := l[label]; return ok })
	s.labels = nil
	return found
}

// serve serves the snapshotter at a socket until the test ends.
func (s *spy) serve(t *testing.T, socket string) {
	t.Helper()
	server := grpc.NewServer()
	api.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(s))
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(l) //nolint:errcheck // ends when stopped
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A snapshotter behind the socket is used by both ways of pulling, and is
// told what it needs to fetch layers by itself.
func TestSnapshotterBehindASocket(t *testing.T) {
	dir := t.TempDir()
	s := newSiteWith(t, "direct", func(o *Options) {
		o.AirstreamSocket, o.AirstreamRoot = filepath.Join(dir, "s"), filepath.Join(dir, "root")
		o.CRISnapshotter = Airstream
	})
	// The node has started though nobody answered at the socket.
	backend, err := overlay.NewSnapshotter(filepath.Join(dir, "root"))
	if err != nil {
		t.Fatal(err)
	}
	spy := &spy{Snapshotter: backend}
	spy.serve(t, filepath.Join(dir, "s"))
	ctx := t.Context()

	if err := s.node.PullTransfer(ctx, s.ref, Airstream); err != nil {
		t.Fatal(err)
	}
	if !spy.has("containerd.io/snapshot.ref") {
		t.Error("transfer: Prepare was not told the chain ID")
	}
	r, err := s.node.RunUntil(ctx, Run{Ref: s.ref, Snapshotter: Airstream, Ready: ready})
	if err != nil {
		t.Fatal(err)
	}
	checkHello(t, r)

	c, err := s.node.CRI()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // the test is over
	if r, err = c.RunUntil(ctx, Run{Ref: s.ref}); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("CRI has an image that it has not pulled: %+v, %v", r, err)
	}
	if _, err := c.PullImage(ctx, s.ref, nil); err != nil {
		t.Fatal(err)
	}
	if !spy.has("containerd.io/snapshot/cri.layer-digest") {
		t.Error("CRI: Prepare was not told the layer")
	}
	if r, err = c.RunUntil(ctx, Run{Ref: s.ref, Ready: ready}); err != nil {
		t.Fatal(err)
	}
	checkHello(t, r)
}
