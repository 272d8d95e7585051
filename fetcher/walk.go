package fetcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/trace"
)

// walk goes through a layer and fetches what is missing of it.
type walk struct {
	l      *layer
	class  Class
	only   []uint64      // bit set: members that it is about; nil: all
	next   uint32        // member
	active int           // its transfers under way
	again  bool          // something did not come, or was on its way elsewhere
	begun  bool          // this pass has made a request
	rest   time.Time     // nothing is to be done before
	users  int           // who wait for its end; background walks have none
	done   chan struct{} // closed when the layer is complete
	err    error
}

// Fill asks for the layers in slots to become complete in idle time, if the
// options say so.
func (f *Fetcher) Fill(slots ...uint32) error {
	if !f.opts.Background {
		return nil
	}
	for _, slot := range slots {
		l, err := f.layer(slot, false)
		if err != nil {
			return err
		}
		f.whenReady(l, func() {
			l, err := f.whole(f.run, l, Background)
			if err != nil {
				return // who opens one of its files is told
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			f.startWalk(l, Background, nil)
			f.dispatch()
		})
	}
	return nil
}

// Resume goes on with what an earlier process left of images: their hot sets,
// and, if the options say so, their completion in idle time. It returns at
// once, and looks at the images one after another: others want the disk, too.
func (f *Fetcher) Resume(images ...catalog.Image) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing {
		return fmt.Errorf("fetcher: resume: %w", context.Canceled)
	}
	f.work.Go(func() {
		for i := range images {
			if f.run.Err() != nil {
				return
			}
			if err := f.resume(&images[i]); err != nil {
				f.log.Warn("an image is not completed", slog.String("manifest", images[i].Manifest.String()), slog.Any("error", err))
			}
		}
	})
	return nil
}

func (f *Fetcher) resume(img *catalog.Image) error {
	layers, err := f.catalog.Hot(img.Manifest)
	if err != nil {
		return err
	}
	slots := make([]uint32, 0, len(layers))
	for _, l := range layers {
		slots = append(slots, l.Slot)
		if _, _, err := f.here(l.Slot); err != nil { // what is on the disk is ready after this
			return err
		}
	}
	return errors.Join(f.warmAgain(img, layers), f.Fill(unique(slots)...))
}

// warmAgain goes on with the hot set of an image.
func (f *Fetcher) warmAgain(img *catalog.Image, layers []catalog.Layer) error {
	own := img.Artifact != nil && len(layers) > 0 && len(layers) == len(img.Layers) && len(layers[0].Sources) > 0
	slots := make([]uint32, 0, len(layers))
	for _, info := range layers {
		slots = append(slots, info.Slot)
		own = own && info.Own != nil
		if plan, err := trace.ParsePlan(info.Hot, info.Size); err == nil {
			l, here, err := f.here(info.Slot)
			if err != nil {
				return err
			}
			if here {
				f.planned(l, plan)
			}
		}
	}
	if c, err := f.Completeness(slots...); !own || err != nil || c.Hot() {
		return errors.Join(err, f.Warm(layers...))
	}
	return f.WarmFrom(layers[0].Sources[0], *img.Artifact, layers...)
}

// whenReady calls do, in a goroutine of its own, when a layer's tree is here
// and counted; never if the fetcher is closed before.
func (f *Fetcher) whenReady(l *layer, do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing {
		return
	}
	f.work.Go(func() {
		for err := f.awaitQuietly(f.run, l); err != nil; err = f.awaitQuietly(f.run, l) {
			if !isFull(err) || !sleep(f.run, maxFullPause) {
				return
			}
		}
		select {
		case f.counting <- struct{}{}: // nobody waits for it
			f.count(l)
			<-f.counting
			do()
		case <-f.run.Done():
		}
	})
}

// startWalk joins the walk through a layer, or begins it. f.mu is held.
func (f *Fetcher) startWalk(l *layer, class Class, only []uint64) *walk {
	i := slices.IndexFunc(f.queue.walks, func(w *walk) bool { return w.l == l && w.only == nil && only == nil })
	var w *walk
	if i >= 0 {
		w = f.queue.walks[i]
		w.class = min(w.class, class)
	} else {
		w = &walk{l: l, class: class, only: only, done: make(chan struct{})}
		if l.gone || class == Background && l.census.missing == 0 {
			return w
		}
		f.queue.walks = append(f.queue.walks, w)
	}
	if class == Prefetch {
		w.users++
	}
	// Prefetches stand before background walks, each in order of arrival.
	slices.SortStableFunc(f.queue.walks, func(a, b *walk) int { return int(a.class) - int(b.class) })
	return w
}

// leave ends one user's interest. f.mu is held.
func (f *Fetcher) leave(w *walk) {
	if w.users--; w.users > 0 {
		return
	}
	if f.opts.Background && w.only == nil {
		w.class = Background
		return
	}
	f.removeWalk(w)
}

func (f *Fetcher) removeWalk(w *walk) {
	f.queue.walks = slices.DeleteFunc(f.queue.walks, func(o *walk) bool { return o == w })
}

