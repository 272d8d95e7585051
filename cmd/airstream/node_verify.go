package main

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"time"

	"github.com/airstream-io/airstream/config"
	"github.com/airstream-io/airstream/internal/cache"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/store"
)

// verifyOrder says how the store is looked at.
type verifyOrder struct {
	Deep   bool `json:"deep,omitempty"`   // hash all content
	Repair bool `json:"repair,omitempty"` // forget what is damaged
}

// verifyEvent is one finding, or how far it has come, or the end.
type verifyEvent struct {
	Finding *store.Finding `json:"finding,omitempty"`
	Done    int64          `json:"done"`  // bytes of disk
	Total   int64          `json:"total"` // of these
	End     bool           `json:"end"`
	Error   string         `json:"error,omitempty"`
	Code    int            `json:"code,omitempty"`
}

// progressEvery is how often a client hears how far something has come.
const progressEvery = time.Second

func (n *node) postVerify(w http.ResponseWriter, r *http.Request) {
	o, err := order[verifyOrder](r)
	if err != nil {
		n.answer(w, r, nil, err)
		return
	}
	events := n.stream(w)
	end := verifyEvent{End: true}
	found := false
	err = verifyStore(r.Context(), n.store, n.catalog, o, true, func(e verifyEvent) {
		found = found || e.Finding != nil
		events.send(e)
	})
	if found {
		n.fetcher.Recount()
	}
	if err != nil {
		end.Error, end.Code = err.Error(), codeOf(err)
	}
	events.send(end)
}

// verifyOffline looks at the store of a node that doesn't run.
func verifyOffline(ctx context.Context, cfg *config.Node, o verifyOrder, report func(verifyEvent)) (err error) {
	n := &node{log: quiet()}
	defer func() { err = errors.Join(err, n.close()) }()
	if n.store, err = store.Open(filepath.Join(cfg.Root, "store"), store.Options{Logger: n.log}); err != nil {
		return err
	}
	n.closers = append(n.closers, n.store.Close)
	if n.catalog, err = catalog.Open(filepath.Join(cfg.Root, "catalog.db"), n.log); err != nil {
		return err
	}
	n.closers = append(n.closers, n.catalog.Close)
	return verifyStore(ctx, n.store, n.catalog, o, false, report)
}

// verifyStore looks at the store, gently if something else is at work.
func verifyStore(ctx context.Context, s *store.Store, c *catalog.Catalog, o verifyOrder, gentle bool, report func(verifyEvent)) error {
	var last time.Time
	opts := store.VerifyOptions{Deep: o.Deep, Repair: o.Repair, Gentle: gentle, Progress: func(done, total int64) {
		if now := time.Now(); now.Sub(last) >= progressEvery {
			last = now
			report(verifyEvent{Done: done, Total: total})
		}
	}}
	return cache.Verify(ctx, s, c, opts, func(f store.Finding) { report(verifyEvent{Finding: &f}) })
}
