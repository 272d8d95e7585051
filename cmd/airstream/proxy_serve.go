package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/airstream-io/airstream/config"
	"github.com/airstream-io/airstream/internal/enrol"
	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/internal/link/wire"
	"github.com/airstream-io/airstream/proxy"
)

func newProxyServeCommand(std streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve nodes",
		Args:  cobra.NoArgs,
	}
	load := proxyConfig(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		var level slog.LevelVar
		return runtimeError(serveProxy(cmd.Context(), cfg, newLogger(cfg.Log, &level, std)))
	}
	return cmd
}

// expelEvery is how often sessions of revoked nodes are looked for.
const expelEvery = 5 * time.Second

func serveProxy(ctx context.Context, cfg config.Proxy, log *slog.Logger) error {
	authority, err := openAuthority(cfg.Authority)
	if err != nil {
		return err
	}
	registries, err := proxyRegistries(cfg.Registry)
	if err != nil {
		return err
	}
	p, err := proxy.New(proxy.Options{
		Dir: cfg.Root, CacheLimit: int64(cfg.Cache.Limit), Registries: registries,
		Limits:  proxy.Limits{Sessions: cfg.Limits.Sessions, Pulls: cfg.Limits.Images, Rate: cfg.Limits.Rate.BytesPerSecond()},
		Revoked: authority.Revoked, Enroller: enroller{authority}, Logger: log,
	})
	if err != nil {
		return err
	}
	defer p.Close()
	var listen net.ListenConfig
	nodes, err := listen.Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.Listen(ctx, nodes, authority.TLS()) })
	group.Go(func() error {
		t := time.NewTicker(expelEvery)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				p.Expel()
			case <-ctx.Done():
				return nil
			}
		}
	})
	if cfg.Status != "" {
		status, err := listen.Listen(ctx, "tcp", cfg.Status)
		if err != nil {
			return errors.Join(fmt.Errorf("status: %w", err), nodes.Close())
		}
		group.Go(func() error { return serveStatus(ctx, status, p.Handler()) })
	}
	log.InfoContext(ctx, "ready", slog.String("version", version()), slog.String("listen", nodes.Addr().String()), slog.String("status", cfg.Status))
	return group.Wait()
}

// serveStatus serves until ctx ends.
func serveStatus(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("status: %w", err)
	}
	return nil
}

// enroller is the authority as the wire wants it.
type enroller struct{ *enrol.Authority }

// Enrol implements link.Enroller.
func (e enroller) Enrol(ctx context.Context, token string, request []byte) (certificate, authority []byte, err error) {
	certificate, authority, err = e.Authority.Enrol(ctx, token, request)
	return certificate, authority, asRefusal(err)
}

// Renew implements link.Enroller.
func (e enroller) Renew(ctx context.Context, leaf *x509.Certificate, request []byte) (certificate, authority []byte, err error) {
	certificate, authority, err = e.Authority.Renew(ctx, leaf, request)
	return certificate, authority, asRefusal(err)
}

func asRefusal(err error) error {
	if errors.Is(err, enrol.ErrRefused) {
		return &link.Refusal{Reason: wire.Reason_REASON_NODE, Text: err.Error()}
	}
	return err
}

// proxyRegistries turns the configuration of registries into the proxy's.
func proxyRegistries(cfg map[string]config.Registry) (map[string]proxy.Registry, error) {
	hosts, err := registryHosts(cfg)
	if err != nil {
		return nil, err
	}
	all := make(map[string]proxy.Registry, len(hosts))
	for name, h := range hosts {
		all[name] = proxy.Registry{URL: h.URL, CA: h.CA, Insecure: h.Insecure, Username: h.Username, Password: h.Password}
	}
	return all, nil
}