// nextWalk plans the next request of the first walk of a class that can make
// one. f.mu is held.
func (f *Fetcher) nextWalk(r *round) *transfer {
	for _, w := range slices.Clone(f.queue.walks) {
		if w.class != r.class {
			continue
		}
		if w.class == Background {
			if at := f.queue.lastUse.Add(f.opts.IdleAfter); at.After(r.now) {
				r.later(at)
				continue
			}
		}
		if w.rest.After(r.now) {
			r.later(w.rest)
			continue
		}
		tk := f.ticketAt(w.l, w.class, r)
		if tk == nil {
			if f.finished(w) {
				f.finish(w, nil)
			}
			continue
		}
		t, more := f.step(w, r)
		if t != nil {
			t.ticket = tk
			return t
		}
		tk.discard()
		if more {
			r.later(r.now)
		}
	}
	return nil
}

// finished tells whether nothing is missing of a walk's layer, as far as is
// known without looking.
func (f *Fetcher) finished(w *walk) bool {
	return w.only == nil && w.l.census.missing == 0
}

// step plans a walk's next transfer. It returns nil if there is none to make
// now: all is under way, or here, or there is more to look at. f.mu is held.
func (f *Fetcher) step(w *walk, r *round) (t *transfer, more bool) {
	n := uint32(w.l.tree.NumMembers())
	for range maxScan {
		if w.next = w.skip(w.next, n); w.next == n {
			break
		}
		t := f.plan(w.l, w.next, int(w.limit(w.next, n)), f.bulkSpan(), w.class, piece{})
		if t.end > t.first {
			w.next, w.active, w.begun = t.end, w.active+1, true
			t.walk = w
			return t, false
		}
		w.again = w.again || f.mayCome(w.l, w.next)
		w.next++
	}
	switch {
	case w.next < n:
		return nil, true
	case w.active > 0:
		return nil, false
	case !w.again:
		f.finish(w, f.incompleteness(w))
		return nil, false
	}
	// Once more from the beginning: what is here by now costs nothing. If
	// there was nothing to ask for, others bring it, or it has to wait.
	if !w.begun {
		w.rest = r.now.Add(walkRest)
		r.later(w.rest)
	}
	w.next, w.again, w.begun = 0, false, false
	return nil, w.rest.Before(r.now)
}

// walkRest is how long a walk waits that finds nothing to ask for although
// something is missing. A guess.
const walkRest = time.Second

// skip returns the first member from m on that the walk is about and that is
// not here.
func (w *walk) skip(m, end uint32) uint32 {
	for ; m < end; m++ {
		if (w.only == nil || has(w.only, m)) && !w.l.census.hasMember(w.l.tree, m) {
			break
		}
	}
	return m
}

// limit returns where the run of members ends that m begins and the walk is
// about.
func (w *walk) limit(m, end uint32) uint32 {
	if w.only == nil {
		return end
	}
	for ; m < end && has(w.only, m); m++ {
	}
	return m
}

// mayCome tells whether a member of which something is missing is brought by
// another transfer, or is to be asked for again later.
func (f *Fetcher) mayCome(l *layer, member uint32) bool {
	first, end := l.tree.MemberChunks(member)
	for c := first; c < end; c++ {
		if l.census.has(c) || !l.identified(c) {
			continue
		}
		if p, _ := l.pieceOf(c); f.carried(p) || !l.wrong.hopeless(c) {
			return true
		}
	}
	return false
}

// incompleteness returns what is wrong with a walk that has nothing left to
// ask for.
func (f *Fetcher) incompleteness(w *walk) error {
	for c := range w.l.wrong.chunks {
		if w.l.wrong.hopeless(c) && (w.only == nil || has(w.only, w.l.tree.Chunk(c).Member)) {
			return fmt.Errorf("fetcher: layer %s: %w", w.l.Blob, ErrWrongContent)
		}
	}
	return nil
}

// finish ends a walk. f.mu is held.
func (f *Fetcher) finish(w *walk, err error) {
	f.removeWalk(w)
	select {
	case <-w.done:
	default:
		w.err = err
		close(w.done)
	}
}

// settle tells a transfer's walk how it ended; left says that it did not bring
// all. f.mu is held.
func (f *Fetcher) settle(t *transfer, left bool, err error) {
	for _, w := range f.queue.walks {
		if w.users > 0 {
			w.rest = time.Time{} // what it waited for may be here
		}
	}
	w := t.walk
	if w == nil {
		return
	}
	w.active--
	w.again = w.again || left || err != nil
	switch {
	case isLocal(err) && w.users > 0:
		f.finish(w, err)
	case isLocal(err):
		// Background: when there is room again.
	default:
		if err := f.hopeless(&w.l.from, f.opts.Patience); err != nil {
			if errors.Is(err, chunk.ErrMismatch) {
				err = fmt.Errorf("%w: %w", err, ErrWrongContent)
			}
			f.finish(w, err)
		}
	}
}
