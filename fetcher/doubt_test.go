package fetcher

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/airstream-io/airstream/fetcher/uplink"
)

// A node whose database is gone finds in its files what it has of those that
// are not whole, before any of it is asked for: nothing crosses again, and what
// is said of the layer is true.
func TestLostDatabaseCostsNoLink(t *testing.T) {
	s := newShore(t)
	dir := t.TempDir()
	b := newBench(t, s, dir, s.at)
	at := time.Duration(time.Now().Add(3*time.Hour).Hour()) * time.Hour
	b.meter.SetPolicy(uplink.Policy{Windows: []uplink.Window{{From: at, To: at + time.Minute}}}) // nothing is read ahead
	s.want(t, b.open(t, "big"), "big", 100_000, 400_000)
	s.want(t, b.open(t, "two"), "two", 0, 100_000)
	b.idle(t)
	before := b.completeness(t, slot)
	if before.Missing < 800_000 || before.Missing > 1_700_000 {
		t.Fatalf("the test wants a part of the layer: %+v", before)
	}
	b.close(t)
	if err := os.Remove(filepath.Join(dir, "store", "store.db")); err != nil {
		t.Fatal(err)
	}
	b = newBench(t, s, dir, s.at)
	if after := b.completeness(t, slot); after != before {
		t.Errorf("without its database %+v, before %+v", after, before)
	}
	if err := b.Complete(t.Context(), slot); err != nil {
		t.Fatal(err)
	}
	if _, twice := s.traffic(); twice > 0 {
		t.Errorf("%d bytes crossed twice", twice)
	}
	for name, want := range s.files {
		s.want(t, b.open(t, name), name, 0, len(want))
	}
}
