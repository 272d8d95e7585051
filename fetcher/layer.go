package fetcher

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/store"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
)

// layer is a layer that the fetcher has been asked about, with a tree. When more
// becomes known of it than its tree says (see ids.go), another takes its place that
// has the same standing; who has the old one may go on with it.
type layer struct {
	catalog.Layer // Sources are in from
	*standing
	absent  chan struct{}  // closed when the table turns out not to be on the disk
	ready   chan struct{}  // closed when what follows is set
	given   chan *toc.Tree // holds one: the tree that a Pusher brought
	tree    *toc.Tree
	partial bool      // the tree lacks IDs of chunks
	bad     error     // why there is no tree: its table is not what the manifest said
	fresh   time.Time // when its table arrived, if it crossed for this process

	lastID atomic.Pointer[entryID]
	ids    sync.Map // entry to toc.ObjectID, of some large files
	numIDs atomic.Int32

	superseded chan struct{} // closed when next is set

	// guarded by Fetcher.mu
	next    *layer // that took its place
	census  census
	plans   []trace.Plan // of hot sets
	planned []uint64     // bit set: members of hot sets
}

// standing is what stays of a layer when its tree is replaced by one that says more.
type standing struct {
	quarantine atomic.Pointer[string] // why nothing of it is served; nil: it is

	seenOnce sync.Once
	seen     *known

	// guarded by Fetcher.mu
	from     origins
	wrong    wrongs
	gone     bool               // it was forgotten
	cancel   context.CancelFunc // ends the loading of its table; nil before it has begun
	whole    bool               // a source sent the whole blob for a range of it
	active   int                // transfers under way
	opens    int                // files that are open
	waiters  int                // who wait for the table, or for IDs
	arriving func()             // to be called when that changes, while it arrives
	dark     chan struct{}      // closed when those are not to wait any longer
	full     chan struct{}      // closed while the disk has no room for the table
	fullErr  error              // what it said
	retryAt  time.Time          // if bad: when it is worth another try
}

type entryID struct {
	entry uint32
	id    toc.ObjectID
}

// Files of many chunks whose IDs are remembered: an ID is a hash over all of
// them, and is asked for with each.
const (
	manyChunks = 16
	maxIDs     = 1024
)

// objectID returns the ID of a file's content.
func (l *layer) objectID(entry uint32) toc.ObjectID {
	if last := l.lastID.Load(); last != nil && last.entry == entry {
		return last.id
	}
	if id, ok := l.ids.Load(entry); ok {
		return id.(toc.ObjectID) //nolint:errcheck // nothing else is stored
	}
	id := l.tree.ObjectID(entry)
	l.lastID.Store(&entryID{entry, id})
	if first, end := l.tree.Chunks(entry); end-first >= manyChunks && l.numIDs.Add(1) <= maxIDs {
		l.ids.Store(entry, id)
	}
	return id
}

// Announce tells that the layers in slots will be wanted soon: their tables of
// contents begin to cross now.
func (f *Fetcher) Announce(slots ...uint32) error {
	for _, slot := range slots {
		if _, err := f.layer(slot, true); err != nil {
			return err
		}
	}
	return nil
}

