package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
)

// memoryLimit is how much memory Go may take before it collects garbage harder,
// in bytes: below what the daemon may be resident with, 150 MiB, by what the
// kernel counts besides (mapped trees and databases, stacks). $GOMEMLIMIT says
// otherwise.
const memoryLimit = 100 << 20

// limitMemory keeps the daemon small.
func limitMemory() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
}

// reloadOn reads the configuration again at each signal until ctx ends.
func (n *node) reloadOn(ctx context.Context, sig os.Signal) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, sig)
	defer signal.Stop(signals)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-signals:
			if _, err := n.reload(ctx); err != nil {
				n.log.ErrorContext(ctx, "the configuration is not put in force", slog.Any("error", err))
			}
		}
	}
}

// resume goes on with what an earlier daemon was fetching.
func (n *node) resume(ctx context.Context) error {
	images, err := n.catalog.Images()
	if err == nil && n.shore != nil {
		n.shore.resume(images)
	}
	if err == nil {
		err = n.fetcher.Resume(images...)
	}
	if err != nil && ctx.Err() == nil {
		n.log.WarnContext(ctx, "what was being fetched before is not gone on with", slog.Any("error", err))
	}
	return nil
}
