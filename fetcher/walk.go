package fetcher

import (
	"context"
	"fmt"
	"slices"

	"github.com/airstream-io/airstream/internal/toc"
)

// walk goes through a layer and fetches what is missing of it.
type walk struct {
	l      *layer
	class  Class
	next   uint32        // member
	active int           // its transfers under way
	again  bool          // something did not come, or was on its way elsewhere
	users  int           // who wait for its end; background walks have none
	done   chan struct{} // closed when the layer is complete
	err    error
}

// Missing returns how many bytes of a layer's files are not here, of how many.
// ok is false while its table has not arrived; sizes are uncompressed.
func (f *Fetcher) Missing(slot uint32) (missing, total int64, ok bool, err error) {
	l, err := f.layer(slot, false)
	if err != nil {
		return 0, 0, false, err
	}
	select {
	case <-l.ready:
	default:
		return 0, 0, false, nil
	}
	f.mu.Lock()
	bad := l.bad
	f.mu.Unlock()
	if bad != nil {
		return 0, 0, false, bad
	}
	for entry := range uint32(l.tree.Len()) {
		a := l.tree.Attr(entry)
		first, end := l.tree.Chunks(entry)
		if a.Mode&toc.TypeMask != toc.TypeRegular || first == end {
			continue
		}
		total += a.Size
		if n, _ := f.store.HasObject(l.tree.ObjectID(entry), end-first); n == end-first {
			missing += a.Size
		} else if n > 0 {
			missing += min(a.Size, int64(n)*int64(l.tree.Chunk(first).Size))
		}
	}
	return missing, total, true, nil
}

// Complete fetches all that is missing of the layers in slots, and waits until
// it is here or ctx ends. What has arrived stays in any case.
func (f *Fetcher) Complete(ctx context.Context, slots ...uint32) error {
	var walks []*walk
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, w := range walks {
			f.leave(w)
		}
	}()
	for _, slot := range slots {
		l, err := f.layer(slot, false)
		if err != nil {
			return err
		}
		if err := f.await(ctx, l); err != nil {
			return err
		}
		f.mu.Lock()
		walks = append(walks, f.startWalk(l, Prefetch))
		f.dispatch()
		f.mu.Unlock()
	}
	for _, w := range walks {
		select {
		case <-w.done:
			if w.err != nil {
				return w.err
			}
		case <-ctx.Done():
			return fmt.Errorf("fetcher: completing layer %s: %w", w.l.Blob, ctx.Err())
		case <-f.run.Done():
			return fmt.Errorf("fetcher: stopping: %w", context.Canceled)
		}
	}
	return f.store.Flush()
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
			f.mu.Lock()
			defer f.mu.Unlock()
			f.startWalk(l, Background)
			f.dispatch()
		})
	}
	return nil
}

// whenReady calls do, in a goroutine of its own, when a layer's tree is here;
// never if the fetcher is closed before.
func (f *Fetcher) whenReady(l *layer, do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing {
		return
	}
	f.work.Go(func() {
		if f.await(f.run, l) == nil {
			do()
		}
	})
}

// startWalk joins the walk through a layer, or begins it. f.mu is held.
func (f *Fetcher) startWalk(l *layer, class Class) *walk {
	i := slices.IndexFunc(f.queue.walks, func(w *walk) bool { return w.l == l })
	var w *walk
	if i >= 0 {
		w = f.queue.walks[i]
		w.class = min(w.class, class)
	} else {
		w = &walk{l: l, class: class, done: make(chan struct{})}
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
	if f.opts.Background {
		w.class = Background
		return
	}
	f.removeWalk(w)
}

func (f *Fetcher) removeWalk(w *walk) {
	f.queue.walks = slices.DeleteFunc(f.queue.walks, func(o *walk) bool { return o == w })
}

// maxScan is how many members one step looks at while it holds the lock, so
// that nobody waits long for a walk through what is here already.
const maxScan = 256

// step plans a walk's next transfer. It returns nil if there is none to make
// now: all is under way, or here, or there is more to look at. f.mu is held.
func (f *Fetcher) step(w *walk) (t *transfer, more bool) {
	n := uint32(w.l.tree.NumMembers())
	for range maxScan {
		if w.next == n {
			break
		}
		t := f.plan(w.l, w.next, int(n), f.bulkSpan(), w.class)
		if t.end > t.first {
			w.next, w.active = t.end, w.active+1
			t.walk = w
			return t, false
		}
		w.again = w.again || f.onItsWay(w.l, w.next)
		w.next++
	}
	switch {
	case w.next < n:
		return nil, true
	case w.active > 0:
		return nil, false
	case !w.again:
		f.finish(w, nil)
		return nil, false
	case f.anyOnItsWay(w.l):
		return nil, false // whoever brings it dispatches when it has
	}
	// Once more from the beginning: what is here by now costs a look-up.
	w.next, w.again = 0, false
	return nil, true
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

// onItsWay tells whether a piece of a member is brought by another transfer.
func (f *Fetcher) onItsWay(l *layer, member uint32) bool {
	first, end := l.tree.MemberChunks(member)
	for c := first; c < end; c++ {
		p, _ := l.pieceOf(c)
		if fl := f.queue.flights[p]; fl != nil && fl.active {
			return true
		}
	}
	return false
}

func (f *Fetcher) anyOnItsWay(l *layer) bool {
	for _, fl := range f.queue.flights {
		if fl.l == l && fl.active {
			return true
		}
	}
	return false
}

// settle tells a transfer's walk how it ended. f.mu is held.
func (f *Fetcher) settle(t *transfer, err error) {
	w := t.walk
	if w == nil {
		return
	}
	w.active--
	if isLocal(err) {
		f.finish(w, err)
		return
	}
	w.again = w.again || err != nil
}
