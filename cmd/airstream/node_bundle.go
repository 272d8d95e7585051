package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/internal/bundle"
	"github.com/airstream-io/airstream/internal/cache"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/inventory"
	"github.com/airstream-io/airstream/receive"
)

// bundleReply is what became of a bundle.
type bundleReply struct {
	Result receive.Result `json:"result"`
	Error  string         `json:"error,omitempty"`
	Code   int            `json:"code,omitempty"` // exit code that Error means
}

// bundleContent is the fetcher as receive sees it.
type bundleContent struct{ *fetcher.Fetcher }

// Complete tells whether all content of layers is here.
func (c bundleContent) Complete(slots ...uint32) (bool, error) {
	done, err := c.Completeness(slots...)
	return err == nil && done.Complete(), err
}

// openBundles opens the spool of bundles.
func (n *node) openBundles(root string) (err error) {
	n.bundles, err = receive.Open(filepath.Join(root, "bundles"), n.store, n.catalog, bundleContent{n.fetcher}, receive.Options{Room: n.roomFor, Logger: n.log})
	if err == nil {
		n.closers = append(n.closers, n.bundles.Close)
	}
	return err
}

// roomFor frees disk for content that is about to come.
func (n *node) roomFor(ctx context.Context, need int64) error {
	u, err := n.store.Usage()
	if err != nil {
		return err
	}
	u.Bytes, u.Free = u.Bytes+need, u.Free-need
	if over := u.Over(); over > 0 && need > 0 {
		_, err = n.collect(ctx, cache.Options{Limit: max(1, u.Bytes-need-over)})
	}
	return err
}

// postBundle takes in what the request's body holds of a bundle.
func (n *node) postBundle(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	o := receive.Order{Activate: q.Get("activate") != "", Partial: q.Get("partial") != ""}
	f := readerFlags{keys: q["key"], identities: q["identity"]}
	var err error
	if o.Keys, err = f.trusted(); len(o.Keys) == 0 && err == nil && n.bundleKeys != "" {
		o.Keys, err = bundle.ReadKeys(n.bundleKeys)
	}
	if err == nil {
		o.Identities, err = readIdentities(f.identities)
	}
	var reply bundleReply
	if err == nil {
		reply.Result, err = n.bundles.Apply(r.Context(), r.Body, o)
	}
	if err != nil {
		reply.Error, reply.Code = err.Error(), bundleCode(err)
		// Whoever is still writing hears of it when all was read.
		_, _ = io.CopyN(io.Discard, r.Body, drainLimit)
	}
	n.answer(w, r, reply, nil)
}

func (n *node) getBundles(w http.ResponseWriter, r *http.Request) {
	all, err := n.bundles.Waiting()
	n.answer(w, r, all, err)
}

// postForgetBundles gives bundles up that wait; their IDs are the order's references.
func (n *node) postForgetBundles(w http.ResponseWriter, r *http.Request) {
	o, err := order[refsOrder](r)
	for _, id := range o.Refs {
		if err == nil {
			err = n.bundles.Forget(id)
		}
	}
	n.answer(w, r, o.Refs, err)
}

// drainLimit is how much of a bundle is read that is of no use any more, in bytes.
const drainLimit = 16 << 20

// settleEvery is how often bundles that wait are looked at, for what else brought
// what they lack.
const settleEvery = time.Minute

// settle looks at bundles that wait until ctx ends.
func (n *node) settle(ctx context.Context) error {
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	for {
		if ids, err := n.bundles.Pending(); err == nil && len(ids) > 0 {
			if _, err := n.bundles.Settle(ctx); err != nil && ctx.Err() == nil {
				n.log.WarnContext(ctx, "bundles that wait can't be looked at", slog.Any("error", err))
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (n *node) getInventory(w http.ResponseWriter, r *http.Request) {
	all, err := n.inventory(r)
	n.answer(w, r, all, err)
}

// inventory returns the images that are here whole.
func (n *node) inventory(r *http.Request) ([]inventory.Image, error) {
	images, err := n.catalog.Images()
	if err != nil {
		return nil, err
	}
	unpacked := n.unpacked(r.Context())
	all := []inventory.Image{}
	for i := range images {
		img := &images[i]
		s, err := n.status(img, unpacked)
		if err != nil || !s.Complete {
			continue
		}
		if repo := n.repoOf(img); repo != "" {
			all = append(all, inventory.Image{Repo: repo, Manifest: img.Manifest})
		}
	}
	return all, nil
}

// repoOf returns where an image can be looked up: "host/repo"; empty if that is not
// known.
func (n *node) repoOf(img *catalog.Image) string {
	for _, slot := range slotsOf(img) {
		if l, err := n.catalog.Layer(slot); err == nil && len(l.Sources) > 0 {
			return l.Sources[0].Host + "/" + l.Sources[0].Repo
		}
	}
	for _, name := range img.Names {
		return name[:strings.LastIndexByte(name, ':')]
	}
	return ""
}

// postRollback lets a name mean what it meant before.
func (n *node) postRollback(w http.ResponseWriter, r *http.Request) {
	o, err := order[refsOrder](r)
	done := []rolledBack{}
	for _, ref := range o.Refs {
		if err != nil {
			break
		}
		var one rolledBack
		if one, err = n.rollback(r.Context(), ref); err == nil {
			done = append(done, one)
		}
	}
	n.answer(w, r, done, err)
}

// rolledBack is what airstream rollback did to a name.
type rolledBack struct {
	Name   string `json:"name"`
	Before string `json:"before"` // digest that it meant
	After  string `json:"after"`
}

func (n *node) rollback(ctx context.Context, ref string) (done rolledBack, err error) {
	src, tag, err := parseRef(ref)
	if err != nil {
		return done, err
	}
	done.Name = src.Host + "/" + src.Repo + ":" + tag
	former, err := n.catalog.Former(done.Name)
	if err != nil {
		return done, exitWith(exitFailure, fmt.Errorf("%s: %w", done.Name, err))
	}
	unpacked := n.unpacked(ctx)
	for _, m := range former.Manifests {
		img, err := n.catalog.Image(m)
		if err != nil {
			continue // it is no image, or an index
		}
		if s, err := n.status(&img, unpacked); err != nil || s.Dark == "no" {
			return done, exitWith(exitIncomplete, errors.Join(fmt.Errorf("%s: %s, which it meant before, is not here whole: %s", done.Name, m, s.Why), err))
		}
	}
	before, after, err := n.catalog.Rollback(done.Name)
	done.Before, done.After = before.Digest.String(), after.Digest.String()
	return done, err
}
