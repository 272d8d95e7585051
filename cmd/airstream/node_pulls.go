package main

import (
	"log/slog"
	"runtime"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/link"
)

// Which images the proxy is asked to have at hand.

// ask asks for an image, of which a part is here, or nothing.
func (s *onShore) ask(src catalog.Source, ref string, known knownImage) *shorePull {
	// A hot set may have become whole a moment ago. It costs no look at the disk.
	if err := s.takeInventory(); err != nil {
		s.log.Warn("it is not known which images are here", slog.Any("error", err))
	}
	return s.askAsKnown(src, ref, known)
}

// askAsKnown asks, with what the last inventory found.
func (s *onShore) askAsKnown(src catalog.Source, ref string, known knownImage) *shorePull {
	p, req := s.newPull(src, ref, known), s.request(src, ref, known)
	return s.enlist(p, func() *link.Pull { return s.session.Pull(req, p) })
}

// request is what is said of an image that is asked for.
func (s *onShore) request(src catalog.Source, ref string, known knownImage) link.Request {
	where := src.Host + "/" + src.Repo + ":" + ref
	if digest.Digest(ref).Validate() == nil {
		where = src.Host + "/" + src.Repo + "@" + ref
	}
	req := link.Request{Reference: where, Platform: "linux/" + runtime.GOARCH, Depth: link.Start, Manifest: known.manifest, Outlines: s.cfg.Unconverted}
	req.Have, req.Warm = s.inventory(src)
	if ok, _, _ := s.n.meter.Admit(fetcher.Hot); !ok {
		req.Depth = link.Names // a budget is spent, or no window is open: only what is demanded
	}
	own := s.tablesOfImage(known.manifest)
	s.mu.Lock()
	defer s.mu.Unlock()
	req.Tables = append(own, s.tables...)
	return req
}

func (s *onShore) newPull(src catalog.Source, ref string, known knownImage) *shorePull {
	return &shorePull{s: s, src: src, ref: ref, known: known, changed: make(chan struct{}), classes: map[chunkOf]fetcher.Class{}}
}

// enlist begins a pull and puts it among those in use; it forgets the oldest if there
// are too many.
func (s *onShore) enlist(p *shorePull, begin func() *link.Pull) *shorePull {
	s.mu.Lock() // what comes waits until it is known whose it is
	p.pull = begin()
	s.pulls = append(s.pulls, p)
	var old *shorePull
	if len(s.pulls) > maxShorePulls {
		at := leastWanted(s.pulls[:maxShorePulls])
		old = s.pulls[at]
		s.pulls = slices.Delete(s.pulls, at, at+1)
	}
	s.mu.Unlock()
	if old != nil {
		s.forget(old, false)
	}
	s.work.Go(p.follow)
	return p
}

// leastWanted returns which pull is to end when there are too many: the oldest that is
// done, of those first that registries can bring, too.
func leastWanted(pulls []*shorePull) int {
	for _, fits := range []func(p *shorePull) bool{
		func(p *shorePull) bool { return !p.word.Load() && p.idle() },
		(*shorePull).idle,
		func(p *shorePull) bool { return !p.word.Load() },
	} {
		if at := slices.IndexFunc(pulls, fits); at >= 0 {
			return at
		}
	}
	return 0
}

// forget ends a pull. Its layers are asked of another pull that has them, or of
// registries; or, where those can't bring them, of the proxy again when something of
// them is wanted.
func (s *onShore) forget(p *shorePull, failed bool) {
	p.pull.Cancel()
	s.mu.Lock()
	s.pulls = slices.DeleteFunc(s.pulls, func(o *shorePull) bool { return o == p })
	pulls := slices.Clone(s.pulls)
	s.mu.Unlock()
	places := map[uint32]shorePlace{}
	for _, o := range pulls { // the latest
		o.mu.Lock()
		for layer, slot := range o.places {
			places[slot] = shorePlace{o, layer}
		}
		o.mu.Unlock()
	}
	s.mu.Lock()
	var slots []uint32
	heirs := map[*shorePull]bool{}
	for slot, at := range s.bySlot {
		if at.pull != p {
			continue
		}
		slots = append(slots, slot)
		delete(s.bySlot, slot)
		if heir, ok := places[slot]; ok {
			s.bySlot[slot], heirs[heir.pull] = heir, true
		}
	}
	given := s.given
	s.mu.Unlock()
	slots = slices.DeleteFunc(slots, func(slot uint32) bool {
		_, inherited := places[slot]
		return !inherited && s.keep(p, slot, failed)
	})
	s.n.fetcher.Uncover(slots...) // what was asked of p does not come
	for heir := range heirs {
		if !given {
			s.cover(heir)
		}
	}
}
