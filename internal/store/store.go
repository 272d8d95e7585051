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
//	store.db                   bbolt: presence maps, blob records, tree sums
//	objects/xx/<object ID>     sparse files
//	blobs/xx/<digest>          complete blobs, SHA-256 only
//	partial/<digest>           the first bytes of a blob
//	trees/xx/<TOC digest>      flat trees
package store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

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
	bucketTrees    = []byte("trees")
)

// Options change how a Store works; the zero value is good.
type Options struct {
	FlushDelay time.Duration // 0: the constant FlushDelay
	Logger     *slog.Logger  // nil: slog.Default
}

// Store is safe for concurrent use by one process; a second one is refused.
type Store struct {
	dir   string
	db    *bbolt.DB
	root  *os.File // of dir, for syncfs
	log   *slog.Logger
	delay time.Duration

	wake    chan struct{}
	done    chan struct{}
	stopped chan struct{}

	flushMu sync.Mutex // one flush at a time

	mu       sync.Mutex
	objects  map[toc.ObjectID]*object // guarded by mu; open or dirty ones
	dirty    map[toc.ObjectID]*object // guarded by mu
	partials map[string]*partial      // guarded by mu; by digest
	failing  bool                     // guarded by mu; the last flush failed

	treeMu sync.Mutex
	trees  map[string]*toc.Tree // guarded by treeMu; by TOC digest
	mapped [][]byte             // guarded by treeMu; what trees are made of
}

// Open opens the store in dir, making it if it isn't there. A store that is
// in use by another process is an error that says so.
func Open(dir string, opts Options) (*Store, error) {
	s := &Store{
		dir: dir, log: opts.Logger, delay: opts.FlushDelay,
		wake: make(chan struct{}, 1), done: make(chan struct{}), stopped: make(chan struct{}),
		objects: map[toc.ObjectID]*object{}, dirty: map[toc.ObjectID]*object{},
		partials: map[string]*partial{}, trees: map[string]*toc.Tree{},
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.delay == 0 {
		s.delay = FlushDelay
	}
	for _, d := range []string{"objects", "blobs", "partial", "trees"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, fmt.Errorf("store: open %s: %w", dir, err)
		}
	}
	var err error
	if s.root, err = os.Open(dir); err != nil {
		return nil, fmt.Errorf("store: open: %w", err)
	}
	if s.db, err = openDB(filepath.Join(dir, "store.db")); err != nil {
		return nil, errors.Join(err, s.root.Close())
	}
	go s.flusher()
	return s, nil
}

func openDB(name string) (*bbolt.DB, error) {
	db, err := bbolt.Open(name, 0o600, &bbolt.Options{Timeout: time.Second, FreelistType: bbolt.FreelistMapType, NoFreelistSync: true})
	if err != nil {
		return nil, fmt.Errorf("store: open %s (is another airstream node using it?): %w", name, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, b := range [][]byte{bucketObjects, bucketPartials, bucketTrees} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("store: prepare %s: %w", name, err), db.Close())
	}
	return db, nil
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

// Flush makes durable everything that was noted before the call.
func (s *Store) Flush() error {
	s.flushMu.Lock()
	defer s.flushMu.Unlock()

	type note struct {
		o     *object
		value []byte
		gen   uint64
	}
	s.mu.Lock()
	notes := make([]note, 0, len(s.dirty))
	for _, o := range s.dirty {
		value, gen := o.note()
		notes = append(notes, note{o, value, gen})
	}
	lengths := map[string]int64{}
	for d, p := range s.partials {
		if n, ok := p.note(); ok {
			lengths[d] = n
		}
	}
	s.mu.Unlock()
	if len(notes) == 0 && len(lengths) == 0 {
		return nil
	}

	if err := unix.Syncfs(int(s.root.Fd())); err != nil {
		return fmt.Errorf("store: sync %s: %w", s.dir, err)
	}
	err := s.db.Update(func(tx *bbolt.Tx) error {
		objects := tx.Bucket(bucketObjects)
		for _, n := range notes {
			if err := objects.Put(n.o.id[:], n.value); err != nil {
				return err
			}
		}
		return putLengths(tx.Bucket(bucketPartials), lengths)
	})
	if err != nil {
		return fmt.Errorf("store: flush: %w", err)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range notes {
		if n.o.flushed(n.gen) {
			delete(s.dirty, n.o.id)
			s.release(n.o)
		}
	}
	for d, n := range lengths {
		if p := s.partials[d]; p != nil {
			p.flushed(n)
		}
	}
	return nil
}

// path returns the file of an item, and makes its directory if create is set.
func (s *Store) path(kind, name string, create bool) (string, error) {
	dir := filepath.Join(s.dir, kind, name[:2])
	if create {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
	}
	return filepath.Join(dir, name), nil
}

// writeFile makes name with content, whole or not at all, and durable.
func (s *Store) writeFile(name string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
