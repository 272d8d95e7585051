// Package database keeps small records in a file that may get damaged, and
// goes on after that.
//
// The file is bbolt's. bbolt survives crashes, but it believes its pages: a
// flipped bit makes it return other records, panic, or read outside of the
// file. A node that has no link can't afford any of these, so here
//
//   - every value carries a checksum over its bucket, key and content;
//   - panics and memory faults inside bbolt become errors;
//   - a damaged file is moved aside and made anew from what can still be read,
//     from a journal that holds all records a second time, if the owner asks
//     for one, and from what the owner finds out in other ways.
//
// That happens at Open and also later, within the call that met the damage.
// bbolt checks a file in a goroutine of its own, where a fault can't be caught,
// so Check reads the pages itself (scan.go), and free pages are kept in the
// file, because bbolt would look for them in the same way.
//
// Files: name, name.journal, name.lock, which tells whether the last process
// closed the database, and name.damaged-1 and so on.
package database

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// ErrDamaged says that the file doesn't hold what was written to it.
var ErrDamaged = errors.New("the database is damaged")

// ErrValue says that one value is not what was written. Of a database with a
// journal, callers never see it.
var ErrValue = errors.New("a record does not match its checksum")

// ErrLocked says that another process uses the database.
var ErrLocked = errors.New("another airstream node is using it")

// Options say what a database holds and how to restore it.
type Options struct {
	Buckets [][]byte // names; there are no others
	Journal bool     // keep all records a second time
	// Check looks at all pages and records when the database is opened. It
	// reads the whole file.
	Check bool
	// Rebuild adds what can be found out elsewhere to a database that was made
	// anew; nil: nothing can. It runs in one transaction, and what it returns is
	// logged.
	Rebuild func(tx *Tx) ([]slog.Attr, error)
	Logger  *slog.Logger // nil: slog.Default
}

// DB is safe for concurrent use by one process; a second one is refused.
type DB struct {
	name    string
	opts    Options
	lock    *os.File
	unclean bool

	write   sync.Mutex   // one writer at a time; before mu
	mu      sync.RWMutex // held for reading by all transactions
	bolt    *bbolt.DB    // guarded by mu
	stuck   atomic.Bool  // bbolt panicked, and may hold its locks for ever
	made    int          // guarded by mu; how often it was made anew
	cause   error        // guarded by mu; why it was last
	journal *journal     // guarded by write; nil: none
}

// Open opens the database in the file name, making it if it isn't there.
func Open(name string, opts Options) (*DB, error) {
	d := &DB{name: name, opts: opts}
	if d.opts.Logger == nil {
		d.opts.Logger = slog.Default()
	}
	if err := d.takeLock(); err != nil {
		return nil, fmt.Errorf("database: open %s: %w", name, err)
	}
	if err := d.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("database: open %s: %w", name, err), d.lock.Close())
	}
	return d, nil
}

// takeLock locks a file of its own: the database's may be moved aside.
func (d *DB) takeLock() error {
	f, err := os.OpenFile(d.name+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	for until := time.Now().Add(time.Second); ; {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(until) {
			break
		}
		<-time.After(20 * time.Millisecond) // a process that is being replaced needs a moment
	}
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return errors.Join(ErrLocked, f.Close())
	case err != nil:
		return errors.Join(err, f.Close())
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	d.lock, d.unclean = f, info.Size() > 0
	return nil
}

func (d *DB) open() error {
	fresh := false
	if info, err := os.Stat(d.name); errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		fresh = true
	} else if err != nil {
		return err
	}
	if !fresh && d.opts.Check {
		if err := checkFile(d.name); err != nil {
			return d.mend(err)
		}
	}
	var err error
	if fresh {
		err = d.create()
	} else {
		d.bolt, err = openBolt(d.name, d.opts.Buckets)
	}
	if errors.Is(err, ErrDamaged) {
		return d.mend(err)
	}
	if err != nil {
		return err
	}
	err = d.begin()
	if d.mendable(err) {
		return d.mend(err)
	}
	if err != nil {
		return errors.Join(err, d.bolt.Close())
	}
	return nil
}

