package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/airstream-io/airstream/internal/toc"
)

// What a file with holes holds is not known when the database is gone. Once it
// is looked for, it is known again, and stays so.
func TestSettleEndsDoubt(t *testing.T) {
	dir := t.TempDir()
	s := openQuiet(t, dir)
	c := newContent(1, 300_000)
	tree := smallTree(t, c)
	entry, _ := tree.Lookup(toc.Root, "f")
	c.id = tree.ObjectID(entry)
	o := c.open(t, s)
	c.put(t, o, 0, 1, 2, 200, 201)
	must(t, errors.Join(o.Close(), s.Close(), os.Remove(filepath.Join(dir, "store.db"))))
	s = openQuiet(t, dir)
	flip(t, objectFile(t, dir, c.id), 1500) // and one of them is damaged
	n := uint32(len(c.chunks))
	if missing, doubt := s.HasObject(c.id, n); missing != n || !doubt {
		t.Errorf("before: %d missing, doubt %v", missing, doubt)
	}
	must(t, s.Settle(t.Context(), tree, entry))
	want := func(when string) {
		t.Helper()
		if missing, doubt := s.HasObject(c.id, n); missing != n-4 || doubt {
			t.Errorf("%s: %d missing, want %d; doubt %v", when, missing, n-4, doubt)
		}
		for i := range n {
			if has := i == 0 || i == 2 || i == 200 || i == 201; s.HasChunk(c.id, n, i) != has {
				t.Errorf("%s: chunk %d: %v", when, i, !has)
			}
		}
	}
	want("after")
	must(t, s.Settle(t.Context(), tree, entry)) // nothing is left to do
	must(t, s.Close())
	s = openQuiet(t, dir)
	want("later")
	must(t, s.Close())
}
