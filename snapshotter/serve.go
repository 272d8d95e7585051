package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/snapshots"
	"google.golang.org/grpc"
)

const (
	// maxMessage bounds a request, in bytes: what containerd's own servers
	// allow (defaults.DefaultMaxRecvMsgSize).
	maxMessage = 16 << 20

	// stopStall is how long a stopping server goes on without any call that
	// ends before it cuts the rest off. A guess: calls that wait are told to
	// stop at once, so what remains is work on the local disk.
	stopStall = 30 * time.Second
)

// errStopping is the cause of the end of a call's context when the server stops.
var errStopping = errors.New("snapshotter: the daemon is stopping")

// Serve answers containerd's snapshots API on lis for sn until ctx ends, then
// stops: it takes no more calls, ends the contexts of those that run, and waits
// for them for as long as some of them come to an end. It closes lis, returns
// nil after a stop, and otherwise says why it could not go on.
func Serve(ctx context.Context, lis net.Listener, sn snapshots.Snapshotter) error {
	var done atomic.Uint64 // calls that have ended
	server := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.WaitForHandlers(false),
		grpc.UnaryInterceptor(func(call context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			defer done.Add(1)
			call, cancel := context.WithCancelCause(call)
			defer cancel(nil)
			defer context.AfterFunc(ctx, func() { cancel(errStopping) })()
			return handler(call, req)
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			defer done.Add(1)
			return handler(srv, ss)
		}),
	)
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(sn))

	var stopper sync.WaitGroup
	defer stopper.Wait()
	served, ended := context.WithCancel(ctx)
	defer ended()
	stopper.Go(func() {
		<-served.Done()
		stop(server, &done)
	})
	if err := server.Serve(lis); err != nil && ctx.Err() == nil {
		return fmt.Errorf("snapshotter: serve %s: %w", lis.Addr(), err)
	}
	return nil
}

// stop lets calls end for as long as there is progress.
func stop(server *grpc.Server, done *atomic.Uint64) {
	gone := make(chan struct{})
	var waiter sync.WaitGroup
	waiter.Go(func() {
		defer close(gone)
		server.GracefulStop()
	})
	defer waiter.Wait()
	tick := time.NewTicker(stopStall)
	defer tick.Stop()
	for seen := done.Load(); ; {
		select {
		case <-gone:
			return
		case <-tick.C:
			now := done.Load()
			if now == seen {
				server.Stop() // makes GracefulStop return, too
				return
			}
			seen = now
		}
	}
}
