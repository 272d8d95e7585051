package fetcher

import (
	"context"
	"slices"
	"time"

	"github.com/airstream-io/airstream/fetcher/uplink"
)

// maxScan is how many members one look goes through while it holds the lock,
// so that nobody waits long for a walk through what is here already.
const maxScan = 256

// round is one look at the queue: what may begin now, and when to look again.
type round struct {
	f     *Fetcher
	now   time.Time
	wake  time.Time // zero: when something happens
	class Class     // that is looked for
	asked [uplink.NumClasses]bool
	open  [uplink.NumClasses]bool
	shut  map[*layer]bool // there is no source to ask for it now
}

// later asks for another look at a time.
func (r *round) later(at time.Time) {
	if !at.IsZero() && (r.wake.IsZero() || at.Before(r.wake)) {
		r.wake = at
	}
}

// admitted tells whether requests of a class may begin now at all: budgets and
// windows.
func (r *round) admitted(c Class) bool {
	if !r.asked[c] {
		ok, again, _ := r.f.meter.Admit(c)
		r.asked[c], r.open[c] = true, ok
		if !ok {
			// The clock on the wall may jump; nobody should wait for a year.
			r.later(r.now.Add(min(max(time.Until(again), time.Second), time.Minute)))
		}
	}
	return r.open[c]
}

// dispatch begins as many requests as the limits allow. f.mu is held.
func (f *Fetcher) dispatch() {
	if f.closing {
		return
	}
	r := &round{f: f, now: time.Now(), shut: map[*layer]bool{}}
	f.reconsider(r)
	for more := true; more; {
		more = f.begin(r)
	}
	f.wakeAt(r.wake)
}

// begin begins one request, if there is one to be made now. f.mu is held.
func (f *Fetcher) begin(r *round) bool {
	t := f.nextDemand(r)
	if t == nil && f.runErrand(r) {
		return true
	}
	if t == nil {
		t = f.nextUnasked(r)
	}
	if t == nil {
		return false
	}
	f.launch(t)
	return true
}

// launch starts a transfer that has its ticket. f.mu is held.
func (f *Fetcher) launch(t *transfer) {
	f.counts.Requests++
	f.queue.transfers[t] = struct{}{}
	t.l.active++
	t.done = make(chan struct{})
	if t.ticket.src == pushSource {
		t.came = make(chan struct{})
	}
	f.work.Go(func() { f.carry(f.run, t) })
}

// carry makes a transfer, from its ticket to its end.
func (f *Fetcher) carry(ctx context.Context, t *transfer) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.mu.Lock()
	t.cancel = cancel
	if t.l.gone {
		cancel()
	}
	f.mu.Unlock()
	f.transfer(ctx, t)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.queue.transfers, t)
	close(t.done)
	f.dispatch()
}

// wakeAt calls dispatch again at a time, unless it is zero.
func (f *Fetcher) wakeAt(at time.Time) {
	f.queue.stopTimer()
	if at.IsZero() {
		return
	}
	f.queue.timer = time.AfterFunc(max(0, time.Until(at)), func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.dispatch()
	})
}

// nextDemand plans the request for who has waited longest, of those that can
// be served now: a registry that is down holds up only what nobody else has.
func (f *Fetcher) nextDemand(r *round) *transfer {
	q := &f.queue
	for i := 0; i < len(q.waiting) && r.admitted(Demand); {
		fl := q.waiting[i]
		o, tk := f.ticketFor(fl, r)
		if tk == nil {
			i++
			continue
		}
		f.unqueue(fl)
		t := f.plan(o.l, o.member(), o.l.tree.NumMembers(), f.demandSpan(o), Demand, fl.piece)
		if t.end == t.first {
			tk.discard()
			f.land(fl.piece, nil, nil) // it has come meanwhile
			continue
		}
		t.ticket = tk
		f.counts.Demands++
		return t
	}
	return nil
}

// ticketFor finds a source that may be asked for a flight now.
func (f *Fetcher) ticketFor(fl *flight, r *round) (origin, *ticket) {
	for _, o := range fl.origins {
		if at := o.l.wrong.until(o.chunk); at.After(r.now) {
			r.later(at)
			continue
		}
		if o.l.from.cover.by != nil {
			return o, f.pushTicket(Demand)
		}
		if h, src := f.pick(&o.l.from, forChunks, Demand, r); h != nil {
			return o, f.issue(h, src, forChunks, Demand)
		}
	}
	return origin{}, nil
}