// layer returns the layer in slot, and sees to it that its table is fetched if
// it isn't here. refresh reads its sources again. Unknown slots are
// fs.ErrNotExist.
func (f *Fetcher) layer(slot uint32, refresh bool) (*layer, error) {
	f.mu.Lock()
	l, known := f.layers[slot]
	stale := known && !l.retryAt.IsZero() && time.Now().After(l.retryAt)
	f.mu.Unlock()
	if known && !refresh && !stale {
		return l, nil
	}
	info, err := f.catalog.Layer(slot)
	if err != nil {
		return nil, fmt.Errorf("fetcher: %w", err)
	}
	if info.OnWord() {
		info.Sources = nil // registries have the layer in one piece alone
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	l, known = f.layers[slot]
	if known && (l.retryAt.IsZero() || time.Now().Before(l.retryAt)) {
		l.from.refresh(info.Sources)
		return l, nil
	}
	if f.closing {
		return nil, fmt.Errorf("fetcher: layer in slot %d: %w", slot, context.Canceled)
	}
	l = &layer{
		Layer: info, absent: make(chan struct{}), ready: make(chan struct{}), given: make(chan *toc.Tree, 1), superseded: make(chan struct{}),
		standing: &standing{dark: make(chan struct{}), full: make(chan struct{}), from: origins{sources: info.Sources, cover: f.covers[slot]}},
	}
	if info.Wrong != "" {
		l.quarantine.Store(&info.Wrong)
	}
	f.layers[slot] = l
	f.work.Go(func() { f.loadTable(f.run, l) })
	return l, nil
}

// refresh takes over a new list of sources, if it is new. f.mu is held.
func (o *origins) refresh(sources []catalog.Source) {
	if slices.ContainsFunc(sources, func(s catalog.Source) bool { return !slices.Contains(o.sources, s) }) {
		o.sources = sources
	}
}

// Tree returns the file tree of the layer in slot. It waits, until ctx ends,
// while the table of contents is still crossing. An unknown slot is
// fs.ErrNotExist.
func (f *Fetcher) Tree(ctx context.Context, slot uint32) (*toc.Tree, error) {
	l, err := f.layer(slot, false)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(l.inQuarantine(), f.await(ctx, l)); err != nil {
		return nil, err
	}
	return l.tree, nil
}

// await waits for a layer's tree, for somebody who needs it now.
func (f *Fetcher) await(ctx context.Context, l *layer) error {
	select {
	case <-l.ready:
		return l.bad
	default:
	}
	w := &wait{time.Now()}
	f.mu.Lock()
	l.waiters++
	if l.arriving != nil {
		l.arriving()
	}
	dark := l.dark
	f.queue.waits[w] = struct{}{}
	if f.opts.FailFast && f.meter.State().Dark {
		l.giveUp()
	}
	f.dispatch()
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		l.waiters--
		delete(f.queue.waits, w)
	}()
	if !f.opts.FailFast || f.onDisk(ctx, l) {
		dark = nil
	}
	select {
	case <-l.ready:
		return l.bad
	case <-dark:
		return fmt.Errorf("fetcher: table of contents of layer %s: %w", l.Blob, ErrDark)
	case <-ctx.Done():
	case <-f.run.Done():
	}
	if f.run.Err() != nil {
		return fmt.Errorf("fetcher: stopping: %w", context.Canceled)
	}
	return fmt.Errorf("fetcher: table of contents of layer %s: %w", l.Blob, context.Cause(ctx))
}

// onDisk tells whether a layer's tree comes from the disk: soon, that is.
func (f *Fetcher) onDisk(ctx context.Context, l *layer) bool {
	select {
	case <-l.ready:
		return true
	case <-l.absent:
	case <-ctx.Done():
	case <-f.run.Done():
	}
	return false
}

// awaitQuietly waits for a layer's tree for somebody who is in no hurry, and
// can do without if the disk is full.
func (f *Fetcher) awaitQuietly(ctx context.Context, l *layer) error {
	f.mu.Lock()
	full := l.full
	f.mu.Unlock()
	select {
	case <-l.ready:
		return l.bad
	case <-full:
		f.mu.Lock()
		defer f.mu.Unlock()
		return l.fullErr
	case <-ctx.Done():
		return fmt.Errorf("fetcher: table of contents of layer %s: %w", l.Blob, context.Cause(ctx))
	case <-f.run.Done():
		return fmt.Errorf("fetcher: stopping: %w", context.Canceled)
	}
}

// giveUp ends the waits for a table. f.mu is held.
func (l *layer) giveUp() {
	if l.waiters > 0 {
		close(l.dark)
		l.dark = make(chan struct{})
	}
}

// noRoom notes that the disk has no room for the table, or, if err is nil, that
// it has again.
func (f *Fetcher) noRoom(l *layer, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err != nil && l.fullErr == nil:
		l.fullErr = fmt.Errorf("fetcher: table of contents of layer %s: %w", l.Blob, err)
		close(l.full)
	case err == nil && l.fullErr != nil:
		l.fullErr, l.full = nil, make(chan struct{})
	}
}

