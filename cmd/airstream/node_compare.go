package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/internal/catalog"
)

// compareEvery is how often it is looked whether layers have become whole that are
// here on the proxy's word.
const compareEvery = 10 * time.Second

// compareAgain is how long a layer is left alone of which it could not be told: all of
// it is read each time. A guess.
const compareAgain = 10 * time.Minute

// compare compares the diffIDs of layers that are here on the proxy's word, as they
// become whole.
func (n *node) compare(ctx context.Context) error {
	t := time.NewTicker(compareEvery)
	defer t.Stop()
	later := map[uint32]time.Time{}
	for {
		if err := n.compareAll(ctx, later); err != nil && ctx.Err() == nil {
			n.log.WarnContext(ctx, "layers on the proxy's word cannot be compared with their images; it will be tried again", slog.Any("error", err))
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// compareAll compares those of all images that are whole and were not compared before.
// The error says of which it can't be told; later has when those are tried again, by slot.
func (n *node) compareAll(ctx context.Context, later map[uint32]time.Time) error {
	layers, err := n.catalog.AllLayers()
	for i := range layers {
		slot := layers[i].Slot
		if time.Now().Before(later[slot]) {
			continue
		}
		delete(later, slot)
		if cErr := n.compareLayer(ctx, &layers[i]); cErr != nil {
			later[slot] = time.Now().Add(compareAgain)
			err = errors.Join(err, cErr)
		}
	}
	return err
}

// compareImage does that for the layers of an image, and says why it is in quarantine
// if it is.
func (n *node) compareImage(ctx context.Context, img *catalog.Image) error {
	for _, slot := range slotsOf(img) {
		l, err := n.catalog.Layer(slot)
		if err == nil {
			err = n.compareLayer(ctx, &l)
		}
		if err != nil {
			return err
		}
	}
	return inQuarantine(n.catalog, img)
}

func (n *node) compareLayer(ctx context.Context, l *catalog.Layer) error {
	if !l.OnWord() || l.Outline == "" || l.Verified || l.Wrong != "" {
		return nil
	}
	if c, err := n.fetcher.Completeness(l.Slot); err != nil || !c.Complete() {
		return nil // not whole yet; whoever reads it is told if something is wrong
	}
	n.comparing.Lock()
	defer n.comparing.Unlock()
	if now, err := n.catalog.Layer(l.Slot); err != nil || now.Verified || now.Wrong != "" || now.Outline != l.Outline {
		return err // somebody else was quicker
	}
	began := time.Now()
	wrong, err := n.fetcher.Compare(ctx, l.Slot)
	if err == nil {
		err = n.catalog.Compared(l.Slot, wrong)
	}
	switch {
	case err != nil:
		return err
	case wrong != "":
		n.log.ErrorContext(ctx, "a layer is not what its image says: images that have it are in quarantine; take them away and pull them again",
			slog.String("layer", l.Blob.String()), slog.String("why", wrong), slog.String("images", strings.Join(n.namesWith(l.Slot), ", ")))
	default:
		n.log.InfoContext(ctx, "a layer that was not converted is whole, and what its image says", slog.String("layer", l.Blob.String()), slog.Duration("took", time.Since(began)))
	}
	return nil
}

// namesWith returns what the images are called that have the layer in a slot.
func (n *node) namesWith(slot uint32) (names []string) {
	images, err := n.catalog.Images()
	if err != nil {
		return nil
	}
	for i := range images {
		for _, l := range images[i].Layers {
			if l.Slot == slot {
				names = append(names, nameOf(&images[i]))
				break
			}
		}
	}
	return names
}

func nameOf(img *catalog.Image) string {
	if len(img.Names) > 0 {
		return img.Names[len(img.Names)-1]
	}
	return img.Manifest.String()
}

// quarantineOf returns the layer for which an image is in quarantine; nil if it isn't.
func quarantineOf(c *catalog.Catalog, img *catalog.Image) (*catalog.Layer, error) {
	for _, slot := range slotsOf(img) {
		l, err := c.Layer(slot)
		if err != nil {
			return nil, err
		}
		if l.Wrong != "" {
			return &l, nil
		}
	}
	return nil, nil //nolint:nilnil // it is not
}

// inQuarantine says why an image is in quarantine, and what to do; nil if it isn't.
func inQuarantine(c *catalog.Catalog, img *catalog.Image) error {
	l, err := quarantineOf(c, img)
	if err != nil || l == nil {
		return err
	}
	name := nameOf(img)
	return fmt.Errorf("%w: image %s, layer %s: %s. The proxy said what is in it, and that was wrong: look at the proxy, delete its cache, "+
		"then take the image from containerd (crictl rmi), run airstream rm %s, and pull it again", fetcher.ErrQuarantined, name, l.Blob, l.Wrong, name)
}