// nextUnasked plans the next request for what nobody waits for.
func (f *Fetcher) nextUnasked(r *round) *transfer {
	for _, c := range []struct {
		class Class
		next  func(*round) *transfer
	}{{Hot, f.nextHot}, {Ahead, f.nextAhead}, {Prefetch, f.nextWalk}, {Background, f.nextWalk}} {
		if c.class != Prefetch && f.fullUntil.After(r.now) {
			r.later(f.fullUntil)
			continue
		}
		if !r.admitted(c.class) {
			continue
		}
		live, left := f.underWay(c.class, r)
		if limit := f.parallel(c.class); live < limit || live == limit && left < f.meter.BandwidthDelay() {
			r.class = c.class
			if t := c.next(r); t != nil {
				return t
			}
		}
		if live > 0 {
			// It keeps the link busy: nothing less urgent is begun beside it.
			// Unless it turns out to be dead; a little later than it can.
			r.later(r.now.Add(f.patience() + 50*time.Millisecond))
			return nil
		}
	}
	return nil
}

// parallel is how many requests of a class are made at a time.
func (f *Fetcher) parallel(c Class) int {
	n := max(1, f.meter.Parallel(c))
	if c == Ahead {
		return min(n, maxAhead)
	}
	return n
}

// underWay counts the transfers of a class that get on, and how many bytes are
// still to come of them. Those at hosts that say nothing don't count: others
// need not stand still because one registry is down.
func (f *Fetcher) underWay(c Class, r *round) (n int, left int64) {
	for t := range f.queue.transfers {
		if t.place != nil && t.place.lead != t {
			continue // one stands for all of the stream
		}
		if t.class == c && !t.ticket.idle && !f.silent(t.ticket.host, r.now) {
			n++
			if t.place != nil {
				left += t.place.end - t.place.at
				continue
			}
			left += t.l.tree.Member(t.end-1).End - t.l.tree.Member(t.at).Offset
		}
	}
	return n, left
}

// ticketAt returns a ticket to ask for members of a layer that nobody waits
// for, or nil.
func (f *Fetcher) ticketAt(l *layer, c Class, r *round) *ticket {
	if l.from.cover.by != nil {
		if c == Hot && l.from.cover.pushing {
			return nil // it is on its way
		}
		if h := f.host(pushHost); len(h.tickets) > 0 && f.silent(h, r.now) {
			r.later(r.now.Add(retry))
			return nil // who says nothing is not asked for more
		}
		return f.pushTicket(c)
	}
	if r.shut[l] || l.whole && l.active > 0 {
		return nil // one follows the blob; others would only wait beside it
	}
	h, src := f.pick(&l.from, forChunks, c, r)
	if h == nil || f.silent(h, r.now) && h.err == nil {
		r.shut[l] = true // who says nothing is not asked for more
		return nil
	}
	return f.issue(h, src, forChunks, c)
}

// demandSpan is how many bytes of the blob a demand's request may have: what is
// waited for, and on a link that is fast enough not to notice a little more,
// because what may follow is read ahead beside it. Of a hot set it brings what
// is waited for alone: the plan brings the rest.
func (f *Fetcher) demandSpan(o origin) int64 {
	if has(o.l.planned, o.member()) {
		return 0
	}
	return min(f.meter.BandwidthDelay()/2, 64<<10)
}

// bulkSpan is the size of requests that complete layers: large enough that few
// of them keep the link full, small enough that what is wanted of the end of
// one is not far (ride.go). At the least, headers are about 1% of it.
func (f *Fetcher) bulkSpan() int64 {
	return min(max(2*f.meter.BandwidthDelay(), 32<<10), 8<<20)
}

// errand is a request that is no transfer: for a table, or for a whole blob.
type errand struct {
	kind    kind
	class   func() Class // f.mu is held
	from    *origins
	granted chan *ticket // holds one
}

// ask waits for leave to make a request. The ticket must be given back.
func (f *Fetcher) ask(ctx context.Context, e *errand) (*ticket, error) {
	e.granted = make(chan *ticket, 1)
	f.mu.Lock()
	f.queue.errands = append(f.queue.errands, e)
	f.dispatch()
	f.mu.Unlock()
	select {
	case t := <-e.granted:
		return t, nil
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := slices.Index(f.queue.errands, e); i >= 0 {
		f.queue.errands = slices.Delete(f.queue.errands, i, i+1)
	} else {
		(<-e.granted).discard()
	}
	return nil, ctx.Err()
}

// runErrand lets the most urgent errand go that can. f.mu is held.
func (f *Fetcher) runErrand(r *round) bool {
	var best *errand
	var class Class
	for _, e := range f.queue.errands {
		c := e.class()
		if best != nil && c >= class || !r.admitted(c) {
			continue
		}
		if h, _ := f.pick(e.from, e.kind, c, r); h != nil {
			best, class = e, c
		}
	}
	if best == nil {
		return false
	}
	h, src := f.pick(best.from, best.kind, class, r)
	f.queue.errands = slices.DeleteFunc(f.queue.errands, func(e *errand) bool { return e == best })
	best.granted <- f.issue(h, src, best.kind, class)
	return true
}
