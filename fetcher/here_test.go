package fetcher

import (
	"bytes"
	"errors"
	"io/fs"
	"testing"
)

// What is here can be read without the link, and what isn't is not waited for.
func TestReadHere(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	if _, err := b.ReadHere(slot, 0, 0, 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before the table is here: %v", err)
	}
	const name, at, n = "big", 700_000, 100_000
	c := b.open(t, name)
	s.want(t, c, name, at, n)
	entry := c.entry
	got, err := b.ReadHere(slot, entry, at+1000, n-2000)
	want := make([]byte, n-2000)
	if _, rerr := c.ReadAt(t.Context(), want, at+1000); err != nil || rerr != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v, %v", len(got), err, rerr)
	}
	tree, err := b.Tree(t.Context(), slot)
	if err != nil {
		t.Fatal(err)
	}
	size := tree.Attr(entry).Size
	for _, bad := range []struct {
		entry uint32
		off   int64
		n     uint32
	}{{entry, -1, 2}, {entry, size, 1}, {entry, size - 1, 2}, {entry, 1 << 62, 1}, {entry, 0, 0}, {uint32(tree.Len()), 0, 1}, {^uint32(0), 0, 1}, {0, 0, 1}} {
		if _, err := b.ReadHere(slot, bad.entry, bad.off, bad.n); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}

	none := newBench(t, s, t.TempDir(), s.at)
	if _, err := none.Tree(t.Context(), slot); err != nil {
		t.Fatal(err)
	}
	if _, err := none.ReadHere(slot, entry, 0, 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is not here: %v", err)
	}
}
