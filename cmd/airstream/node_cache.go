package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/cache"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/units"
)

func (n *node) postPin(w http.ResponseWriter, r *http.Request) { n.pin(w, r, n.catalog.Pin) }

func (n *node) postUnpin(w http.ResponseWriter, r *http.Request) { n.pin(w, r, n.catalog.Unpin) }

// pin does something to the images that an order names, if the node has met all
// of them.
func (n *node) pin(w http.ResponseWriter, r *http.Request, do func(digest.Digest) error) {
	o, err := order[refsOrder](r)
	var images []catalog.Image
	for _, ref := range o.Refs {
		img, ferr := n.find(ref)
		err = errors.Join(err, ferr)
		images = append(images, img)
	}
	names := []string{}
	for i := range images {
		if err == nil {
			err = do(images[i].Manifest)
			names = append(names, titleOf(&images[i]))
		}
	}
	n.answer(w, r, names, err)
}

func titleOf(img *catalog.Image) string {
	if len(img.Names) > 0 {
		return img.Names[0]
	}
	return img.Manifest.String()
}

func (n *node) postRemove(w http.ResponseWriter, r *http.Request) {
	o, err := order[removeOrder](r)
	if err != nil {
		n.answer(w, r, nil, err)
		return
	}
	done, err := n.remove(r.Context(), o)
	n.answer(w, r, done, err)
}

// remove forgets names, and the images that have no name left. Content that
// somebody has mounted stays, whatever is forgotten.
func (n *node) remove(ctx context.Context, o removeOrder) (removed, error) {
	done := removed{Names: []string{}}
	var images []catalog.Image
	for _, ref := range o.Refs {
		found, err := n.findEvery(ref)
		if err != nil {
			return done, err
		}
		images = append(images, found...)
	}
	if !o.Force {
		if err := n.removable(ctx, images); err != nil {
			return done, err
		}
	}
	for _, ref := range o.Refs {
		if err := n.forget(ref); err != nil {
			return done, err
		}
		done.Names = append(done.Names, ref)
	}
	freed, err := n.collect(ctx, cache.Options{})
	done.Freed = freed.Bytes
	return done, err
}

// removable returns an error that names the images that are pinned or run.
func (n *node) removable(ctx context.Context, images []catalog.Image) error {
	pinned, err := n.catalog.Pinned()
	if err != nil {
		return err
	}
	used, err := n.inUse(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for i := range images {
		img := &images[i]
		switch {
		case pinned[img.Manifest]:
			errs = append(errs, fmt.Errorf("%s is pinned: airstream unpin it, or use --force", titleOf(img)))
		case slices.ContainsFunc(img.Layers, func(l catalog.ImageLayer) bool { return used[l.Slot] || used[l.Own] }):
			errs = append(errs, fmt.Errorf("%s has layers that containers run from: delete them first, or use --force, which leaves what they need", titleOf(img)))
		}
	}
	return exitWith(exitFailure, errors.Join(errs...))
}

// forget takes a name from all images that have it, and away those that have no
// other. A digest takes its image away.
func (n *node) forget(ref string) error {
	images, err := n.findEvery(ref)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // an earlier reference of the same order named it, too
	}
	if err != nil {
		return err
	}
	for i := range images {
		img := &images[i]
		tag, err := name.NewTag(ref)
		if at := slices.IndexFunc(img.Names, func(s string) bool { return err == nil && same(s, tag) }); at >= 0 && len(img.Names) > 1 {
			err = n.catalog.Untag(img.Names[at])
		} else {
			err = n.catalog.Remove(img.Manifest)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (n *node) postGC(w http.ResponseWriter, r *http.Request) {
	o, err := order[gcOrder](r)
	if err != nil {
		n.answer(w, r, nil, err)
		return
	}
	opts := cache.Options{All: o.All, DryRun: o.DryRun}
	if o.Limit != nil {
		opts.Limit = int64(*o.Limit)
	}
	freed, err := n.collect(r.Context(), opts)
	done := gcResult{DryRun: o.DryRun, Freed: freed.Bytes, Objects: freed.Objects, Blobs: freed.Blobs, Trees: freed.Trees, Images: []string{}}
	for _, d := range freed.Images {
		title := d.String()
		if img, err := n.catalog.Image(d); err == nil {
			title = titleOf(&img)
		}
		done.Images = append(done.Images, title)
	}
	if err == nil {
		done.Cache, err = n.cacheStatus()
	}
	n.answer(w, r, done, err)
}

// inUse returns the slots of layers that containers may have mounted, and of
// those that are being prefetched.
func (n *node) inUse(ctx context.Context) (map[uint32]bool, error) {
	slots := map[uint32]bool{}
	n.coming.Range(func(manifest, _ any) bool {
		d, _ := manifest.(digest.Digest)
		if img, err := n.catalog.Image(d); err == nil { // else it was removed meanwhile
			for _, slot := range slotsOf(&img) {
				slots[slot] = true
			}
		}
		return true
	})
	if n.sn == nil {
		return slots, nil
	}
	dirs, err := n.sn.Mounted(ctx)
	for dir := range dirs {
		if slot, err := slotOf(dir); err == nil {
			slots[slot] = true
		}
	}
	return slots, err
}

// collect frees disk, one caller at a time.
func (n *node) collect(ctx context.Context, opts cache.Options) (cache.Freed, error) {
	n.collecting.Lock()
	defer n.collecting.Unlock()
	unpacked := n.unpacked(ctx)
	opts.InUse = func() (map[uint32]bool, error) { return n.inUse(ctx) }
	opts.Unpacked = func(chain digest.Digest) bool { return unpacked[chain.String()] }
	opts.Forget = n.fetcher.Forget
	freed, err := cache.Collect(ctx, n.store, n.catalog, opts)
	if freed.Bytes > 0 && !opts.DryRun {
		n.fetcher.Recount()
		n.log.InfoContext(ctx, "freed disk", slog.Int64("bytes", freed.Bytes), slog.Int("images", len(freed.Images)))
	}
	return freed, err
}

// evictInterval is how often the store is looked at when nobody says that room
// is short: the disk may be filled by others.
const evictInterval = 10 * time.Minute

// evict keeps the store within its limits until ctx ends.
func (n *node) evict(ctx context.Context) error {
	tick := time.NewTicker(evictInterval)
	defer tick.Stop()
	stuck := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.store.Pressure():
		case <-tick.C:
		}
		_, err := n.collect(ctx, cache.Options{})
		u, uerr := n.store.Usage()
		switch over := u.Over(); {
		case ctx.Err() != nil:
			return nil
		case err != nil || uerr != nil:
			n.log.ErrorContext(ctx, "disk cannot be freed", slog.Any("error", errors.Join(err, uerr)))
		case over > 0 && !stuck:
			n.log.WarnContext(ctx, "the cache is over its limit and all of it is pinned or in use; what is not here can't be stored",
				slog.String("over", units.Short(over)), slog.String("takes", units.Short(u.Bytes)), slog.String("free", units.Short(u.Free)))
			stuck = true
		case over <= 0:
			stuck = false
		}
		// Pressure comes again at once while nothing can be freed.
		pause := time.NewTimer(time.Second)
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
}
