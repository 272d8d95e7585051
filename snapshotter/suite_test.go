package snapshotter_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/airstream-io/airstream/snapshotter"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func needRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("skipped: mounting overlayfs needs root")
	}
}

// The suite skips for this name what overlayfs can't do: rename a directory of
// a lower layer.
const suiteName = "overlayfs"

// The conformance suite that containerd runs on its own snapshotters.
func TestSuite(t *testing.T) {
	needRoot(t)
	testsuite.SnapshotterSuite(t, suiteName, func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		sn, err := snapshotter.Open(ctx, root, filepath.Join(root, "tree"), newFakeLayers(), snapshotter.Options{})
		if err != nil {
			return nil, nil, err
		}
		return sn, sn.Close, nil
	})
}

// The same through the socket, as containerd's proxy plugin uses us.
func TestSuiteOverGRPC(t *testing.T) {
	needRoot(t)
	testsuite.SnapshotterSuite(t, suiteName, func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		sn, err := snapshotter.Open(ctx, root, filepath.Join(root, "tree"), newFakeLayers(), snapshotter.Options{})
		if err != nil {
			return nil, nil, err
		}
		client, stop, err := serve(ctx, filepath.Join(root, "s.sock"), sn)
		if err != nil {
			return nil, nil, errors.Join(err, sn.Close())
		}
		return client, func() error { return errors.Join(stop(), sn.Close()) }, nil
	})
}

// serve serves sn at path and returns a client as containerd makes it.
func serve(ctx context.Context, path string, sn snapshots.Snapshotter) (snapshots.Snapshotter, func() error, error) {
	lis, err := snapshotter.Listen(ctx, path)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	served := make(chan error, 1)
	go func() { served <- snapshotter.Serve(ctx, lis, sn) }()
	stop := func() error { cancel(); return <-served }
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	client := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "airstream")
	return client, func() error { return errors.Join(conn.Close(), stop()) }, nil
}
