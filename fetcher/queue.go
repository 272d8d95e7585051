package fetcher

import (
	"fmt"
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

// piece is one chunk of one object: what a reader waits for. Layers and images
// that share a file share its pieces, so that none is fetched twice at once.
type piece struct {
	object toc.ObjectID
	index  uint32
}

// origin is where in a layer a piece is.
type origin struct {
	l     *layer
	chunk uint32
}

func (o origin) member() uint32 { return o.l.tree.Chunk(o.chunk).Member }

// flight is a piece that is wanted or on its way.
type flight struct {
	piece    piece
	origins  []origin // layers through which it is wanted; one of them brings it
	waiters  int
	carriers []*transfer   // that will bring it
	riding   *transfer     // the carrier that goes as urgently as a demand because of it
	queued   bool          // it is in queue.waiting
	done     chan struct{} // closed when it is here, or err says why it won't be
	data     []byte        // its bytes, if they are right and can't be stored
	err      error
}

// maxOrigins is how many layers a flight remembers: enough that one dead
// registry doesn't hold up what another has.
const maxOrigins = 8

// queue holds all that is wanted. Everything in it is guarded by Fetcher.mu.
type queue struct {
	flights   map[piece]*flight
	waiting   []*flight // somebody waits and nothing brings it; in order of arrival
	errands   []*errand // requests that are no transfers, in order of arrival
	hot       []hotRun  // what will be wanted, in its order
	ahead     ahead     // what may be wanted next
	walks     []*walk   // layers to be completed, in order of urgency and arrival
	transfers map[*transfer]struct{}
	waits     map[*wait]struct{} // readers that wait now
	lastUse   time.Time          // when somebody last waited
	timer     *time.Timer
}

// wait is a reader that waits.
type wait struct{ since time.Time }

func (q *queue) stopTimer() {
	if q.timer != nil {
		q.timer.Stop()
	}
}

// want says that somebody waits for chunk c of a layer, and returns the flight
// that brings it. f.mu is held.
func (f *Fetcher) want(l *layer, c uint32) *flight {
	p, _ := l.pieceOf(c)
	fl := f.flight(p)
	if !slices.ContainsFunc(fl.origins, func(o origin) bool { return o.l == l }) && len(fl.origins) < maxOrigins {
		fl.origins = append(fl.origins, origin{l, c})
	}
	fl.waiters++
	f.queue.lastUse = time.Now()
	f.hurry(fl)
	return fl
}

// flight returns the flight of a piece, a new one if there is none. f.mu is
// held.
func (f *Fetcher) flight(p piece) *flight {
	fl, ok := f.queue.flights[p]
	if !ok {
		fl = &flight{piece: p, done: make(chan struct{})}
		f.queue.flights[p] = fl
	}
	return fl
}

// hurry sees to it that what somebody waits for comes soon: with a transfer
// that brings it anyhow, or by a request of its own. f.mu is held.
func (f *Fetcher) hurry(fl *flight) {
	if fl.queued || fl.riding != nil || f.ride(fl) {
		return
	}
	fl.queued = true
	f.queue.waiting = append(f.queue.waiting, fl)
}

// unwant says that somebody stopped waiting. What nobody waits for and is not
// on its way is not fetched. f.mu is held.
func (f *Fetcher) unwant(fl *flight) {
	f.queue.lastUse = time.Now()
	if fl.waiters--; fl.waiters > 0 {
		return
	}
	f.alight(fl)
	f.unqueue(fl)
	if len(fl.carriers) == 0 && f.queue.flights[fl.piece] == fl {
		delete(f.queue.flights, fl.piece)
	}
}

// unqueue takes a flight out of those that need a request.
func (f *Fetcher) unqueue(fl *flight) {
	if !fl.queued {
		return
	}
	fl.queued = false
	if i := slices.Index(f.queue.waiting, fl); i >= 0 {
		f.queue.waiting = slices.Delete(f.queue.waiting, i, i+1)
	}
}

// land tells that a piece is here, or that err is why it won't be. data are its
// bytes if they could not be stored. f.mu is held.
func (f *Fetcher) land(p piece, data []byte, err error) {
	fl, ok := f.queue.flights[p]
	if !ok {
		return
	}
	delete(f.queue.flights, p)
	f.alight(fl)
	f.unqueue(fl)
	for _, t := range fl.carriers {
		f.tellPusher(fl, t)
		delete(t.pieces, p)
		t.arrive()
	}
	fl.carriers, fl.data, fl.err = nil, data, err
	close(fl.done)
}

// dropCarrier tells that a transfer will not bring a flight. f.mu is held.
func (f *Fetcher) dropCarrier(fl *flight, t *transfer) {
	fl.carriers = slices.DeleteFunc(fl.carriers, func(o *transfer) bool { return o == t })
	if fl.riding == t {
		f.alight(fl)
	}
	switch {
	case fl.waiters > 0 && len(fl.carriers) == 0 && f.opts.FailFast && f.meter.State().Dark:
		f.land(fl.piece, nil, fmt.Errorf("fetcher: %w", ErrDark))
	case fl.waiters > 0:
		f.hurry(fl)
	case len(fl.carriers) == 0:
		delete(f.queue.flights, fl.piece)
	}
}
