package main

import (
	"context"
	"log/slog"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/link"
)

// Plan implements link.Sink: the mirror says what a reference means when the outlines of
// layers that were never converted are here, so that what it says of a layer, lazy or
// not, is so.
func (p *shorePull) Plan(_ context.Context, outlines []int) error {
	p.alive(fetcher.Demand)
	p.word.Store(len(outlines) > 0)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.planned, p.pending = true, map[int]bool{}
	for _, i := range outlines {
		if _, ok := p.places[i]; !ok {
			p.pending[i] = true
		}
	}
	p.change()
	return nil
}

// settled tells whether it is known which layers are lazy. p.mu is held.
func (p *shorePull) settled() bool {
	return !p.awaits || p.planned && len(p.pending) == 0
}

// settle notes that no more outlines come.
func (p *shorePull) settle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.planned, p.pending = true, nil
	p.change()
}

// awaitsOutlines tells whether layers of a manifest may turn out to be lazy by the
// proxy's word.
func (s *onShore) awaitsOutlines(m *ocispec.Manifest) bool {
	for _, desc := range m.Layers {
		if _, ok := desc.Annotations[annotation.TOCDigest]; !ok && s.cfg.Unconverted {
			return true
		}
	}
	return false
}

// takeOutline makes a layer lazy that was never converted, and keeps the outline
// until the layer's diffID was compared.
func (p *shorePull) takeOutline(t link.Table) (slot uint32, err error) {
	n := p.s.n
	l, err := n.catalog.Vouch(p.src, t.Desc, t.DiffID, t.Digest, t.Payload)
	if err != nil {
		return 0, err
	}
	if err := n.store.PutBlob(t.Digest, t.Body); err != nil {
		return 0, err
	}
	p.s.mu.Lock()
	p.s.bySlot[l.Slot] = shorePlace{p, t.Layer}
	p.s.mu.Unlock()
	p.mu.Lock()
	if p.places == nil {
		p.places = map[int]uint32{}
	}
	p.places[t.Layer] = l.Slot
	p.mu.Unlock()
	if given, _ := p.s.givenUp(); !given {
		n.fetcher.Cover(p.s, true, l.Slot)
	}
	if given, _ := p.s.givenUp(); given { // meanwhile
		n.fetcher.Uncover(l.Slot)
	}
	return l.Slot, nil
}

// arrived notes that the outline of a layer is here.
func (p *shorePull) arrived(layer int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.pending, layer)
	p.change()
}

// compareEvery is how often it is looked whether layers have become whole that are
// here on the proxy's word.
const compareEvery = time.Minute

// compare compares the diffIDs of layers that are here on the proxy's word, as they
// become whole.
func (n *node) compare(ctx context.Context) error {
	t := time.NewTicker(compareEvery)
	defer t.Stop()
	for {
		if err := n.compareAll(ctx); err != nil && ctx.Err() == nil {
			n.log.WarnContext(ctx, "layers on the proxy's word cannot be compared; it will be tried again", slog.Any("error", err))
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (n *node) compareAll(ctx context.Context) error {
	layers, err := n.catalog.AllLayers()
	if err != nil {
		return err
	}
	for i := range layers {
		l := &layers[i]
		if !l.OnWord() || l.Outline == "" || l.Verified || l.Wrong != "" {
			continue
		}
		if c, err := n.fetcher.Completeness(l.Slot); err != nil || !c.Complete() {
			continue
		}
		began := time.Now()
		wrong, err := n.fetcher.Compare(ctx, l.Slot)
		if err == nil {
			err = n.catalog.Compared(l.Slot, wrong)
		}
		switch {
		case err != nil:
			n.log.WarnContext(ctx, "a layer cannot be compared with its diffID; it will be tried again", slog.String("layer", l.Blob.String()), slog.Any("error", err))
		case wrong != "":
			n.log.ErrorContext(ctx, "a layer is not what its image says: images that have it are in quarantine", slog.String("layer", l.Blob.String()), slog.String("why", wrong))
		default:
			n.log.InfoContext(ctx, "a layer that was not converted is whole, and what its image says", slog.String("layer", l.Blob.String()), slog.Duration("took", time.Since(began)))
		}
	}
	return nil
}

// quarantined says why an image is in quarantine; empty: it isn't.
func (n *node) quarantined(img *catalog.Image) (string, error) {
	for _, slot := range slotsOf(img) {
		l, err := n.catalog.Layer(slot)
		if err != nil {
			return "", err
		}
		if l.Wrong != "" {
			return "quarantine: layer " + l.Blob.Encoded()[:12] + ": " + l.Wrong, nil
		}
	}
	return "", nil
}
