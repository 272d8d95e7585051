package fetcher

import (
	"errors"
	"net/http"
	"testing"

	"github.com/airstream-io/airstream/internal/store"
)

// A full disk fails what only wanted to be stored, and no read.
func TestFullDiskFailsNoRead(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	c, two := b.open(t, "big"), b.open(t, "two")
	s.want(t, two, "two", 0, 100)
	if err := b.store.Flush(); err != nil {
		t.Fatal(err)
	}
	b.store.SetLimit(0, 1<<60) // as much must stay free as no disk has
	s.want(t, c, "big", 100_000, 300_000)
	s.want(t, two, "two", 0, 100_000)
	if err := b.Complete(t.Context(), slot); !errors.Is(err, store.ErrNoSpace) {
		t.Errorf("complete on a full disk: %v, want store.ErrNoSpace", err)
	}
	if !b.Queue().Full {
		t.Error("status doesn't tell that the disk is full")
	}
	// What was read lately is in memory: small reads don't fetch it each time.
	before := b.Counts().Waits
	for off := int64(131072); off < 131072+60_000; off += 4096 {
		s.want(t, c, "big", off, 4096)
	}
	if n := b.Counts().Waits - before; n > 0 {
		t.Errorf("%d reads waited for a chunk that was just read", n)
	}

	b.store.SetLimit(0, 0)
	s.setMood(func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) })
	s.want(t, c, "big", 131072, 60_000) // and is stored as soon as there is room
	if p, _ := c.l.pieceOf(first(c.l.tree.FindChunk(c.entry, 131072))); b.spare.chunks[p] != nil {
		t.Error("there is room, and a chunk is in memory only")
	}
	s.setMood(nil)
	if err := b.Complete(t.Context(), slot); err != nil {
		t.Error(err)
	}
	s.want(t, c, "big", 0, 1<<20)
}

func first[A, B any](a A, _ B) A { return a }

// A full disk lets nobody wait who only wanted to have something stored, not
// even for a table of contents. It comes when there is room.
func TestFullDiskBeforeTheTable(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	b.store.SetLimit(0, 1<<60)
	if err := b.Complete(t.Context(), slot); !errors.Is(err, store.ErrNoSpace) {
		t.Errorf("complete on a full disk: %v, want store.ErrNoSpace", err)
	}
	b.store.SetLimit(0, 0)
	s.want(t, b.open(t, "two"), "two", 0, 100_000)
	if err := b.Complete(t.Context(), slot); err != nil {
		t.Error(err)
	}
}
