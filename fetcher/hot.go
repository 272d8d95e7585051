package fetcher

import (
	"cmp"
	"log/slog"
	"slices"
	"sort"

	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
)

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
	f.mu.Lock()
	l = l.latest()
	f.mu.Unlock()
	runs := make([]hotRun, 0, len(plan))
	for _, r := range plan {
		if s := membersIn(l.tree, r.Offset, r.Offset+r.Size); s.first < s.end {
			runs = append(runs, hotRun{l, r.Rank, s})
		}
	}
	f.planned(l, plan)
	f.mu.Lock()
	defer f.mu.Unlock()
	q := &f.queue
	q.hot = append(q.hot, runs...)
	slices.SortStableFunc(q.hot, func(a, b hotRun) int { return cmp.Compare(a.rank, b.rank) })
	f.dispatch()
}

// planned notes what is in the hot set of a layer whose tree is here.
func (f *Fetcher) planned(l *layer, plan trace.Plan) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l.latest().plan(plan)
}

// plan adds a plan to the hot set. Fetcher.mu is held.
func (l *layer) plan(plan trace.Plan) {
	if !slices.ContainsFunc(l.plans, func(p trace.Plan) bool { return slices.Equal(p, plan) }) {
		l.plans = append(l.plans, plan)
	}
	for _, r := range plan {
		s := membersIn(l.tree, r.Offset, r.Offset+r.Size)
		l.planMembers(s.first, s.end)
	}
}

// membersIn returns the members that begin in [from, to) of the blob.
func membersIn(t *toc.Tree, from, to int64) span {
	n := t.NumMembers()
	at := func(off int64) uint32 {
		return uint32(sort.Search(n, func(i int) bool { return t.Member(uint32(i)).Offset >= off }))
	}
	return span{at(from), at(to)}
}

// nextHot plans the next request for hot sets, or returns nil if there is none
// to make now. f.mu is held.
func (f *Fetcher) nextHot(r *round) *transfer {
	q := &f.queue
	budget := maxScan
	for i := 0; i < len(q.hot); {
		h := &q.hot[i]
		tk := f.ticketAt(h.l, Hot, r)
		if tk == nil {
			i++
			continue
		}
		for h.first < h.end && budget > 0 {
			budget--
			t := f.plan(h.l, h.first, int(h.end), f.hotSpan(), Hot, piece{})
			h.first = max(t.end, h.first+1)
			if t.end > t.first {
				t.ticket = tk
				return t
			}
		}
		tk.discard()
		if budget == 0 {
			r.later(r.now)
			return nil
		}
		q.hot = slices.Delete(q.hot, i, i+1)
	}
	return nil
}

// hotSpan is the size of a request for hot sets: all of them together are two
// and a half round trips' worth, so that loss on some leaves the link full.
func (f *Fetcher) hotSpan() int64 {
	return min(max(f.meter.BandwidthDelay()*5/(2*int64(f.parallel(Hot))), 32<<10), 4<<20)
}

// again puts back what a failed transfer did not bring of a hot set. f.mu is
// held.
func (f *Fetcher) again(t *transfer) {
	f.queue.hot = slices.Insert(f.queue.hot, 0, hotRun{l: t.l, span: span{t.first, t.end}})
}
