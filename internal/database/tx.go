package database

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"runtime/debug"
	"syscall"

	"go.etcd.io/bbolt"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const sumSize = 4 // bytes behind each value: CRC-32C, little-endian

// checksum covers where a value stands and what it is.
func checksum(bucket, key, value []byte) uint32 {
	sum := crc32.Update(uint32(len(bucket)), castagnoli, bucket)
	sum = crc32.Update(sum^uint32(len(key)), castagnoli, key)
	return crc32.Update(sum, castagnoli, value)
}

// unseal returns a stored value without its checksum; ok is false if that is not
// the value's.
func unseal(bucket, key, stored []byte) (value []byte, ok bool) {
	n := len(stored) - sumSize
	if n < 0 {
		return nil, false
	}
	return stored[:n:n], binary.LittleEndian.Uint32(stored[n:]) == checksum(bucket, key, stored[:n])
}

func seal(bucket, key, value []byte) []byte {
	out := make([]byte, 0, len(value)+sumSize)
	return binary.LittleEndian.AppendUint32(append(out, value...), checksum(bucket, key, value))
}

// guard calls f, which calls bbolt, and turns panics and memory faults into
// ErrDamaged.
func guard(f func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, r)
		}
	}()
	if err = f(); errors.Is(err, syscall.EFBIG) {
		// A page number that can't be one: no database of ours is that large.
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

// guard is guard for what takes bbolt's locks.
func (d *DB) guard(f func() error) error {
	done := false
	err := guard(func() error {
		err := f()
		done = true
		return err
	})
	if !done {
		d.stuck.Store(true)
	}
	return err
}

// Tx is a transaction. It is valid within the function that got it.
type Tx struct {
	tx  *bbolt.Tx
	log *batch // what the journal will say; nil: there is none

	fill    *bbolt.DB // that is being made anew; nil: this is a normal transaction
	changes int       // since the last commit, if fill is set
}

// fillBatch is how many records are written to a new database at a time, so
// that a million of them don't have to fit into memory.
const fillBatch = 20_000

// Get returns a value, or nil if there is none. It is valid within the
// transaction and must not be changed.
func (t *Tx) Get(bucket, key []byte) (value []byte, err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			value, err = nil, fmt.Errorf("%w: %v", ErrDamaged, r)
		}
	}()
	b := t.tx.Bucket(bucket)
	if b == nil {
		return nil, fmt.Errorf("%w: there is no %s", ErrDamaged, bucket)
	}
	stored := b.Get(key)
	if stored == nil {
		return nil, nil
	}
	value, ok := unseal(bucket, key, stored)
	if !ok {
		return nil, fmt.Errorf("%s %q: %w", bucket, key, ErrValue)
	}
	return value, nil
}

// Put sets a value.
func (t *Tx) Put(bucket, key, value []byte) error {
	t.log.put(bucket, key, value)
	return t.change(bucket, func(b *bbolt.Bucket) error { return b.Put(key, seal(bucket, key, value)) })
}

// Delete removes a value, if there is one.
func (t *Tx) Delete(bucket, key []byte) error {
	t.log.delete(bucket, key)
	return t.change(bucket, func(b *bbolt.Bucket) error { return b.Delete(key) })
}

func (t *Tx) change(bucket []byte, f func(b *bbolt.Bucket) error) error {
	return guard(func() error {
		if t.changes++; t.fill != nil && t.changes%fillBatch == 0 {
			if err := t.tx.Commit(); err != nil {
				return err
			}
			tx, err := t.fill.Begin(true)
			if err != nil {
				return err
			}
			t.tx = tx
		}
		b := t.tx.Bucket(bucket)
		if b == nil {
			return fmt.Errorf("%w: there is no %s", ErrDamaged, bucket)
		}
		return f(b)
	})
}

// ForEach calls f for every key of a bucket, in their order.
func (t *Tx) ForEach(bucket []byte, f func(key, value []byte) error) error {
	return t.From(bucket, nil, func(key, value []byte, err error) (bool, error) {
		if err != nil {
			return false, err
		}
		return true, f(key, value)
	})
}

// From calls f for the keys of a bucket from key on, in their order, until it
// returns false. err is ErrValue where a value is damaged.
func (t *Tx) From(bucket, key []byte, f func(key, value []byte, err error) (more bool, _ error)) error {
	var c *bbolt.Cursor
	var k, stored []byte
	step := func(next func() ([]byte, []byte)) error {
		return guard(func() error { k, stored = next(); return nil })
	}
	err := guard(func() error {
		b := t.tx.Bucket(bucket)
		if b == nil {
			return fmt.Errorf("%w: there is no %s", ErrDamaged, bucket)
		}
		c = b.Cursor()
		return nil
	})
	if err != nil {
		return err
	}
	for err = step(func() ([]byte, []byte) { return c.Seek(key) }); err == nil && k != nil; err = step(c.Next) {
		var value, name []byte
		var ok bool
		if err := guard(func() error {
			name = bytes.Clone(k)
			value, ok = unseal(bucket, k, stored)
			return nil
		}); err != nil {
			return err
		}
		var bad error
		if !ok {
			value, bad = nil, fmt.Errorf("%s %q: %w", bucket, name, ErrValue)
		}
		more, err := f(name, value, bad)
		if !more || err != nil {
			return err
		}
	}
	return err
}

// View calls f with a transaction that only reads. f may be called twice: the
// database may have to be mended in between.
func (d *DB) View(f func(tx *Tx) error) error {
	made, err := d.view(f)
	if d.mendable(err) {
		if err = d.mendOnce(made, err); err == nil {
			_, err = d.view(f)
		}
	}
	return err
}

func (d *DB) mendable(err error) bool {
	return errors.Is(err, ErrDamaged) || d.opts.Journal && errors.Is(err, ErrValue)
}

func (d *DB) view(f func(tx *Tx) error) (made int, err error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	var tx *bbolt.Tx
	if err := d.guard(func() error { tx, err = d.bolt.Begin(false); return err }); err != nil {
		return d.made, err
	}
	defer func() { err = errors.Join(err, d.guard(tx.Rollback)) }()
	return d.made, f(&Tx{tx: tx})
}

// Update calls f with a transaction that is durable when Update returns, or
// has changed nothing if it returns an error. f may be called twice.
func (d *DB) Update(f func(tx *Tx) error) error {
	d.write.Lock()
	defer d.write.Unlock()
	err := d.update(f)
	if d.mendable(err) {
		if err = d.mend(err); err == nil {
			err = d.update(f)
		}
	}
	return err
}

func (d *DB) update(f func(tx *Tx) error) (err error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	var tx *bbolt.Tx
	if err := d.guard(func() error { tx, err = d.bolt.Begin(true); return err }); err != nil {
		return err
	}
	committed := false
	defer func() {
		if !committed {
			err = errors.Join(err, d.guard(tx.Rollback))
		}
	}()
	t := &Tx{tx: tx}
	if d.journal != nil {
		t.log = &batch{}
	}
	if err := f(t); err != nil {
		return err
	}
	if d.journal != nil {
		if err := d.journal.append(t.log); err != nil {
			return err
		}
	}
	committed = true // or rolled back by bbolt
	if err := d.guard(tx.Commit); err != nil {
		if d.journal != nil {
			err = errors.Join(err, d.journal.takeBack())
		}
		return err
	}
	if d.journal != nil && d.journal.long() {
		return d.shorten()
	}
	return nil
}
