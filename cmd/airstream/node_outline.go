package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/link"
)

// Plan implements link.Sink: the mirror learns of the image when the outlines of layers
// that were never converted are here, so that what the node says of a layer, lazy or not,
// is so.
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

// noMore notes that no more outlines come.
func (p *shorePull) noMore() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.planned, p.pending = true, nil
	p.change()
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

// How long a pull waits for outlines before the log says so, and how often it says how
// far the proxy is. Guesses.
const (
	settleQuietly = 2 * time.Second
	settleSays    = 30 * time.Second
)

// settle waits until it is known which layers of an image are lazy by the proxy's word:
// for as long as the proxy is at it, since a layer that crosses whole takes longer than
// the proxy takes to read it. It implements mirror.Options.Settle.
func (s *onShore) settle(ctx context.Context, src catalog.Source, man registry.Manifest) error {
	var m ocispec.Manifest
	if json.Unmarshal(man.Body, &m) != nil || !s.awaitsOutlines(&m) {
		return nil
	}
	if _, err := s.n.catalog.Image(man.Digest); err == nil {
		return nil // it stays what it is
	}
	attrs := []any{slog.String("image", src.Host+"/"+src.Repo), slog.String("manifest", man.Digest.String())}
	began := time.Now()
	told := time.NewTimer(settleQuietly)
	defer told.Stop()
	var p *shorePull
	for {
		given, turned := s.givenUp()
		if given {
			return nil // registries say nothing of it
		}
		if p == nil {
			p = s.bringing(src, man.Digest)
		}
		done, changed, says := p.isSettled()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-turned:
		case <-told.C:
			s.log.InfoContext(ctx, "an image that was not converted is read by the proxy first; its pull waits until it is known what is in its layers",
				append(attrs, slog.Duration("since", time.Since(began).Round(time.Second)), slog.String("proxy", says))...)
			told.Reset(settleSays)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// bringing returns the pull that brings a manifest, or asks for one.
func (s *onShore) bringing(src catalog.Source, d digest.Digest) *shorePull {
	s.mu.Lock()
	pulls := slices.Clone(s.pulls)
	s.mu.Unlock()
	for _, p := range slices.Backward(pulls) {
		p.mu.Lock()
		found := p.src == src && p.err == nil && p.own.Digest == d
		p.mu.Unlock()
		if found && !p.takenBack() {
			return p
		}
	}
	return s.ask(src, d.String(), knownImage{})
}

// takenBack tells whether a word of the proxy that a pull has brought was given up since,
// with the image.
func (p *shorePull) takenBack() bool {
	return slices.ContainsFunc(p.slots(), func(slot uint32) bool {
		l, err := p.s.n.catalog.Layer(slot)
		return err == nil && l.OnWord() && l.Outline == ""
	})
}

// isSettled tells whether it is known which layers are lazy, or never will be, and what
// the proxy is at.
func (p *shorePull) isSettled() (done bool, changed <-chan struct{}, says string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err != nil || p.config && p.settled(), p.changed, p.says
}