// loadTable brings a layer's tree into memory, from disk or across the link.
func (f *Fetcher) loadTable(ctx context.Context, l *layer) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.mu.Lock()
	l.cancel = cancel
	if l.gone {
		cancel()
	}
	f.mu.Unlock()
	tree, err := f.store.Tree(l.TOC)
	if l.Own != nil && errors.Is(err, fs.ErrNotExist) {
		if own := f.ownFromDisk(ctx, l); own != nil {
			tree, err = own, nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, store.ErrDamaged) {
		if errors.Is(err, store.ErrDamaged) {
			f.log.WarnContext(ctx, "a layer's tree is damaged; its table is fetched again", slog.String("layer", l.Blob.String()), slog.Any("error", err))
		}
		close(l.absent)
		if l.Own != nil {
			tree, err = f.bringOwn(ctx, l)
		} else {
			tree, err = f.bringTable(ctx, l)
		}
		l.fresh = time.Now()
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("fetcher: layer %s: %w", l.Blob, context.Canceled)
	}
	var all tally
	if err == nil {
		all = tallyOf(tree)
		l.partial = l.Own != nil && !tree.KnowsAll()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if l.bad = err; err == nil {
		l.tree, l.census.tally = tree, all
		if !l.gone {
			f.diary.begin(l.Slot, tree)
		}
	} else {
		l.retryAt = time.Now().Add(badTablePause)
		if ctx.Err() == nil {
			f.log.ErrorContext(ctx, "a layer cannot be served", slog.String("layer", l.Blob.String()), slog.Any("error", err))
		}
	}
	close(l.ready)
}

// badTablePause is how long a layer whose table can't be had is left alone
// before somebody who asks for it makes it be fetched again: what lies on the
// way may have been mended. A guess.
const badTablePause = 5 * time.Minute

// Forget gives up the layers in slots, so that their content can be deleted:
// nothing of them is fetched any more. If somebody waits for one of them or has
// a file of it open, the error is ErrBusy and all stay. After deleting, call
// Recount.
func (f *Fetcher) Forget(slots ...uint32) error {
	ended, err := f.forget(slots)
	for _, done := range ended {
		<-done
	}
	return err
}

func (f *Fetcher) forget(slots []uint32) (ended []chan struct{}, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var gone []*layer
	for _, slot := range slots {
		l := f.layers[slot]
		if l == nil {
			continue
		}
		if what := f.usersOf(l); what != "" {
			return nil, fmt.Errorf("fetcher: forget layer %s: %w: %s", l.Blob, ErrBusy, what)
		}
		gone = append(gone, l)
	}
	q := &f.queue
	for _, l := range gone {
		l.gone = true
		if l.cancel != nil {
			l.cancel()
		}
		delete(f.layers, l.Slot)
		f.unindex(l)
		f.stash.forget(l)
		f.diary.forget(l.Slot)
		q.walks = slices.DeleteFunc(q.walks, func(w *walk) bool { return w.l.standing == l.standing })
		q.hot = slices.DeleteFunc(q.hot, func(h hotRun) bool { return h.l.standing == l.standing })
		q.ahead.forget(l)
		for t := range q.transfers {
			if t.l.standing == l.standing {
				if t.cancel != nil {
					t.cancel()
				}
				ended = append(ended, t.done)
			}
		}
		ended = append(ended, l.ready)
	}
	return ended, nil
}

// usersOf says who uses a layer; empty: nobody. f.mu is held.
func (f *Fetcher) usersOf(l *layer) string {
	switch {
	case l.waiters > 0:
		return "somebody waits for its table of contents"
	case l.opens > 0:
		return "a file of it is open"
	case slices.ContainsFunc(f.queue.walks, func(w *walk) bool { return w.l.standing == l.standing && w.users > 0 }):
		return "it is being completed"
	}
	return ""
}
