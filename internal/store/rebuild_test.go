package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
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

// That content is known by its files alone is remembered until a deep
// verification has mended it all, also by other processes.
func TestRebuiltUntilVerified(t *testing.T) {
	k := stock(t)
	rebuilt := func(want bool, when string) {
		t.Helper()
		if got, err := k.s.Rebuilt(); got != want || err != nil {
			t.Errorf("%s: %v, %v", when, got, err)
		}
	}
	rebuilt(false, "a new store")
	must(t, errors.Join(k.s.Close(), os.Remove(filepath.Join(k.dir, "store.db"))))
	stranger := filepath.Join(k.dir, "objects", "ab", "ab"+strings.Repeat("0", 62))
	must(t, os.WriteFile(stranger, []byte("x"), 0o600))
	flip(t, objectFile(t, k.dir, k.object.id), 1234)
	k.s = openQuiet(t, k.dir)
	rebuilt(true, "without its database")
	k.verify(VerifyOptions{Repair: true, Keep: true})
	k.verify(VerifyOptions{Deep: true})
	must(t, k.s.Close())
	k.s = openQuiet(t, k.dir)
	rebuilt(true, "in the next process")
	if missing, _ := k.s.HasObject(k.object.id, uint32(len(k.object.chunks))); missing != 0 {
		t.Errorf("%d chunks are known to be missing before anybody has looked", missing)
	}
	k.verify(VerifyOptions{Deep: true, Repair: true, Keep: true, Gentle: true})
	rebuilt(false, "after a deep verification")
	if missing, _ := k.s.HasObject(k.object.id, uint32(len(k.object.chunks))); missing != 1 {
		t.Errorf("%d chunks are missing, one is damaged", missing)
	}
	if _, err := os.Stat(stranger); err != nil {
		t.Errorf("what nobody knows was to be kept: %v", err)
	}
	must(t, k.s.Close())
	k.s = openQuiet(t, k.dir)
	rebuilt(false, "later")
	must(t, k.s.Close())
}