// create makes the file, under another name first: one that is half made would
// look damaged. If there was one that is gone, what it said is found elsewhere.
func (d *DB) create() error {
	bolt, found, err := d.remake()
	if err != nil {
		return err
	}
	if err = os.Rename(d.name+".new", d.name); err == nil {
		err = syncDir(filepath.Dir(d.name))
	}
	if err != nil {
		return errors.Join(err, bolt.Close())
	}
	d.bolt = bolt
	if slices.ContainsFunc(found, func(a slog.Attr) bool { return a.Value.Kind() == slog.KindInt64 && a.Value.Int64() > 0 }) {
		d.opts.Logger.Error("a database was gone and was made anew", slog.String("file", d.name), slog.GroupAttrs("found", found...))
	}
	return nil
}

// begin starts the journal and notes that the database is open.
func (d *DB) begin() error {
	if d.opts.Journal {
		j, err := d.rewrite()
		if err != nil {
			return err
		}
		d.journal = j
	}
	if _, err := d.lock.WriteAt([]byte("open\n"), 0); err != nil {
		return err
	}
	return d.lock.Sync()
}

// openBolt opens a bbolt file that may hold anything.
func openBolt(name string, buckets [][]byte) (db *bbolt.DB, err error) {
	err = guard(func() error {
		db, err = bbolt.Open(name, 0o600, &bbolt.Options{Timeout: time.Second, FreelistType: bbolt.FreelistMapType, NoStatistics: true})
		return err
	})
	switch {
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch), isTooSmall(name, err):
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	case err != nil:
		return nil, err
	}
	err = guard(func() error {
		return db.Update(func(tx *bbolt.Tx) error {
			for _, b := range buckets {
				if tx.Bucket(b) != nil {
					continue
				}
				if _, err := tx.CreateBucket(b); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if errors.Is(err, berrors.ErrIncompatibleValue) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if errors.Is(err, ErrDamaged) {
		return nil, err // what locks it holds, nobody knows: it can't be closed
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// isTooSmall recognizes a file that was cut off: bbolt has no error for it.
func isTooSmall(name string, err error) bool {
	if err == nil || errors.Is(err, fs.ErrPermission) {
		return false
	}
	info, statErr := os.Stat(name)
	return statErr == nil && info.Size() < 2*int64(os.Getpagesize())
}

// Unclean tells whether the process before this one ended without Close.
func (d *DB) Unclean() bool { return d.unclean }

// Mended returns why the database had to be made anew, if it had to since it was
// opened or while it was, else nil.
func (d *DB) Mended() error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.cause
}

// Size returns what the files take on disk, in bytes, roughly.
func (d *DB) Size() int64 {
	var n int64
	for _, name := range []string{d.name, d.name + ".journal"} {
		if info, err := os.Stat(name); err == nil {
			n += info.Size()
		}
	}
	return n
}

// Close closes the database. No transaction may be under way.
func (d *DB) Close() error {
	d.write.Lock()
	defer d.write.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	err := guard(d.bolt.Close)
	if d.journal != nil {
		err = errors.Join(err, d.journal.close())
	}
	if err == nil {
		err = d.lock.Truncate(0)
	}
	if err = errors.Join(err, d.lock.Close()); err != nil {
		return fmt.Errorf("database: close %s: %w", d.name, err)
	}
	return nil
}

// Check looks at all pages and records of the database as they are on disk. The
// error is ErrDamaged if something is not as it should be.
func (d *DB) Check() error {
	// No transaction may commit meanwhile: pages would be used again.
	d.write.Lock()
	defer d.write.Unlock()
	return checkFile(d.name)
}

// Mend makes the database anew from what can be read of it, because of cause.
func (d *DB) Mend(cause error) error {
	d.write.Lock()
	defer d.write.Unlock()
	return d.mend(cause)
}

func syncDir(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (o Options) has(bucket string) bool {
	return slices.ContainsFunc(o.Buckets, func(b []byte) bool { return string(b) == bucket })
}
