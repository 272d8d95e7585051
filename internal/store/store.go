// Package store keeps on disk what has crossed the link, so that nothing
// crosses twice.
//
// It holds three kinds of thing, all named by what was proved of them:
//
//   - objects: the content of one regular file each, a sparse file that fills
//     as chunks arrive. Which chunks are there is a map in a bbolt database.
//   - blobs: manifests, configs and whole layers, named by their digest; and
//     the beginning of blobs that are still crossing.
//   - trees: the flat form of layers' tables of contents (package toc).
//
// The promise: the database never says that bytes are there before they are
// durable. Writers put bytes into files and note them in memory; a flush syncs
// the file system once and then writes all notes in one transaction. After a
// crash, what the last flush did not cover is fetched again, nothing that it
// covered is missing, and no byte that nobody verified is served: what the map
// does not name is never read. Bytes that an earlier process wrote are hashed
// again before their first use, because disks rot.
//
// Layout below the store's directory, which can be moved as a whole:
//
//	store.db                   presence maps, lengths of partial blobs, disk usage
//	objects/xx/<object ID>     sparse files
//	blobs/xx/<digest>          complete blobs, SHA-256 only
//	partial/<digest>           the first bytes of a blob
//	trees/xx/<TOC digest>      flat trees, each followed by its SHA-256
//	tmp/                       files that are not whole yet; emptied by Open
//	ballast                    room that is kept for store.db
package store

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/internal/database"
	"github.com/airstream-io/airstream/internal/toc"
)

// FlushDelay is how long noted bytes may wait for their flush, unless Options
// say otherwise: what a power loss can cost in link time. A guess; a flush
// costs a few milliseconds on a disk with a cache.
const FlushDelay = time.Second

// ErrDamaged says that bytes on disk are not what they were when they were
// verified. They have been forgotten, so that fetching them again repairs it.
var ErrDamaged = errors.New("stored content is damaged")

var (
	bucketObjects  = []byte("objects")
	bucketPartials = []byte("partials")
	bucketTrees    = []byte("trees") // which were stored, so that one that is lost is missed
	bucketSpace    = []byte("space")
)

// Options change how a Store works; the zero value is good.
type Options struct {
	FlushDelay time.Duration // 0: the constant FlushDelay
	Limit      int64         // bytes of disk that the store may take; 0: as much as there is
	Reserve    int64         // bytes of the disk's free space that are not for content; 0: none
	Logger     *slog.Logger  // nil: slog.Default

	sync func(fd int) error // instead of syncfs(2): tests count and fail it
}

// Store is safe for concurrent use by one process; a second one is refused.
type Store struct {
	dir   string
	db    *database.DB
	root  *os.File // of dir
	log   *slog.Logger
	delay time.Duration
	sync  func(fd int) error // makes all writes to the file system durable

	wake    chan struct{}
	done    chan struct{}
	stopped chan struct{}

	flushMu sync.Mutex // one flush at a time

	mu       sync.Mutex
	objects  map[toc.ObjectID]*object       // guarded by mu; open or dirty ones
	dirty    map[toc.ObjectID]*object       // guarded by mu
	partials map[string]*partial            // guarded by mu; by digest
	busy     map[string]struct{}            // guarded by mu; partial blobs that have a writer
	deleting map[toc.ObjectID]chan struct{} // guarded by mu; closed when they are gone
	failing  bool                           // guarded by mu; the last flush failed
	sound    map[string]*soundness          // guarded by mu; blobs by digest, hashed by this process
	losses   atomic.Uint64

	space space

	treeMu sync.Mutex
	trees  map[string]*toc.Tree // guarded by treeMu; by TOC digest
	mapped [][]byte             // guarded by treeMu; what trees are made of
}

// Open opens the store in dir, making it if it isn't there. A store that is
// in use by another process is an error that says so.
func Open(dir string, opts Options) (*Store, error) {
	s := &Store{
		dir: dir, log: opts.Logger, delay: opts.FlushDelay, sync: opts.sync,
		wake: make(chan struct{}, 1), done: make(chan struct{}), stopped: make(chan struct{}),
		objects: map[toc.ObjectID]*object{}, dirty: map[toc.ObjectID]*object{}, deleting: map[toc.ObjectID]chan struct{}{},
		partials: map[string]*partial{}, busy: map[string]struct{}{}, sound: map[string]*soundness{}, trees: map[string]*toc.Tree{},
	}
	s.space.short = make(chan struct{}, 1)
	s.SetLimit(opts.Limit, opts.Reserve)
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.delay == 0 {
		s.delay = FlushDelay
	}
	if s.sync == nil {
		s.sync = unix.Syncfs
	}
	if err := makeLayout(dir); err != nil {
		return nil, fmt.Errorf("store: open %s: %w", dir, err)
	}
	var err error
	if s.root, err = os.Open(dir); err != nil {
		return nil, fmt.Errorf("store: open: %w", err)
	}
	s.db, err = database.Open(filepath.Join(dir, "store.db"), database.Options{
		Buckets: [][]byte{bucketObjects, bucketPartials, bucketTrees, bucketSpace}, Rebuild: s.rebuild, Logger: s.log,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("store: open %s: %w", dir, err), s.root.Close())
	}
	// Only its owner may empty the folder of what is not whole yet.
	err = clearDir(filepath.Join(dir, "tmp"))
	if err == nil {
		err = s.openSpace()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("store: open %s: %w", dir, err), s.db.Close(), s.root.Close())
	}
	go s.flusher()
	return s, nil
}

// Close makes everything durable and closes the store. Objects and partial
// blobs must have been closed, and trees must not be used any more.
func (s *Store) Close() error {
	close(s.done)
	<-s.stopped
	err := s.Flush()
	s.treeMu.Lock()
	defer s.treeMu.Unlock()
	for _, m := range s.mapped {
		err = errors.Join(err, unix.Munmap(m))
	}
	s.mapped, s.trees = nil, nil
	err = errors.Join(err, s.saveSpace())
	if err = errors.Join(err, s.db.Close(), s.root.Close()); err != nil {
		return fmt.Errorf("store: close: %w", err)
	}
	return nil
}

// flusher flushes what was noted, FlushDelay after the first note.
func (s *Store) flusher() {
	defer close(s.stopped)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-s.wake:
		}
		timer.Reset(s.delay)
		select {
		case <-s.done:
			return
		case <-timer.C:
		}
		err := s.Flush()
		s.mu.Lock()
		was := s.failing
		s.failing = err != nil
		s.mu.Unlock()
		switch {
		case err != nil && !was:
			s.log.Error("what crossed the link cannot be made durable; trying again", slog.Any("error", err))
		case err == nil && was:
			s.log.Info("the store is durable again")
		}
		if err != nil {
			s.changed()
		}
	}
}

// changed asks for a flush.
func (s *Store) changed() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
