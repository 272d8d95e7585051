package fetcher

import (
	"cmp"
	"log/slog"
	"slices"
	"sort"
	"time"

	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
)

// maxHot is how many requests for hot sets are under way at a time. With 1% of
// loss a registry's sender keeps a satellite link full with eight connections
// and not with fewer (facts: links, 64 KiB ranges).
const maxHot = 8

// hotRun is a part of a layer that a start will read.
type hotRun struct {
	l    *layer
	rank uint32
	span
}

// span is a half-open range of members.
type span struct{ first, end uint32 }

// Warm fetches what a start of an image reads, in the order in which it reads
// it, before anybody asks: the plans that layers carry. It returns at once; the
// layers' tables have to arrive first.
func (f *Fetcher) Warm(layers ...catalog.Layer) error {
	for _, info := range layers {
		if info.Hot == "" {
			continue
		}
		plan, err := trace.ParsePlan(info.Hot, info.Size)
		if err != nil {
			// It only says what to fetch first; the image is none the worse.
			f.log.Warn("a layer's plan of its hot set is ignored", slog.String("layer", info.Blob.String()), slog.Any("error", err))
			continue
		}
		l, err := f.layer(info.Slot, false)
		if err != nil {
			return err
		}
		f.whenReady(l, func() { f.warm(l, plan) })
	}
	return nil
}

// warm queues a plan of a layer whose tree is here.
func (f *Fetcher) warm(l *layer, plan trace.Plan) {
	runs := make([]hotRun, 0, len(plan))
	for _, r := range plan {
		if s := membersIn(l.tree, r.Offset, r.Offset+r.Size); s.first < s.end {
			runs = append(runs, hotRun{l, r.Rank, s})
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	planned := l.known().planned
	for _, r := range runs {
		for m := r.first; m < r.end; m++ {
			planned[m/64] |= 1 << (m % 64)
		}
	}
	q := &f.queue
	q.hot = append(q.hot, runs...)
	slices.SortStableFunc(q.hot, func(a, b hotRun) int { return cmp.Compare(a.rank, b.rank) })
	f.dispatch()
}

// membersIn returns the members that begin in [from, to) of the blob.
func membersIn(t *toc.Tree, from, to int64) span {
	n := t.NumMembers()
	at := func(off int64) uint32 {
		return uint32(sort.Search(n, func(i int) bool { return t.Member(uint32(i)).Offset >= off }))
	}
	return span{at(from), at(to)}
}

// nextHot plans the next request for hot sets, or nil; more says that not all
// was looked at. f.mu is held.
func (f *Fetcher) nextHot(now time.Time) (t *transfer, more bool) {
	q := &f.queue
	budget := maxScan
	for i := 0; i < len(q.hot); {
		r := &q.hot[i]
		if r.l.pause.until.After(now) {
			i++
			continue
		}
		for r.first < r.end && budget > 0 {
			budget--
			t := f.plan(r.l, r.first, int(r.end), f.hotSpan(), Hot)
			r.first = max(t.end, r.first+1)
			if t.end > t.first {
				return t, false
			}
		}
		if budget == 0 {
			return nil, true
		}
		q.hot = slices.Delete(q.hot, i, i+1)
	}
	return nil, false
}

// hotSpan is the size of a request for hot sets: all of them together are two
// and a half round trips' worth, so that loss on some leaves the link full.
func (f *Fetcher) hotSpan() int64 {
	return min(max(f.meter.BandwidthDelay()*5/(2*maxHot), 32<<10), 4<<20)
}

// again puts back what a failed transfer did not bring of a hot set. f.mu is
// held.
func (f *Fetcher) again(t *transfer) {
	f.queue.hot = slices.Insert(f.queue.hot, 0, hotRun{l: t.l, span: span{t.first, t.end}})
}
