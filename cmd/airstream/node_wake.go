package main

import (
	"log/slog"
	"slices"
	"time"

	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/internal/catalog"
)

// Layers on the proxy's word can be had in pieces from the proxy alone. So the fetcher
// asks for them here also when no pull has them: it was one of too many, or the proxy
// has refused the image for a while, or the image was whole and the disk has lost a
// part of it. The image is asked for again then.

// waking is what is wanted of a layer of which no pull is under way.
type waking struct {
	wanted map[fetcher.Class][]uint32 // chunks; nil: nothing, and no attempt is under way
	pause  time.Duration              // before the next attempt
	failed time.Time                  // when a pull of it failed last
}

// How long it takes between two attempts to have an image brought. Guesses.
const (
	wakeAgain  = 5 * time.Second
	wakeSeldom = 5 * time.Minute
)

// wake has the image of a layer asked for, and then chunks of it. s.mu is held.
func (s *onShore) wake(class fetcher.Class, slot uint32, chunks []uint32) {
	if s.closed || len(chunks) == 0 {
		return
	}
	w := s.wakingOf(slot)
	if w.wanted == nil {
		w.wanted = map[fetcher.Class][]uint32{}
		if time.Since(w.failed) > wakeSeldom {
			w.pause = 0
		}
		s.work.Go(func() { s.bring(slot, w) })
	}
	w.wanted[class] = append(w.wanted[class], chunks...)
}

// wakingOf returns what is known of a slot. s.mu is held.
func (s *onShore) wakingOf(slot uint32) *waking {
	w, ok := s.waking[slot]
	if !ok {
		w = &waking{}
		s.waking[slot] = w
	}
	return w
}

// worse notes that a pull has failed. s.mu is held.
func (w *waking) worse() {
	w.failed, w.pause = time.Now(), min(max(2*w.pause, wakeAgain), wakeSeldom)
}

// bring asks for an image until the proxy brings it.
func (s *onShore) bring(slot uint32, w *waking) {
	for told := ""; ; {
		s.mu.Lock()
		pause := w.pause
		s.mu.Unlock()
		if !s.rest(pause) {
			return
		}
		p, err := s.askFor(slot)
		if err == nil && p == nil {
			s.mu.Lock()
			delete(s.waking, slot)
			s.mu.Unlock()
			s.n.fetcher.Uncover(slot) // no image has it any more
			return
		}
		if err == nil {
			err = p.planIsHere()
		}
		if err == nil {
			s.mu.Lock()
			wanted := w.wanted
			w.wanted = nil
			s.mu.Unlock()
			for class, chunks := range wanted {
				s.Ask(class, slot, chunks)
			}
			return
		}
		if s.run.Err() != nil {
			return
		}
		if err.Error() != told {
			told = err.Error()
			s.log.Warn("a part of an image can be had from the proxy alone, which does not send it; it is asked again", slog.Any("error", err))
		}
		s.mu.Lock()
		w.worse()
		s.mu.Unlock()
	}
}

// askFor asks for an image that has the layer in a slot; nil: none has.
func (s *onShore) askFor(slot uint32) (*shorePull, error) {
	l, err := s.n.catalog.Layer(slot)
	if err != nil {
		return nil, err
	}
	images, err := s.n.catalog.Images()
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(images, func(img catalog.Image) bool { return slices.Contains(slotsOf(&img), slot) })
	if at < 0 || len(l.Sources) == 0 {
		return nil, nil //nolint:nilnil // as documented
	}
	img := &images[at]
	raw, err := s.n.store.ReadBlob(img.Manifest, registry.MaxManifestSize)
	if err != nil {
		return nil, err
	}
	p := s.ask(l.Sources[0], img.Manifest.String(), knownImage{registry.Manifest{Digest: img.Manifest, MediaType: img.MediaType, Body: raw}, raw})
	return p, p.cover(raw)
}

// planIsHere waits until the proxy sends an image, or says why not.
func (p *shorePull) planIsHere() error {
	for {
		p.mu.Lock()
		planned, changed, err := p.planned, p.changed, p.err
		p.mu.Unlock()
		if planned || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-p.s.run.Done():
			return p.s.run.Err()
		}
	}
}

// keep tells whether a layer of a pull that has ended, or failed, stays the proxy's to
// bring, and has what was asked of it asked for again.
func (s *onShore) keep(p *shorePull, slot uint32, failed bool) bool {
	l, err := s.n.catalog.Layer(slot)
	if err != nil || !l.OnWord() || l.Outline == "" {
		return false
	}
	p.mu.Lock()
	wanted := map[fetcher.Class][]uint32{}
	for k, class := range p.classes {
		if p.places[k.layer] == slot {
			wanted[class] = append(wanted[class], k.number)
		}
	}
	p.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if failed {
		s.wakingOf(slot).worse()
	}
	for class, chunks := range wanted {
		s.wake(class, slot, chunks)
	}
	return true
}

// coverWords has the proxy asked for what may be missing of layers on its word.
func (s *onShore) coverWords() error {
	layers, err := s.n.catalog.AllLayers()
	var slots []uint32
	for i := range layers {
		if l := &layers[i]; l.OnWord() && l.Outline != "" {
			slots = append(slots, l.Slot)
		}
	}
	s.n.fetcher.Cover(s, false, slots...)
	return err
}
