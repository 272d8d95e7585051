package fetcher

import (
	"errors"
	"sync"
	"testing"
)

func (b *bench) completeness(t *testing.T, slots ...uint32) Completeness {
	t.Helper()
	c, err := b.Completeness(slots...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What arrives through one layer counts in every layer that has it, at once and
// after a restart.
func TestSharedContentCountsInEachLayer(t *testing.T) {
	b, first, second, other := twoShores(t, Options{})
	if c := b.completeness(t, slot, other); c.Lazy != 2 || c.Complete() {
		t.Errorf("before anything has crossed: %+v", c)
	}
	first.want(t, b.open(t, "big"), "big", 0, 1<<20)
	if _, err := b.Tree(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if c := b.completeness(t, other); c.Missing != 200_000 || c.Total != 1<<20+200_000 {
		t.Errorf("the other layer lacks %d of %d bytes, want 200,000", c.Missing, c.Total)
	}
	wire, err := b.Wire(other)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Complete(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if sent, twice := second.traffic(); int64(sent) != wire || twice > 0 {
		t.Errorf("%d bytes crossed, %d of them twice; %d were announced", sent, twice, wire)
	}
	if c := b.completeness(t, other); !c.Complete() {
		t.Errorf("after completing: %+v", c)
	}
	before := b.completeness(t, slot, other)
	b.close(t)
	again := newBenchWith(t, first, b.dir, first.at, Options{}, map[string]*shore{otherSrc.Host: second})
	if after := again.completeness(t, slot, other); after != before {
		t.Errorf("after a restart %+v, before %+v", after, before)
	}
}

// Content that is deleted behind the fetcher's back is missing from then on, and
// is fetched again when it is wanted.
func TestForgottenLayerIsFetchedAgain(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	if err := b.Complete(t.Context(), slot); err != nil {
		t.Fatal(err)
	}
	c, err := b.Open(t.Context(), slot, b.entry(t, "two"))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Forget(slot); !errors.Is(err, ErrBusy) {
		t.Errorf("forgot a layer of which a file is open: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	tree, err := b.Tree(t.Context(), slot)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Forget(slot, 77); err != nil {
		t.Fatal(err)
	}
	if err := b.store.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.store.DeleteObject(tree.ObjectID(b.entry(t, "two"))); err != nil {
		t.Fatal(err)
	}
	b.Recount()
	if c := b.completeness(t, slot); c.Missing != 100_000 {
		t.Errorf("%d bytes are missing, want the 100,000 that were deleted", c.Missing)
	}
	s.want(t, b.open(t, "two"), "two", 0, 100_000)
	if c := b.completeness(t, slot); !c.Complete() {
		t.Errorf("%+v", c)
	}
}

// Counting while chunks arrive through another layer loses none.
func TestCountingWhileChunksArrive(t *testing.T) {
	b, first, _, other := twoShores(t, Options{})
	if _, err := b.Tree(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		b.Recount()
		var wg sync.WaitGroup
		wg.Go(func() { b.completeness(t, other) })
		wg.Go(func() { first.want(t, b.open(t, "big"), "big", 0, 1<<20) })
		wg.Wait()
		if c := b.completeness(t, other); c.Missing != 200_000 {
			t.Fatalf("%d bytes are missing, want 200,000", c.Missing)
		}
	}
}
