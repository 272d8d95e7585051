package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/airstream-io/airstream/config"
	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/fetcher/mirror"
	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/store"
	"github.com/airstream-io/airstream/receive"
	"github.com/airstream-io/airstream/snapshotter"
	"github.com/airstream-io/airstream/snapshotter/layerfs"
)

func newNodeCommand(std streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Serve images to this node's containerd",
		Long: `Serve images to this node's containerd: as a snapshotter on a unix socket, and
as a registry mirror on loopback. It needs root and /dev/fuse, and no
configuration; docs/node.md says what containerd must be told.`,
		Args: cobra.NoArgs,
	}
	v := newVerb(std, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := v.settings()
		if err != nil {
			return err
		}
		limitMemory()
		n := newNode(v.config)
		n.log = newLogger(s.Log, &n.tuning.level, std)
		return runtimeError(n.run(cmd.Context(), s.Node))
	}
	return cmd
}

// newLogger makes the log that cfg asks for. Its level stays changeable.
func newLogger(cfg config.Log, level *slog.LevelVar, std streams) *slog.Logger {
	if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
		level.Set(slog.LevelInfo) // config has checked it
	}
	opts := &slog.HandlerOptions{Level: level}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(std.err, opts))
	}
	return slog.New(slog.NewTextHandler(std.err, opts))
}

// node is everything that runs on a node, in the order in which it is opened.
type node struct {
	log     *slog.Logger
	store   *store.Store
	catalog *catalog.Catalog
	reg     *registry.Client
	meter   *uplink.Meter
	fetcher *fetcher.Fetcher
	tree    *layerfs.Server
	sn      *snapshotter.Snapshotter
	mirror  *mirror.Mirror
	bundles *receive.Receiver
	shore   *onShore // nil: there is no proxy
	closers []func() error

	bundleKeys string // file of keys that bundles must be signed with; "": anybody's are taken
	configFile string // that was named; "" for the default one
	started    time.Time
	tuning     tuning
	collecting sync.Mutex // held while disk is freed
	comparing  sync.Mutex // one layer at a time
	coming     sync.Map   // names by which images are being prefetched, by manifest
	kept       bool       // somebody keeps descriptors for the next daemon
	handover   handover   // from the daemon before, and to the next
}

func newNode(configFile string) *node {
	return &node{log: quiet(), configFile: configFile, started: time.Now()}
}

// run serves until ctx ends.
func (n *node) run(ctx context.Context, cfg config.Node) (err error) {
	log := n.log
	if os.Geteuid() != 0 {
		return errors.New("airstream node mounts file systems and must run as root")
	}
	if err := n.handover.begin(log); err != nil {
		return err
	}
	n.kept = n.handover.kept()
	defer func() { err = errors.Join(err, n.close(), n.handover.end()) }()
	if err := n.open(ctx, cfg); err != nil {
		return err
	}
	snapshots, err := n.handover.listen(ctx, "snapshotter", cfg.Snapshotter.Address)
	if err != nil {
		return err
	}
	admin, err := n.handover.listen(ctx, "admin", adminSocket(cfg.State))
	if err != nil {
		return errors.Join(err, snapshots.Close())
	}
	registryEnd, err := n.handover.listenTCP(ctx, "mirror", cfg.Mirror.Address)
	if err != nil {
		return errors.Join(fmt.Errorf("mirror (is another node running? set mirror.address): %w", err), snapshots.Close(), admin.Close())
	}
	if err := n.handover.store.DropRest(); err != nil {
		log.WarnContext(ctx, "descriptors of an earlier daemon are still kept", slog.Any("error", err))
	}

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return snapshotter.Serve(ctx, snapshots, n.sn) })
	group.Go(func() error { return n.mirror.Serve(ctx, registryEnd) })
	group.Go(func() error { return n.serveAdmin(ctx, admin) })
	group.Go(func() error { return n.evict(ctx) })
	group.Go(func() error { return n.reloadOn(ctx, syscall.SIGHUP) })
	group.Go(func() error { return n.resume(ctx) })
	group.Go(func() error { return n.settle(ctx) })
	group.Go(func() error { return n.recheck(ctx, recheckAfter) })
	group.Go(func() error { return n.compare(ctx) })
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-n.tree.Done():
			return fmt.Errorf("the FUSE tree at %s was unmounted by somebody else; start the daemon again", filepath.Join(cfg.Root, "tree"))
		}
	})
	log.InfoContext(ctx, "ready", slog.String("version", version()), slog.String("snapshotter", cfg.Snapshotter.Address),
		slog.String("mirror", "http://"+registryEnd.Addr().String()), slog.Duration("took", time.Since(n.started).Round(time.Millisecond)))
	n.handover.notify("READY=1")
	<-ctx.Done()
	log.InfoContext(ctx, "stopping")
	n.handover.notify("STOPPING=1")
	return group.Wait()
}

func (n *node) open(ctx context.Context, cfg config.Node) error {
	if err := n.openContent(cfg); err != nil { //nolint:contextcheck // what it opens outlives the call, until close
		return err
	}
	return n.openTree(ctx, cfg)
}

// openTree mounts the FUSE tree and opens the snapshotter over it.
func (n *node) openTree(ctx context.Context, cfg config.Node) (err error) {
	tree := filepath.Join(cfg.Root, "tree")
	if n.tree, err = layerfs.Mount(tree, treeLayers{n.fetcher}, layerfs.Options{Logger: n.log, Keeper: n.handover.store, Observer: n.fetcher.Diary()}); err != nil {
		return err
	}
	n.closers = append(n.closers, func() error { return n.handover.endTree(n.tree) })
	n.sn, err = snapshotter.Open(ctx, filepath.Join(cfg.Root, "s"), tree, &lazyLayers{catalog: n.catalog, fetcher: n.fetcher}, snapshotter.Options{Logger: n.log})
	if err != nil {
		return err
	}
	n.closers = append(n.closers, n.sn.Close)
	return nil
}

// close closes what was opened, the last first.
func (n *node) close() error {
	var errs []error
	for _, c := range slices.Backward(n.closers) {
		errs = append(errs, c())
	}
	n.closers = nil
	return errors.Join(errs...)
}
