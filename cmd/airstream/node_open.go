package main

import (
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/airstream-io/airstream/config"
	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/fetcher/mirror"
	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/store"
)

// openContent opens what a node has and gets: everything but the file system.
func (n *node) openContent(cfg config.Node) error {
	for _, dir := range []string{cfg.Root, cfg.State} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	hosts, err := registryHosts(cfg.Registry)
	if err != nil {
		return err
	}
	if n.store, err = store.Open(filepath.Join(cfg.Root, "store"), store.Options{Limit: int64(cfg.Cache.Limit), Reserve: int64(cfg.Cache.Reserve), Logger: n.log}); err != nil {
		return err
	}
	n.closers = append(n.closers, n.store.Close)
	if n.catalog, err = catalog.Open(filepath.Join(cfg.Root, "catalog.db"), n.log); err != nil {
		return err
	}
	n.closers = append(n.closers, n.catalog.Close)
	n.meter = uplink.NewMeter(n.log)
	usage, err := uplink.OpenUsage(filepath.Join(cfg.Root, "usage.json"), n.log)
	if err != nil {
		return err
	}
	n.closers = append(n.closers, usage.Close)
	n.meter.Account(usage)
	n.tune(cfg)
	if err := n.openProxy(cfg); err != nil {
		return err
	}
	reg := registry.Options{Hosts: hosts, Meter: n.meter, Logger: n.log}
	if n.shore != nil {
		reg.Shore = n.shore
	}
	n.reg = registry.New(reg)
	n.closers = append(n.closers, func() error { n.reg.Close(); return nil })
	n.fetcher = fetcher.New(n.store, n.catalog, n.reg, n.meter, fetcher.Options{
		Background: cfg.Fetch.Background, IdleAfter: time.Duration(cfg.Fetch.IdleAfter), FailFast: cfg.Fetch.FailFast, Logger: n.log,
	})
	n.closers = append(n.closers, func() error { n.fetcher.Close(); return nil })
	if n.shore != nil {
		n.shore.begin()
		n.closers = append(n.closers, n.shore.close)
	}
	opts := mirrorOptions(&cfg.Mirror, n.log)
	if n.shore != nil {
		opts.Tables, opts.Settle = true, n.shore.settle
	}
	n.mirror = mirror.New(n.store, n.catalog, n.reg, n.fetcher, opts)
	n.closers = append(n.closers, func() error { n.mirror.Close(); return nil })
	n.bundleKeys = cfg.Bundle.KeysFile
	return n.openBundles(cfg.Root)
}

func mirrorOptions(cfg *config.Mirror, log *slog.Logger) mirror.Options {
	o := mirror.Options{
		Patience: time.Duration(cfg.Patience), Default: cfg.Default, Refresh: cfg.Refresh, Referrers: cfg.Referrers, Logger: log,
	}
	for _, r := range cfg.Rewrite {
		o.Rewrite = append(o.Rewrite, mirror.Rule(r))
	}
	return o
}

// registryHosts turns the configuration of registries into the client's.
func registryHosts(cfg map[string]config.Registry) (map[string]registry.Host, error) {
	hosts := make(map[string]registry.Host, len(cfg))
	for name, r := range cfg {
		h := registry.Host{URL: r.URL, Mirrors: r.Mirrors, Insecure: r.Insecure, Username: r.Username}
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
