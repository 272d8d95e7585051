package fetcher

import (
	"testing"

	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/trace"
)

// What one node read while a container started, another one has before its
// container asks.
func TestTraceOfOneNodeWarmsTheNext(t *testing.T) {
	s := newShore(t)
	first := newBench(t, s, t.TempDir(), s.at)
	reads := []struct {
		name string
		off  int64
		n    int
	}{{"last", 200_000, 100}, {"small/30", 0, 3000}, {"big", 700_000, 100_000}, {"big", 0, 10}, {"two", 0, 100}}
	for _, r := range reads {
		s.want(t, first.open(t, r.name), r.name, r.off, r.n)
	}
	tr, err := first.Trace(t.Context(), []uint32{slot})
	if err != nil {
		t.Fatal(err)
	}
	if len(tr.Reads) < len(reads) || tr.Reads[0].Path != "last" || tr.Reads[1].Path != "small/30" {
		t.Fatalf("trace: %+v", tr.Reads)
	}
	tree, err := first.Tree(t.Context(), slot)
	if err != nil {
		t.Fatal(err)
	}
	m := trace.NewMatcher(tr)
	plan := trace.Plans(1, m.Order([]*trace.Match{m.Match(tree)}))[0]
	var hot int64
	for _, r := range plan {
		hot += r.Size
	}

	s = newShore(t)
	next := newBench(t, s, t.TempDir(), s.at)
	info, err := next.catalog.Layer(slot)
	if err != nil {
		t.Fatal(err)
	}
	info.Hot = plan.String()
	wire := func() int64 {
		t.Helper()
		n, err := next.HotWire(info, info)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := wire(); n != hot {
		t.Errorf("%d bytes are to cross before anything is here; the plan has %d", n, hot)
	}
	if _, err := next.Tree(t.Context(), slot); err != nil {
		t.Fatal(err)
	}
	if n := wire(); n != hot {
		t.Errorf("%d bytes are to cross when the table alone is here; the plan has %d", n, hot)
	}
	if err := next.Warm(info); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool {
		next.mu.Lock()
		defer next.mu.Unlock()
		return len(next.layers) == 1 && next.counts.Chunks > 0 && len(next.queue.hot)+len(next.queue.transfers) == 0
	})
	if sent, twice := s.traffic(); twice > 0 || int64(sent) != hot {
		t.Errorf("%d bytes crossed, %d of them twice; the plan has %d", sent, twice, hot)
	}
	if n := wire(); n != 0 {
		t.Errorf("%d bytes are to cross when all is here", n)
	}
	for _, r := range reads {
		s.want(t, next.open(t, r.name), r.name, r.off, r.n)
	}
	if c := next.Counts(); c.Waits > 0 || c.Demands > 0 {
		t.Errorf("%d reads waited for what was hot, with %d requests", c.Waits, c.Demands)
	}
}

func TestPlanThatMakesNoSenseIsIgnored(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	for _, hot := range []string{"nonsense", "1.%%", "1.__________8", "9.AAAA"} {
		if err := b.Warm(catalog.Layer{Slot: slot, Size: int64(len(s.blob)), Hot: hot}); err != nil {
			t.Errorf("%q: %v", hot, err)
		}
	}
	s.want(t, b.open(t, "two"), "two", 0, 100)
}
