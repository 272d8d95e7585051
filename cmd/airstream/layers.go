package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/snapshotter/layerfs"
)

// lazyLayers joins what the catalog knows and the fetcher gets to what the
// snapshotter asks.
type lazyLayers struct {
	catalog *catalog.Catalog
	fetcher *fetcher.Fetcher

	mu    sync.Mutex
	usage map[uint32]usage // guarded by mu; by slot
}

type usage struct {
	bytes, inodes int64
	until         time.Time
}

// usageLife is how long a layer's usage is remembered: counting looks at every
// file, and kubelet asks for every snapshot every ten seconds.
const usageLife = time.Minute

// Lazy implements snapshotter.Layers.
func (l *lazyLayers) Lazy(_ context.Context, chainID string, base bool) (dir, reason string, ok bool, err error) {
	layer, err := l.catalog.Chain(digest.Digest(chainID))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", "its image did not come through the mirror", false, nil
	case err != nil:
		return "", "", false, err
	case layer.Slot == 0:
		return "", layer.Reason, false, nil
	}
	if err := l.served(layer.Slot); err != nil {
		return "", "", false, err
	}
	return layerfs.DirName(layer.Slot, base), "", true, nil
}

// Stack implements snapshotter.Layers.
func (l *lazyLayers) Stack(_ context.Context, chainID string, dirs []string) ([]string, error) {
	slots, err := l.catalog.Stack(digest.Digest(chainID))
	if err != nil || len(slots) != len(dirs) {
		return dirs, err
	}
	own := make([]string, 0, len(dirs))
	for i := range dirs { // the highest first, and slots the lowest
		own = append(own, layerfs.DirName(slots[len(slots)-1-i], i == len(dirs)-1))
	}
	return own, nil
}

// Owner implements snapshotter.Layers.
func (l *lazyLayers) Owner(ctx context.Context, dir string) (uid, gid uint32, err error) {
	slot, err := slotOf(dir)
	if err != nil {
		return 0, 0, err
	}
	if err := errors.Join(l.used(slot), l.served(slot)); err != nil {
		return 0, 0, err
	}
	tree, err := l.fetcher.Tree(ctx, slot)
	if err != nil {
		return 0, 0, err
	}
	a := tree.Attr(toc.Root)
	return a.UID, a.GID, nil
}

// used notes that the images whose highest layer is in slot are being used:
// a container is about to run from one of them. The mirror does not see that if
// nothing is pulled.
func (l *lazyLayers) used(slot uint32) error {
	images, err := l.catalog.Images()
	if err != nil {
		return err
	}
	for i := range images {
		layers := images[i].Layers
		if n := len(layers); n > 0 && slices.Contains([]uint32{layers[n-1].Slot, layers[n-1].Own}, slot) {
			if err := l.catalog.Used(images[i].Manifest, time.Now()); err != nil {
				return err
			}
		}
	}
	return nil
}

// served returns an error if the layer in slot is in quarantine, or is the highest of
// images that all are.
func (l *lazyLayers) served(slot uint32) error {
	images, err := l.catalog.Images()
	if err != nil {
		return err
	}
	info, err := l.catalog.Layer(slot)
	if err != nil {
		return err
	}
	var why error
	for i := range images {
		layers := images[i].Layers
		top := len(layers) > 0 && layers[len(layers)-1].Slot == slot
		if !top && (info.Wrong == "" || !slices.Contains(slotsOf(&images[i]), slot)) {
			continue
		}
		err := inQuarantine(l.catalog, &images[i])
		if err == nil {
			return nil // its highest layer is served
		}
		why = err
	}
	return why
}

// Usage implements snapshotter.Layers.
func (l *lazyLayers) Usage(_ context.Context, dir string) (bytes, inodes int64, err error) {
	slot, err := slotOf(dir)
	if err != nil {
		return 0, 0, err
	}
	l.mu.Lock()
	u, ok := l.usage[slot]
	l.mu.Unlock()
	if ok && time.Now().Before(u.until) {
		return u.bytes, u.inodes, nil
	}
	// Whoever asks doesn't want a table to cross for it.
	of, err := l.serving(slot)
	if err != nil {
		return 0, 0, err
	}
	missing, total, known, err := l.fetcher.Missing(of)
	if err != nil || !known {
		return 0, 0, err
	}
	u = usage{bytes: total - missing, inodes: 1, until: time.Now().Add(usageLife)}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.usage == nil {
		l.usage = map[uint32]usage{}
	}
	l.usage[slot] = u
	return u.bytes, u.inodes, nil
}

// serving returns the slot that some image with the layer in a slot is served from.
func (l *lazyLayers) serving(slot uint32) (uint32, error) {
	images, err := l.catalog.Images()
	if err != nil {
		return 0, err
	}
	best := slot
	for i := range images {
		for k := range images[i].Layers {
			switch il := &images[i].Layers[k]; {
			case il.Slot == slot && il.Own == 0:
				return slot, nil
			case il.Slot == slot:
				best = il.Own
			}
		}
	}
	return best, nil
}

// Release implements snapshotter.Layers. Content outlives its snapshots: what
// has crossed once is kept for the next pull.
func (l *lazyLayers) Release(context.Context, string) {}

func slotOf(dir string) (uint32, error) {
	slot, _, ok := layerfs.ParseDirName(dir)
	if !ok {
		return 0, fmt.Errorf("%q is no directory of the tree: %w", dir, fs.ErrNotExist)
	}
	return slot, nil
}

// treeLayers joins the fetcher to the FUSE tree.
type treeLayers struct{ *fetcher.Fetcher }

// Open implements layerfs.Layers.
func (t treeLayers) Open(ctx context.Context, slot, entry uint32) (layerfs.Content, error) {
	return t.Fetcher.Open(ctx, slot, entry)
}
