package database

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
)

// maxAside is how many damaged files are kept; then the last is replaced.
const maxAside = 9

// mendOnce mends the database unless that has been done since the made-th time.
func (d *DB) mendOnce(made int, cause error) error {
	d.write.Lock()
	defer d.write.Unlock()
	d.mu.RLock()
	done := d.made != made
	d.mu.RUnlock()
	if done {
		return nil
	}
	return d.mend(cause)
}

// mend moves the damaged file aside and makes a new one of all that can be had:
// what is still sound in the file, over it what the journal says, and what the
// owner adds. write is held, except at Open.
func (d *DB) mend(cause error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	// If it panicked, what it has locked or mapped, nobody knows. Then it is not
	// closed but left to itself.
	if d.bolt != nil && !d.stuck.Load() {
		_ = guard(d.bolt.Close)
	}
	d.bolt = nil
	d.stuck.Store(false)
	d.made++
	d.cause = cause

	bolt, found, err := d.remake()
	if err != nil {
		return fmt.Errorf("database: make %s anew: %w", d.name, err)
	}
	aside, err := d.exchange()
	if err != nil {
		return errors.Join(fmt.Errorf("database: make %s anew: %w", d.name, err), bolt.Close())
	}
	d.bolt = bolt
	if d.journal != nil {
		err = d.journal.close()
		d.journal = nil
	}
	attrs := []any{slog.String("file", d.name), slog.String("movedTo", aside), slog.Any("cause", cause)}
	for _, a := range found {
		attrs = append(attrs, a)
	}
	d.opts.Logger.Error("a database was damaged; it was moved aside and made anew", attrs...)
	return errors.Join(err, d.begin())
}

// remake writes a new database beside the damaged one. It is durable, under
// another name, when remake returns.
func (d *DB) remake() (bolt *bbolt.DB, found []slog.Attr, err error) {
	name := d.name + ".new"
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	if bolt, err = openBolt(name, d.opts.Buckets); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, bolt.Close(), os.Remove(name))
		}
	}()
	t := &Tx{fill: bolt}
	if t.tx, err = bolt.Begin(true); err != nil {
		return nil, nil, err
	}
	if found, err = d.refill(t); err != nil {
		return nil, nil, errors.Join(err, t.tx.Rollback())
	}
	return bolt, found, t.tx.Commit()
}

// refill writes to a new database what the damaged one, the journal and the
// owner know.
func (d *DB) refill(t *Tx) (found []slog.Attr, err error) {
	kept, inJournal := 0, 0
	var failed error
	set := func(bucket, key, value []byte) {
		if failed == nil && d.opts.has(string(bucket)) {
			failed = t.Put(bucket, key, value)
		}
	}
	err = scanFile(d.name, func(bucket, key, stored []byte) {
		if value, ok := unseal(bucket, key, stored); ok {
			kept++
			set(bucket, key, value)
		}
	})
	if failed != nil || err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(err, failed)
	}
	found = append(found, slog.Int("recordsKept", kept))
	if d.opts.Journal {
		lost, err := readJournal(d.name+".journal", func(r record) {
			inJournal++
			if r.op == opPut {
				set(r.bucket, r.key, r.value)
			} else if failed == nil && d.opts.has(string(r.bucket)) {
				failed = t.Delete(r.bucket, r.key)
			}
		})
		if err = errors.Join(err, failed); err != nil {
			return nil, err
		}
		found = append(found, slog.Int("fromJournal", inJournal), slog.Int("journalBytesLost", lost))
	}
	if d.opts.Rebuild == nil {
		return found, nil
	}
	more, err := d.opts.Rebuild(t)
	return append(found, more...), err
}

// exchange puts the new database in the place of the damaged one.
func (d *DB) exchange() (aside string, err error) {
	for i := 1; i <= maxAside; i++ {
		aside = fmt.Sprintf("%s.damaged-%d", d.name, i)
		if _, err := os.Lstat(aside); errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	// A hard link first: at no moment is there no file under the name.
	if err := os.Link(d.name, aside); errors.Is(err, fs.ErrExist) {
		err = errors.Join(os.Remove(aside), os.Link(d.name, aside))
		if err != nil {
			return "", err
		}
	} else if errors.Is(err, fs.ErrNotExist) {
		aside = ""
	} else if err != nil {
		return "", err
	}
	if err := os.Rename(d.name+".new", d.name); err != nil {
		return "", err
	}
	return filepath.Base(aside), syncDir(filepath.Dir(d.name))
}
