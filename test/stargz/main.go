// Command stargz is stargz-snapshotter as a containerd proxy plugin, as small
// as it goes: registries over plain HTTP, no credentials, nothing fetched in
// the background. The end-to-end tests run it to see that others read what
// "airstream convert" writes.
//
// It is a module of its own because stargz-snapshotter brings a good part of
// Kubernetes along, which nobody who builds Airstream should have to download.
//
//	stargz SOCKET ROOT HOST…
//
// HOST is a registry, with its port, that is spoken to without TLS. The program
// prints "ready" once it answers, and ends with SIGTERM.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/stargz-snapshotter/fs/config"
	"github.com/containerd/stargz-snapshotter/service"
	"github.com/containerd/stargz-snapshotter/service/resolver"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "stargz:", err)
		os.Exit(1)
	}
}

// patience is the limit of everything that has one, in seconds: of a request
// (by default 30), of a prefetch (10), of a read (300). With the defaults it
// gives up on links that Airstream is made for, and there would be nothing to
// compare.
const patience = 3600

func run(ctx context.Context, args []string) (err error) {
	if len(args) < 3 {
		return errors.New("usage: stargz SOCKET ROOT HOST…")
	}
	socket, root, hosts := args[0], args[1], map[string]resolver.HostConfig{}
	for _, host := range args[2:] {
		hosts[host] = resolver.HostConfig{Mirrors: []resolver.MirrorConfig{{Host: host, Insecure: true, RequestTimeoutSec: patience}}}
	}
	snapshotter, err := service.NewStargzSnapshotterService(ctx, root, &service.Config{
		Config: config.Config{
			NoBackgroundFetch: true, NoPrometheus: true, PrefetchTimeoutSec: patience,
			BlobConfig: config.BlobConfig{FetchTimeoutSec: patience},
		},
		ResolverConfig: service.ResolverConfig{Host: hosts},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, snapshotter.Close(), unmountBelow(root)) }()

	server := grpc.NewServer()
	api.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return err
	}
	go func() {
		<-ctx.Done()
		server.Stop()
	}()
	fmt.Println("ready")
	return server.Serve(listener)
}

// unmountBelow takes away the layers that are still mounted: the service leaves
// them to its next start, and here there is none.
func unmountBelow(root string) error {
	mounts, err := filepath.Glob(filepath.Join(root, "snapshotter", "snapshots", "*", "fs"))
	if err != nil {
		return err
	}
	for _, dir := range mounts {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	return nil
}
