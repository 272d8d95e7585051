package fetcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/airstream-io/airstream/internal/artifact"
	"github.com/airstream-io/airstream/internal/chunk"
)

// IDs that come later
//
// A tree from a root lacks the IDs, and with them the places, of chunks that a start
// doesn't read. They are on pages of the same blob, which the root commits to. Whoever
// opens a file that is not known yet waits for its pages; whoever wants the whole
// layer, for all of them. What has come makes a tree that says more, with the same
// entries and chunks, and that takes the layer's place.

// identified tells whether the ID of a chunk is known. Others are not asked for.
func (l *layer) identified(c uint32) bool {
	return !l.partial || l.tree.Chunk(c).ID != (chunk.ID{})
}

// latest returns what has taken a layer's place last. Fetcher.mu is held.
func (l *layer) latest() *layer {
	for l.next != nil {
		l = l.next
	}
	return l
}

// lookup brings pages of one image's artifact, as long as somebody wants any.
type lookup struct {
	f     *Fetcher
	own   *layer // any layer of the image
	wake  chan struct{}
	ended chan struct{} // closed when it has
	err   error         // why it ended before all was there

	// guarded by Fetcher.mu
	from  origins
	files map[uint32][]uint32 // entries that are waited for, by slot
	all   map[uint32]Class    // layers that are wanted whole, by slot
}

// knowing returns a layer as it is once the IDs of a file's chunks are known.
func (f *Fetcher) knowing(ctx context.Context, l *layer, entry uint32) (*layer, error) {
	w := &wait{time.Now()}
	first := true
	for l.partial && !l.tree.Known(entry) {
		if first {
			first = false
			f.mu.Lock()
			l.waiters++
			f.queue.waits[w] = struct{}{}
			f.queue.lastUse = time.Now()
			f.mu.Unlock()
			defer func() {
				f.mu.Lock()
				defer f.mu.Unlock()
				l.waiters--
				f.queue.lastUse = time.Now()
				delete(f.queue.waits, w)
			}()
		}
		next, err := f.lookUp(ctx, l, func(p *lookup) { p.files[l.Slot] = append(p.files[l.Slot], entry) }, f.opts.FailFast)
		if err != nil {
			return nil, err
		}
		l = next
	}
	return l, nil
}

// whole returns a layer as it is once the IDs of all its chunks are known.
func (f *Fetcher) whole(ctx context.Context, l *layer, class Class) (*layer, error) {
	for l.partial {
		next, err := f.lookUp(ctx, l, func(p *lookup) {
			if c, ok := p.all[l.Slot]; !ok || class < c {
				p.all[l.Slot] = class
			}
		}, false)
		if err != nil {
			return nil, err
		}
		l = next
	}
	return l, nil
}

// lookUp has pages brought, and returns what takes a layer's place.
func (f *Fetcher) lookUp(ctx context.Context, l *layer, want func(p *lookup), failFast bool) (*layer, error) {
	f.mu.Lock()
	switch {
	case l.next != nil:
		defer f.mu.Unlock()
		return l.next, nil
	case f.closing:
		f.mu.Unlock()
		return nil, fmt.Errorf("fetcher: stopping: %w", context.Canceled)
	case l.gone:
		f.mu.Unlock()
		return nil, fmt.Errorf("fetcher: layer %s was just forgotten: %w", l.Blob, ErrBusy)
	case failFast && f.meter.State().Dark:
		f.mu.Unlock()
		return nil, fmt.Errorf("fetcher: contents of layer %s: %w", l.Blob, ErrDark)
	}
	key := l.Own.Artifact.Root.Digest
	p := f.lookups[key]
	if p == nil {
		p = &lookup{
			f: f, own: l, wake: make(chan struct{}, 1), ended: make(chan struct{}),
			from: origins{sources: l.from.sources}, files: map[uint32][]uint32{}, all: map[uint32]Class{},
		}
		f.lookups[key] = p
		f.work.Go(func() { p.run(f.run) })
	}
	p.from.refresh(l.from.sources)
	want(p)
	dark := l.dark
	f.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
	if !failFast {
		dark = nil
	}
	select {
	case <-l.superseded:
		return l.next, nil
	case <-p.ended:
		if err := l.inQuarantine(); err != nil {
			return nil, err
		}
		return l, p.err
	case <-dark:
		return nil, fmt.Errorf("fetcher: contents of layer %s: %w", l.Blob, ErrDark)
	case <-ctx.Done():
		return nil, fmt.Errorf("fetcher: contents of layer %s: %w", l.Blob, context.Cause(ctx))
	case <-f.run.Done():
		return nil, fmt.Errorf("fetcher: stopping: %w", context.Canceled)
	}
}

// run brings what is wanted until nothing is.
func (p *lookup) run(ctx context.Context) {
	f := p.f
	defer close(p.ended)
	r := f.useRoot(p.own.Own.Artifact, p.own.Sources, p.own) //nolint:contextcheck // it is for all who use it
	defer f.leaveRoot(r, p.own)
	root, err := r.wait(ctx)
	if err == nil {
		err = p.bring(ctx, root)
	}
	if err != nil && ctx.Err() == nil {
		f.log.WarnContext(ctx, "pages of an image's artifact cannot be had; its layers' own tables cross", slog.String("root", p.own.Own.Artifact.Root.Digest), slog.Any("error", err))
		err = p.takeTables(ctx)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	p.err = err
	delete(f.lookups, p.own.Own.Artifact.Root.Digest)
}

// bring makes requests for pages.
func (p *lookup) bring(ctx context.Context, root *artifact.Root) error {
	pages := root.NewPages()
	for wrong, futile := 0, 0; ; {
		first, end, class, rest := p.next(root, pages)
		if rest > 0 {
			if !p.rest(ctx, rest) {
				return ctx.Err()
			}
			continue
		}
		if first == end {
			return p.apply(ctx, root, pages, true)
		}
		before := pages.Len()
		err := p.fetch(ctx, root, pages, first, end, class)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, artifact.ErrInvalid):
			return err
		case errors.Is(err, artifact.ErrMismatch), isRefusal(err) && !isNotNow(err):
			if wrong++; wrong == maxRefusals {
				return err
			}
		case pages.Len() == before && isFutile(err):
			if futile++; futile == maxFutile {
				return err
			}
		}
		if pages.Len() > before {
			futile = 0
			if err := p.apply(ctx, root, pages, false); err != nil {
				return err
			}
		}
	}
}

