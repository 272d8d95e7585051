package store

import (
	"errors"
	"fmt"

	"github.com/airstream-io/airstream/internal/database"
)

// note is what a flush will say of an object.
type note struct {
	o     *object
	value []byte
	gen   uint64
}

// begun is what it will say of a partial blob.
type begun struct {
	p      *partial
	name   string
	value  []byte
	length int64
}

// Flush makes durable everything that was noted before the call.
func (s *Store) Flush() error {
	s.flushMu.Lock()
	defer s.flushMu.Unlock()

	s.mu.Lock()
	notes := make([]note, 0, len(s.dirty))
	for _, o := range s.dirty {
		value, gen := o.note()
		notes = append(notes, note{o, value, gen})
	}
	var parts []begun
	for name, p := range s.partials {
		if value, n, ok := p.note(); ok {
			parts = append(parts, begun{p, name, value, n})
		}
	}
	s.mu.Unlock()
	if len(notes) == 0 && len(parts) == 0 {
		return nil
	}

	if err := s.sync(int(s.root.Fd())); err != nil {
		return fmt.Errorf("store: sync %s: %w", s.dir, errors.Join(err, s.writeAgain(notes)))
	}
	s.recount(notes)
	err := s.update(func(tx *database.Tx) error {
		for _, n := range notes {
			if err := tx.Put(bucketObjects, n.o.id[:], n.value); err != nil {
				return err
			}
		}
		for _, b := range parts {
			if err := tx.Put(bucketPartials, []byte(b.name), b.value); err != nil {
				return err
			}
		}
		return s.putSpace(tx)
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
	for _, b := range parts {
		b.p.flushed(b.length)
	}
	return nil
}

// writeAgain writes what a failed sync may have lost once more: the kernel
// takes pages that it could not write for clean, so that the next sync would
// succeed without them. What it read is still in memory then.
func (s *Store) writeAgain(notes []note) error {
	var errs []error
	for _, n := range notes {
		errs = append(errs, n.o.writeAgain())
	}
	s.mu.Lock()
	partials := make([]*partial, 0, len(s.partials))
	for _, p := range s.partials {
		partials = append(partials, p)
	}
	s.mu.Unlock()
	for _, p := range partials {
		errs = append(errs, p.writeAgain())
	}
	return errors.Join(errs...)
}
