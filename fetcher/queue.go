package fetcher

import (
	"slices"
	"time"

	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/toc"
)

// Class says how urgent a want is; the lower goes first.
type Class = uplink.Class

// The classes, in their order.
const (
	Demand     = uplink.Demand
	Hot        = uplink.Hot
	Ahead      = uplink.Ahead
	Prefetch   = uplink.Prefetch
	Background = uplink.Background
)

const (
	maxDemands = 8 // requests for waiting readers at a time
	maxBulk    = 3 // other requests at a time: with ranges of two round trips' worth the link stays full
)

// piece is one chunk of one object: what a reader waits for. Layers and images
// that share a file share its pieces, so that none is fetched twice at once.
type piece struct {
	object toc.ObjectID
	index  uint32
}

// flight is a piece that is wanted or on its way.
type flight struct {
	piece   piece
	l       *layer // where it is had from
	member  uint32
	waiters int
	active  bool          // a transfer will bring it
	done    chan struct{} // closed when it is here, or err says why it won't be
	err     error
}

// queue holds all that is wanted. Everything in it is guarded by Fetcher.mu.
type queue struct {
	flights map[piece]*flight
	waiting []*flight // not active, somebody waits; in order of arrival
	hot     []hotRun  // what will be wanted, in its order
	ahead   ahead     // what may be wanted next
	walks   []*walk   // images to be completed, in order of arrival
	demands int       // active transfers for waiting readers
	hots    int       // active transfers of hot sets
	aheads  int       // active transfers ahead of readers
	bulk    int       // other active transfers
	lastUse time.Time // when somebody last waited
	timer   *time.Timer
}

func (q *queue) stopTimer() {
	if q.timer != nil {
		q.timer.Stop()
	}
}

// want says that somebody waits for a piece, and returns the flight that
// brings it. f.mu is held.
func (f *Fetcher) want(p piece, l *layer, member uint32) *flight {
	fl, ok := f.queue.flights[p]
	if !ok {
		fl = &flight{piece: p, l: l, member: member, done: make(chan struct{})}
		f.queue.flights[p] = fl
	}
	if fl.waiters++; fl.waiters == 1 && !fl.active {
		f.queue.waiting = append(f.queue.waiting, fl)
	}
	f.queue.lastUse = time.Now()
	return fl
}

// unwant says that somebody stopped waiting. What nobody waits for and is not
// on its way is not fetched. f.mu is held.
func (f *Fetcher) unwant(fl *flight) {
	f.queue.lastUse = time.Now()
	if fl.waiters--; fl.waiters > 0 || fl.active || f.queue.flights[fl.piece] != fl {
		return
	}
	f.queue.drop(fl)
}

// drop takes a flight out of the queue.
func (q *queue) drop(fl *flight) {
	delete(q.flights, fl.piece)
	if i := slices.Index(q.waiting, fl); i >= 0 {
		q.waiting = slices.Delete(q.waiting, i, i+1)
	}
}

// land tells that a piece is here, or that err is why it won't be. f.mu is
// held.
func (f *Fetcher) land(p piece, err error) {
	fl, ok := f.queue.flights[p]
	if !ok {
		return
	}
	f.queue.drop(fl)
	fl.err = err
	close(fl.done)
}

// dispatch starts as many transfers as the limits allow. f.mu is held.
func (f *Fetcher) dispatch() {
	for !f.closing {
		t, wake := f.next()
		if t == nil {
			f.wakeAt(wake)
			return
		}
		f.counts.Requests++
		f.work.Go(func() {
			f.transfer(f.run, t)
			f.mu.Lock()
			defer f.mu.Unlock()
			*f.queue.active(t.class)--
			f.dispatch()
		})
	}
}

// active returns the count of a class's transfers.
func (q *queue) active(c Class) *int {
	switch c {
	case Demand:
		return &q.demands
	case Hot:
		return &q.hots
	case Ahead:
		return &q.aheads
	case Prefetch, Background:
	}
	return &q.bulk
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

// next returns the transfer to start now, or nil and when to ask again.
func (f *Fetcher) next() (t *transfer, wake time.Time) {
	now := time.Now()
	later := func(at time.Time) {
		if wake.IsZero() || at.Before(wake) {
			wake = at
		}
	}
	for i := 0; i < len(f.queue.waiting) && f.queue.demands < maxDemands; {
		fl := f.queue.waiting[i]
		if !fl.active && fl.l.pause.until.After(now) {
			later(fl.l.pause.until)
			i++
			continue
		}
		f.queue.waiting = slices.Delete(f.queue.waiting, i, i+1)
		if fl.active {
			continue // another request has taken it along
		}
		if t := f.plan(fl.l, fl.member, fl.l.tree.NumMembers(), fl.span(), Demand); t.end > t.first {
			f.queue.demands++
			f.counts.Demands++
			return t, wake
		}
		f.land(fl.piece, nil) // it has come meanwhile
	}
	for _, c := range []struct {
		active *int
		limit  int
		plan   func(time.Time) (*transfer, bool)
	}{{&f.queue.hots, maxHot, f.nextHot}, {&f.queue.aheads, maxAhead, f.readAhead}} {
		if *c.active >= c.limit {
			continue
		}
		t, more := c.plan(now)
		if t != nil {
			*c.active++
			return t, wake
		}
		if more {
			later(now)
		}
		if *c.active > 0 {
			return nil, wake // nothing less urgent beside it
		}
	}
	// What is asked for in bulk begins when nobody waits. What waits for a
	// paused layer doesn't count: others need not stand still because one
	// registry is down.
	if f.queue.demands > 0 || f.queue.bulk >= maxBulk {
		return nil, wake
	}
	for _, w := range slices.Clone(f.queue.walks) {
		if w.class == Background {
			if at := f.queue.lastUse.Add(f.opts.IdleAfter); at.After(now) {
				later(at)
				continue
			}
		}
		if at := w.l.pause.until; at.After(now) {
			later(at)
			continue
		}
		t, more := f.step(w)
		if t != nil {
			f.queue.bulk++
			return t, wake
		}
		if more {
			later(now)
		}
	}
	return nil, wake
}

// demandSpan is how many bytes of the blob a demand's request may have: little
// more than what is waited for, because what may follow is read ahead beside it.
const demandSpan = 64 << 10

// span returns how many bytes of the blob the request for a flight may have. Of
// a hot set it brings what is waited for alone: the plan brings the rest.
func (fl *flight) span() int64 {
	if has(fl.l.known().planned, fl.member) {
		return 0
	}
	return demandSpan
}

// bulkSpan is the size of other requests: large enough that maxBulk of them
// keep the link full, small enough that a reader does not wait long behind
// them.
func (f *Fetcher) bulkSpan() int64 {
	return min(max(2*f.meter.BandwidthDelay(), 64<<10), 8<<20)
}
