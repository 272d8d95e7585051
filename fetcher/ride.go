package fetcher

import (
	"slices"
	"time"

	"github.com/airstream-io/airstream/fetcher/uplink"
)

// A demand meets bulk
//
// A reader may want a chunk that a bulk transfer will bring, sooner or later:
// its range is large, and while somebody waits for something else it is not
// even read (package uplink pauses what is less urgent). To wait for it as it
// comes could take minutes; to wait for a transfer that stands still because
// of this very wait would take for ever.
//
// So the transfer is made as urgent as a demand until it has brought the chunk,
// and nothing crosses twice. Bulk is asked for in ranges of two round trips'
// worth for that reason: a ride then costs about as much as a request of its
// own. But the link may have become much slower since the range was asked for,
// or the transfer may be dead. Then the chunk is asked for by itself; when the
// transfer gets there later, it skips what is here. If that is little, it is
// read and thrown away, and these are the only verified bytes that ever cross
// twice; if it is more than what is in flight anyhow, the request is ended, and
// what lies behind is asked for anew.
const (
	// worthRiding is how many times longer a ride may take than a request of
	// its own, beside rideGrace. Guesses: with ranges of two round trips it is
	// never reached unless the link has changed.
	worthRiding = 3
	rideGrace   = time.Second
	// skipFloor is how many bytes are always rather skipped than asked for
	// anew: what one more request costs in headers and time. A guess.
	skipFloor = 16 << 10
)

// promotable is a stream whose urgency can be changed while it arrives.
// Fetcher.mu is held.
type promotable interface{ SetClass(c uplink.Class) }

// ride has a flight come with a transfer that brings it anyhow, if that is
// soon enough. f.mu is held.
func (f *Fetcher) ride(fl *flight) bool {
	for _, t := range fl.carriers {
		if !f.soon(t, fl.piece) {
			continue
		}
		fl.riding = t
		if t.riders++; t.riders == 1 {
			t.setClass(Demand)
		}
		return true
	}
	return false
}

// alight ends a flight's ride. f.mu is held.
func (f *Fetcher) alight(fl *flight) {
	t := fl.riding
	if t == nil {
		return
	}
	fl.riding = nil
	if t.riders--; t.riders == 0 {
		t.setClass(t.class)
	}
}

// reconsider ends rides with transfers that have fallen silent. f.mu is held.
func (f *Fetcher) reconsider(r *round) {
	for t := range f.queue.transfers {
		if t.riders == 0 {
			continue
		}
		if at := t.ticket.last().Add(f.patience()); at.After(r.now) {
			r.later(at)
			continue
		}
		for p := range t.pieces {
			if fl := f.queue.flights[p]; fl != nil && fl.riding == t {
				f.alight(fl)
				f.hurry(fl)
			}
		}
	}
}

// urgency is the class that a transfer has now. f.mu is held.
func (t *transfer) urgency() Class {
	if t.riders > 0 {
		return Demand
	}
	return t.class
}

func (t *transfer) setClass(c Class) {
	t.ticket.class = c
	if t.stream != nil {
		t.stream.SetClass(c)
	}
}

// soon tells whether a transfer, if nothing goes before it, brings a piece
// about as soon as a request of its own would. f.mu is held.
func (f *Fetcher) soon(t *transfer, p piece) bool {
	state := f.meter.State()
	if state.Rate <= 0 {
		return true
	}
	now := time.Now()
	quiet := now.Sub(t.ticket.last())
	if t.class == Demand && quiet < f.patience() {
		return true // it is small, and nothing goes before it
	}
	if quiet > f.patience() && !f.pausedByOthers(t) {
		return false // it may be dead
	}
	member, ok := t.pieces[p]
	if !ok {
		return false
	}
	rtt := state.RTT
	if state.Rate > 0 { // without what waits in the queue before it
		rtt = min(rtt, time.Duration(float64(f.meter.BandwidthDelay())/state.Rate*float64(time.Second)))
	}
	crossing := func(bytes int64) time.Duration {
		return time.Duration(float64(bytes) / state.Rate * float64(time.Second))
	}
	m := t.l.tree.Member(member)
	var ride time.Duration
	if t.place != nil {
		ride = crossing(t.place.ends[p] - t.place.at)
	} else {
		ride = crossing(m.End - t.l.tree.Member(t.at).Offset)
	}
	if !t.ticket.answered {
		ride += max(0, rtt-now.Sub(t.ticket.began))
	}
	own := rtt + crossing(m.End-m.Offset)
	return ride <= worthRiding*own+rideGrace
}

// pausedByOthers tells whether something more urgent than a transfer is under
// way, so that its silence says nothing. f.mu is held.
func (f *Fetcher) pausedByOthers(t *transfer) bool {
	for _, h := range f.hosts {
		for o := range h.tickets {
			if o.class < t.urgency() {
				return true
			}
		}
	}
	return false
}

// nextNeeded returns the first member from m on that a transfer still has to
// bring something of; t.end if there is none. f.mu is held.
func (t *transfer) nextNeeded(m uint32) uint32 {
	if len(t.pieces) == 0 {
		return t.end
	}
	for ; m < t.end; m++ {
		first, end := t.l.tree.MemberChunks(m)
		for c := first; c < end; c++ {
			if p, _ := t.l.pieceOf(c); t.brings(p) {
				return m
			}
		}
	}
	return m
}

func (t *transfer) brings(p piece) bool { _, ok := t.pieces[p]; return ok }

// worthSkipping tells whether it costs less to read and throw away n bytes
// than to end the request and make another one: as much would be on its way
// by then.
func (f *Fetcher) worthSkipping(n int64) bool {
	return n <= max(skipFloor, f.meter.BandwidthDelay())
}

// carried tells whether a piece is on its way. f.mu is held.
func (f *Fetcher) carried(p piece) bool {
	fl := f.queue.flights[p]
	return fl != nil && len(fl.carriers) > 0
}

// board makes a transfer carry a piece. f.mu is held.
func (f *Fetcher) board(t *transfer, p piece, c uint32) {
	fl := f.flight(p)
	if len(fl.origins) == 0 {
		fl.origins = append(fl.origins, origin{t.l, c})
	}
	if !slices.Contains(fl.carriers, t) {
		fl.carriers = append(fl.carriers, t)
	}
	t.pieces[p] = t.l.tree.Chunk(c).Member
	f.unqueue(fl)
}