// layers returns those of the image's layers that are wanted and lack IDs, and forgets
// those that don't. Fetcher.mu is held.
func (p *lookup) layers() (all []*layer) {
	for _, wanted := range []func() []uint32{
		func() []uint32 { return slices.Collect(maps.Keys(p.files)) },
		func() []uint32 { return slices.Collect(maps.Keys(p.all)) },
	} {
		for _, slot := range wanted() {
			l := p.f.layers[slot]
			if l == nil || !l.partial {
				delete(p.files, slot)
				delete(p.all, slot)
				continue
			}
			if !slices.Contains(all, l) {
				all = append(all, l)
			}
		}
	}
	slices.SortFunc(all, func(a, b *layer) int { return a.Own.Number - b.Own.Number })
	return all
}

// next returns the pages to ask for next, as a half-open range that is empty if
// nothing is wanted, and how urgent they are; or how long to rest before.
func (p *lookup) next(root *artifact.Root, pages *artifact.Pages) (first, end int, class func() Class, rest time.Duration) {
	f := p.f
	f.mu.Lock()
	defer f.mu.Unlock()
	layers := p.layers()
	for _, l := range layers {
		known := func(entry uint32) bool { return int(entry) >= l.tree.Len() || l.tree.Known(entry) }
		p.files[l.Slot] = slices.DeleteFunc(p.files[l.Slot], known)
		for _, entry := range p.files[l.Slot] {
			from, to := root.PagesOf(l.Own.Number, l.tree, entry)
			for ; from < to; from++ {
				if !pages.Has(from) {
					return p.stretch(root, pages, from, to, Demand)
				}
			}
		}
	}
	best := Background + 1
	var at int
	for _, l := range layers {
		c, ok := p.all[l.Slot]
		if !ok || c >= best {
			continue
		}
		for _, n := range root.PagesFor(l.Own.Number, l.tree) {
			if !pages.Has(n) {
				best, at = c, n
				break
			}
		}
	}
	if best > Background {
		return 0, 0, nil, 0
	}
	if until := time.Until(f.queue.lastUse.Add(f.opts.IdleAfter)); best == Background && until > 0 {
		return 0, 0, nil, until
	}
	return p.stretch(root, pages, at, at+1, best)
}

// stretch makes a range of pages as long as one request should be. Fetcher.mu is held.
func (p *lookup) stretch(root *artifact.Root, pages *artifact.Pages, first, least int, class Class) (from, to int, c func() Class, rest time.Duration) {
	room := min(max(p.f.meter.BandwidthDelay(), 16<<10), 256<<10)
	for to = first; to < root.NumPages() && !pages.Has(to); to++ {
		_, size := root.Page(to)
		if room -= size; room < 0 && to >= least {
			break
		}
	}
	return first, to, func() Class { return class }, 0
}

// rest waits, unless somebody wants something.
func (p *lookup) rest(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.wake:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// fetch makes one request for pages. Those that have come whole stay when it breaks.
func (p *lookup) fetch(ctx context.Context, root *artifact.Root, pages *artifact.Pages, first, end int, class func() Class) error {
	off, _ := root.Page(first)
	at, size := root.Page(end - 1)
	return p.f.request(ctx, class, &p.from, p.own.Own.Artifact.TOC, off, at+size-off, func(body, _ io.Reader) error {
		for n := first; n < end; n++ {
			_, size := root.Page(n)
			raw := make([]byte, size)
			if _, err := io.ReadFull(body, raw); err != nil {
				return err
			}
			if err := pages.Add(n, raw); err != nil {
				return err
			}
		}
		return nil
	})
}

// apply gives layers trees that know what the pages say: those for which somebody
// waits, or all of the image's if there is nothing more to come.
func (p *lookup) apply(ctx context.Context, root *artifact.Root, pages *artifact.Pages, last bool) error {
	f := p.f
	f.mu.Lock()
	var ready []*layer
	for _, l := range f.layers {
		if l.Own == nil || l.Own.Artifact.Root != p.own.Own.Artifact.Root || !l.partial || l.tree == nil {
			continue
		}
		first, end := root.PagesOfLayer(l.Own.Number)
		all, some := true, false
		for n := first; n < end; n++ {
			all, some = all && pages.Has(n), some || pages.Has(n)
		}
		come := func(entry uint32) bool {
			from, to := root.PagesOf(l.Own.Number, l.tree, entry)
			for ; from < to; from++ {
				if !pages.Has(from) {
					return false
				}
			}
			return true
		}
		if some && (last || all || slices.ContainsFunc(p.files[l.Slot], come)) {
			ready = append(ready, l)
		}
	}
	f.mu.Unlock()
	for _, l := range ready {
		tree, err := f.extend(ctx, l, l.tree, root, pages)
		if err != nil {
			return err
		}
		tree = f.keepTree(ctx, l, tree)
		f.supersede(l, tree, !tree.KnowsAll())
	}
	return nil
}
