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
//
// What fails is held against as little as possible: a chunk, a layer at one
// source, a registry. A disk that takes nothing more fails no read: what is
// waited for is handed on from memory.
package fetcher

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/store"
)

// Options configure a Fetcher; the zero value works.
type Options struct {
	// Background makes images complete by and by, when nobody has waited for
	// a chunk for IdleAfter.
	Background bool
	IdleAfter  time.Duration // 0: DefaultIdleAfter
	// MaxPause is the longest pause between attempts while the link is dark.
	MaxPause time.Duration // 0: DefaultMaxPause
	// Patience is how long all sources may refuse a thing, or send something
	// else, before completions of it end. Registries do so for a moment.
	Patience time.Duration // 0: DefaultPatience
	// FailFast makes reads and look-ups of what is not here end with ErrDark
	// while the link is dark, instead of waiting for it.
	FailFast bool
	Logger   *slog.Logger
}

// DefaultIdleAfter is how long after the last wait background fetching begins.
// A guess: long enough for a starting program to ask for more.
const DefaultIdleAfter = 15 * time.Second

// DefaultPatience is long enough for a registry that restarts. A guess.
const DefaultPatience = 2 * time.Minute

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

	began      time.Time
	parses     chan struct{}       // holds one token for each table that is parsed at a time
	counting   chan struct{}       // holds one token for each layer that is counted unasked at a time
	demandRoom *semaphore.Weighted // for large chunks that arrive, in bytes
	bulkRoom   *semaphore.Weighted // likewise, of those that nobody waits for
	diary      Diary

	mu         sync.Mutex
	layers     map[uint32]*layer           // guarded by mu; by slot
	hosts      map[string]*host            // guarded by mu; by name
	covers     map[uint32]cover            // guarded by mu; by slot
	recover    chan struct{}               // guarded by mu; closed and replaced when covers change
	queue      queue                       // guarded by mu
	blobs      map[digest.Digest]*download // guarded by mu
	roots      map[string]*root            // guarded by mu; by digest
	lookups    map[string]*lookup          // guarded by mu; by digest of the root
	landed     int64                       // guarded by mu; downloads of whole blobs that ended
	counts     Counts                      // guarded by mu
	epoch      uint64                      // guarded by mu; counts Recounts, from 1 on
	incomplete []*layer                    // guarded by mu; those whose files are indexed
	indexed    int                         // guarded by mu; files in these indexes
	stash      stash                       // guarded by mu
	spare      spare                       // guarded by mu
	full       backoff                     // guarded by mu; of storing what nobody waits for
	fullUntil  time.Time                   // guarded by mu
	closing    bool                        // guarded by mu
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
	if opts.Patience == 0 {
		opts.Patience = DefaultPatience
	}
	run, cancel := context.WithCancel(context.Background()) //nolint:forbidigo // the fetcher's own life, ended by Close
	f := &Fetcher{
		store: s, catalog: c, reg: reg, meter: meter, log: opts.Logger, opts: opts,
		run: run, cancel: cancel, began: time.Now(), parses: make(chan struct{}, maxParses), counting: make(chan struct{}, 1), epoch: 1,
		demandRoom: semaphore.NewWeighted(chunkRoom), bulkRoom: semaphore.NewWeighted(chunkRoom),
		layers: map[uint32]*layer{}, hosts: map[string]*host{}, covers: map[uint32]cover{}, recover: make(chan struct{}), blobs: map[digest.Digest]*download{}, roots: map[string]*root{}, lookups: map[string]*lookup{},
		full: backoff{max: maxFullPause},
	}
	f.queue.flights = map[piece]*flight{}
	f.queue.transfers = map[*transfer]struct{}{}
	f.queue.waits = map[*wait]struct{}{}
	f.work.Go(f.watchLink)
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

// watchLink looks at the queue again whenever the link or what it may be used
// for changes.
func (f *Fetcher) watchLink() {
	for {
		changed := f.meter.Changed()
		f.mu.Lock()
		if f.opts.FailFast && f.meter.State().Dark {
			f.failWaiting()
		}
		f.dispatch()
		f.mu.Unlock()
		select {
		case <-changed:
		case <-f.run.Done():
			return
		}
	}
}

// failWaiting ends all waits, as the policy has it for a dark link. f.mu is
// held.
func (f *Fetcher) failWaiting() {
	for _, fl := range f.queue.flights {
		if fl.waiters > 0 && len(fl.carriers) == 0 {
			f.land(fl.piece, nil, fmt.Errorf("fetcher: %w", ErrDark))
		}
	}
	for _, l := range f.layers {
		l.giveUp()
	}
}

// Counts returns what was done so far.
func (f *Fetcher) Counts() Counts {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts
}
