package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/airstream-io/airstream/internal/cache"
	"github.com/airstream-io/airstream/internal/store"
)

// How long after its start a node begins to look through content of which it
// knows by files alone, so that containers start before, and how often it looks
// whether there is such content. Guesses.
const (
	recheckAfter = time.Minute
	recheckEvery = 10 * time.Minute
)

// recheck verifies all content, in the background, when the store's database was
// made anew because it was damaged: the disk is to be distrusted then, and what
// it has lost is better found while there is a link than by who reads it in the
// dark. What nobody knows is kept: the catalog may have been damaged as well.
func (n *node) recheck(ctx context.Context, after time.Duration) error {
	timer := time.NewTimer(after)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		rebuilt, err := n.store.Rebuilt()
		if rebuilt {
			err = n.verifyAll(ctx)
		}
		if err != nil && ctx.Err() == nil {
			n.log.WarnContext(ctx, "stored content cannot be verified; it will be tried again", slog.Any("error", err))
		}
		timer.Reset(recheckEvery)
	}
}

func (n *node) verifyAll(ctx context.Context) error {
	began, damaged := time.Now(), 0
	n.log.InfoContext(ctx, "the store's database was made anew; all content is verified in the background")
	opts := store.VerifyOptions{Deep: true, Repair: true, Keep: true, Gentle: true}
	err := cache.Verify(ctx, n.store, n.catalog, opts, func(f store.Finding) {
		if f.Kind != store.KindDatabase && !f.Orphan {
			damaged++
			n.log.DebugContext(ctx, "stored content is damaged; it is fetched again", slog.String("kind", string(f.Kind)), slog.String("name", f.Name), slog.String("problem", f.Problem))
		}
	})
	if damaged > 0 {
		n.fetcher.Recount()
	}
	if err != nil {
		return err
	}
	level := slog.LevelInfo
	if damaged > 0 {
		level = slog.LevelWarn
	}
	n.log.Log(ctx, level, "all content was verified; what is damaged is fetched again", slog.Int("damaged", damaged), slog.Duration("took", time.Since(began).Round(time.Second)))
	return nil
}
