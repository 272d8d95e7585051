// Package fetcher decides which bytes cross the link next, and gets them.
//
// Readers ask for chunks and wait; nothing that they hold is locked meanwhile,
// and one that gives up disturbs nobody. All wants of all images stand in one
// queue: what somebody waits for goes before what was asked to be complete,
// and that before what merely fills idle time. A want becomes a range of the
// layer blob: the member that holds the chunk first, then what follows it and
// is missing, as much as the link would carry anyhow while the reader thinks.
// Each chunk is handed on as soon as its bytes have arrived and are verified.
//
// There are no time limits. A request that makes no progress is given up and
// asked again, from what has not arrived, after a pause that grows while the
// link is dark. Work runs on the fetcher's own context: readers only wait.
package fetcher

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/store"
	"github.com/airstream-io/airstream/internal/toc"
)

// Options configure a Fetcher; the zero value works.
type Options struct {
	// Background makes images complete by and by, when nobody has waited for
	// a chunk for IdleAfter.
	Background bool
	IdleAfter  time.Duration // 0: DefaultIdleAfter
	// MaxPause is the longest pause between attempts while the link is dark.
	MaxPause time.Duration // 0: DefaultMaxPause
	Logger   *slog.Logger
}

// DefaultIdleAfter is how long after the last wait background fetching begins.
// A guess: long enough for a starting program to ask for more.
const DefaultIdleAfter = 15 * time.Second

// Fetcher is safe for concurrent use.
type Fetcher struct {
	store   *store.Store
	catalog *catalog.Catalog
	reg     *registry.Client
	meter   *uplink.Meter
	log     *slog.Logger
	opts    Options

	run    context.Context //nolint:containedctx // ends all work; readers' contexts end only their waits
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu      sync.Mutex
	layers  map[uint32]*layer // guarded by mu; by slot
	queue   queue             // guarded by mu
	blobs   map[digest.Digest]*download
	touches []touch // guarded by mu; first reads, in their order
	counts  Counts  // guarded by mu
	closing bool    // guarded by mu
}

// Counts are what a Fetcher did since it started.
type Counts struct {
	Requests int64 // ranges of layers that were asked for
	Demands  int64 // of these, for somebody who waited
	Waits    int64 // reads that had to wait for the link
	Chunks   int64 // chunks that arrived and were verified
	Bad      int64 // chunks that arrived and were not what they should be
}

// New returns a Fetcher. It takes over nothing: the caller closes store,
// catalog and reg after it.
func New(s *store.Store, c *catalog.Catalog, reg *registry.Client, meter *uplink.Meter, opts Options) *Fetcher {
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	if opts.IdleAfter == 0 {
		opts.IdleAfter = DefaultIdleAfter
	}
	if opts.MaxPause == 0 {
		opts.MaxPause = DefaultMaxPause
	}
	run, cancel := context.WithCancel(context.Background()) //nolint:forbidigo // the fetcher's own life, ended by Close
	f := &Fetcher{
		store: s, catalog: c, reg: reg, meter: meter, log: opts.Logger, opts: opts,
		run: run, cancel: cancel, layers: map[uint32]*layer{}, blobs: map[digest.Digest]*download{},
	}
	f.queue.flights = map[piece]*flight{}
	return f
}

// Close ends all work and waits for it. Readers that still wait get
// context.Canceled.
func (f *Fetcher) Close() {
	f.mu.Lock()
	f.closing = true
	f.queue.stopTimer()
	f.mu.Unlock()
	f.cancel()
	f.work.Wait()
}

// Counts returns what was done so far.
func (f *Fetcher) Counts() Counts {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts
}

// layer is a layer that the fetcher has been asked about.
type layer struct {
	catalog.Layer
	ready  chan struct{} // closed when what follows is set
	tree   *toc.Tree
	fresh  time.Time // when its table arrived, if it crossed for this process
	lastID atomic.Pointer[entryID]

	// guarded by Fetcher.mu
	sources []catalog.Source
	source  int // which of them is asked now
	pause   backoff
	whole   bool // a source sent the whole blob for a range of it
	seen    *known
	bad     error // why it can't be served: its table is not what the manifest said
}

type entryID struct {
	entry uint32
	id    toc.ObjectID
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
	f.mu.Unlock()
	if known && !refresh {
		return l, nil
	}
	info, err := f.catalog.Layer(slot)
	if err != nil {
		return nil, fmt.Errorf("fetcher: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if l, known = f.layers[slot]; known {
		l.sources = info.Sources
		return l, nil
	}
	if f.closing {
		return nil, fmt.Errorf("fetcher: layer in slot %d: %w", slot, context.Canceled)
	}
	l = &layer{Layer: info, sources: info.Sources, ready: make(chan struct{}), pause: backoff{max: f.opts.MaxPause}}
	f.layers[slot] = l
	f.work.Go(func() { f.loadTable(f.run, l) })
	return l, nil
}

// Tree returns the file tree of the layer in slot. It waits, until ctx ends,
// while the table of contents is still crossing. An unknown slot is
// fs.ErrNotExist.
func (f *Fetcher) Tree(ctx context.Context, slot uint32) (*toc.Tree, error) {
	l, err := f.layer(slot, false)
	if err != nil {
		return nil, err
	}
	if err := f.await(ctx, l); err != nil {
		return nil, err
	}
	return l.tree, nil
}

// await waits for a layer's tree.
func (f *Fetcher) await(ctx context.Context, l *layer) error {
	select {
	case <-l.ready:
	case <-ctx.Done():
		return fmt.Errorf("fetcher: table of contents of layer %s: %w", l.Blob, ctx.Err())
	case <-f.run.Done():
		return fmt.Errorf("fetcher: stopping: %w", context.Canceled)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return l.bad
}

// loadTable brings a layer's tree into memory, from disk or across the link.
func (f *Fetcher) loadTable(ctx context.Context, l *layer) {
	tree, err := f.store.Tree(l.TOC)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, store.ErrDamaged) {
		if errors.Is(err, store.ErrDamaged) {
			f.log.WarnContext(ctx, "a layer's tree is damaged; its table is fetched again", slog.String("layer", l.Blob.String()), slog.Any("error", err))
		}
		tree, err = f.fetchTable(ctx, l)
		l.fresh = time.Now()
	}
	if ctx.Err() != nil {
		return // waiters see the fetcher stop
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	l.tree = tree
	if err != nil {
		l.bad = err
		f.log.ErrorContext(ctx, "a layer cannot be served", slog.String("layer", l.Blob.String()), slog.Any("error", err))
	}
	close(l.ready)
}
