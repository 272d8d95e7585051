package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
	"github.com/airstream-io/airstream/snapshotter"
	"github.com/airstream-io/airstream/snapshotter/layerfs"
)

func newNodeCommand(std streams) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Serve images to this node's containerd",
		Long: `Serve images to this node's containerd: as a snapshotter on a unix socket, and
as a registry mirror on loopback. It needs root and /dev/fuse, and no
configuration; docs/node.md says what containerd must be told.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(file, os.Environ())
			if err != nil {
				return exitWith(exitUsage, err)
			}
			return runtimeError(runNode(cmd.Context(), cfg, newLogger(cfg.Log, std)))
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "TOML file (default "+config.DefaultFile+", if it is there)")
	return cmd
}

func newLogger(cfg config.Log, std streams) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
		level = slog.LevelInfo // config has checked it
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
	closers []func() error
}

// runNode serves until ctx ends.
func runNode(ctx context.Context, cfg config.Node, log *slog.Logger) (err error) {
	began := time.Now()
	if os.Geteuid() != 0 {
		return errors.New("airstream node mounts file systems and must run as root")
	}
	n := &node{log: log}
	defer func() { err = errors.Join(err, n.close()) }()
	if err := n.open(ctx, cfg); err != nil {
		return err
	}
	snapshots, err := snapshotter.Listen(ctx, cfg.Snapshotter.Address)
	if err != nil {
		return err
	}
	admin, err := snapshotter.Listen(ctx, adminSocket(cfg.State))
	if err != nil {
		return errors.Join(err, snapshots.Close())
	}
	registryEnd, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Mirror.Address)
	if err != nil {
		return errors.Join(fmt.Errorf("mirror (is another node running? set mirror.address): %w", err), snapshots.Close(), admin.Close())
	}

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return snapshotter.Serve(ctx, snapshots, n.sn) })
	group.Go(func() error { return n.mirror.Serve(ctx, registryEnd) })
	group.Go(func() error { return n.serveAdmin(ctx, admin) })
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-n.tree.Done():
			return fmt.Errorf("the FUSE tree at %s was unmounted by somebody else; start the daemon again", filepath.Join(cfg.Root, "tree"))
		}
	})
	log.InfoContext(ctx, "ready", slog.String("version", version()), slog.String("snapshotter", cfg.Snapshotter.Address),
		slog.String("mirror", "http://"+registryEnd.Addr().String()), slog.Duration("took", time.Since(began).Round(time.Millisecond)))
	notify(log, "READY=1")
	<-ctx.Done()
	log.InfoContext(ctx, "stopping")
	notify(log, "STOPPING=1")
	return group.Wait()
}

func (n *node) open(ctx context.Context, cfg config.Node) error {
	for _, dir := range []string{cfg.Root, cfg.State} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	hosts, err := registryHosts(cfg.Registry)
	if err != nil {
		return err
	}
	if n.store, err = store.Open(filepath.Join(cfg.Root, "store"), store.Options{Logger: n.log}); err != nil {
		return err
	}
	n.closers = append(n.closers, n.store.Close)
	if n.catalog, err = catalog.Open(filepath.Join(cfg.Root, "catalog.db")); err != nil {
		return err
	}
	n.closers = append(n.closers, n.catalog.Close)
	n.meter = uplink.NewMeter(n.log)
	n.reg = registry.New(registry.Options{Hosts: hosts, Meter: n.meter, Logger: n.log})
	n.closers = append(n.closers, func() error { n.reg.Close(); return nil })
	n.fetcher = fetcher.New(n.store, n.catalog, n.reg, n.meter, fetcher.Options{
		Background: cfg.Fetch.Background, IdleAfter: time.Duration(cfg.Fetch.IdleAfter), Logger: n.log,
	})
	n.closers = append(n.closers, func() error { n.fetcher.Close(); return nil })

	tree := filepath.Join(cfg.Root, "tree")
	if n.tree, err = layerfs.Mount(tree, treeLayers{n.fetcher}, layerfs.Options{Logger: n.log}); err != nil {
		return err
	}
	n.closers = append(n.closers, n.tree.Close)
	n.sn, err = snapshotter.Open(ctx, filepath.Join(cfg.Root, "s"), tree, &lazyLayers{catalog: n.catalog, fetcher: n.fetcher}, snapshotter.Options{Logger: n.log})
	if err != nil {
		return err
	}
	n.closers = append(n.closers, n.sn.Close)
	n.mirror = mirror.New(n.store, n.catalog, n.reg, n.fetcher, mirror.Options{Patience: time.Duration(cfg.Mirror.Patience), Logger: n.log})
	n.closers = append(n.closers, func() error { n.mirror.Close(); return nil })
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

// registryHosts turns the configuration of registries into the client's.
func registryHosts(cfg map[string]config.Registry) (map[string]registry.Host, error) {
	hosts := make(map[string]registry.Host, len(cfg))
	for name, r := range cfg {
		h := registry.Host{URL: r.URL, Insecure: r.Insecure, Username: r.Username}
		if r.CAFile != "" {
			pem, err := os.ReadFile(r.CAFile)
			if err != nil {
				return nil, exitWith(exitUsage, fmt.Errorf("registry.%q.ca_file: %w", name, err))
			}
			h.CA, err = x509.SystemCertPool()
			if err != nil {
				h.CA = x509.NewCertPool()
			}
			if !h.CA.AppendCertsFromPEM(pem) {
				return nil, exitWith(exitUsage, fmt.Errorf("registry.%q.ca_file: %s holds no certificate in PEM form", name, r.CAFile))
			}
		}
		if r.PasswordFile != "" {
			b, err := os.ReadFile(r.PasswordFile)
			if err != nil {
				return nil, exitWith(exitUsage, fmt.Errorf("registry.%q.password_file: %w", name, err))
			}
			h.Password, _, _ = strings.Cut(string(b), "\n")
		}
		hosts[name] = h
	}
	return hosts, nil
}

// notify tells systemd, if it started the daemon with Type=notify.
func notify(log *slog.Logger, state string) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	if name[0] == '@' {
		name = "\x00" + name[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err == nil {
		_, err = conn.Write([]byte(state))
		err = errors.Join(err, conn.Close())
	}
	if err != nil {
		log.Warn("systemd was not told", slog.String("state", state), slog.Any("error", err))
	}
}
