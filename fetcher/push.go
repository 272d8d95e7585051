package fetcher

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/toc"
)

// A pushed layer
//
// A proxy on shore sends tables and hot sets by itself, and whatever else it is
// asked for. A layer that it covers is asked of nobody else: what the queue would
// ask a registry for becomes a transfer without a request, which the Pusher brings
// chunk by chunk. Hot sets and tables are not even asked for, since they are on
// their way. So everything that this package decides, it decides in the same way
// for both: what goes first, what is read ahead, what fills idle time.
//
// When the cover is taken away, because the proxy is out of reach for longer than
// the node's policy has it, what had not come is asked of registries; nothing that
// arrived is lost.

// Pusher brings chunks of the layers that it covers. It is called with locks held,
// and must return at once and not call back.
type Pusher interface {
	// Ask asks for chunks of a layer, with the urgency of class. They come through
	// Push, in any order, once in any case.
	Ask(class Class, slot uint32, chunks []uint32)
	// Came tells that a chunk that was asked for has come, with what somebody else
	// asked for, or of another layer.
	Came(slot uint32, chunk uint32)
}

// pushHost stands for the Pusher where hosts are counted. No registry is called
// that.
const pushHost = "(pushed)"

var pushSource = catalog.Source{Host: pushHost}

// Cover says that p brings the layers in slots from now on. pushing says that
// their hot sets and tables come unasked; Pushed ends that.
func (f *Fetcher) Cover(p Pusher, pushing bool, slots ...uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, slot := range slots {
		f.covers[slot] = cover{by: p, pushing: pushing}
		if l := f.layers[slot]; l != nil {
			l.from.cover = f.covers[slot]
		}
	}
	f.coverChanged()
}

// Pushed says that all has come of the layers in slots that was to come unasked.
func (f *Fetcher) Pushed(slots ...uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, slot := range slots {
		if c, ok := f.covers[slot]; ok {
			c.pushing = false
			f.covers[slot] = c
			if l := f.layers[slot]; l != nil {
				l.from.cover = c
			}
		}
	}
	f.coverChanged()
}

// Uncover takes back what Cover said. What was asked of the Pusher and has not
// come is asked of registries.
func (f *Fetcher) Uncover(slots ...uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, slot := range slots {
		delete(f.covers, slot)
		if l := f.layers[slot]; l != nil {
			l.from.cover = cover{}
		}
	}
	for t := range f.queue.transfers {
		if t.came != nil && slices.Contains(slots, t.l.Slot) && t.cancel != nil {
			t.cancel()
		}
	}
	f.coverChanged()
}

// cover says who brings a layer.
type cover struct {
	by      Pusher // nil: registries
	pushing bool
}

// coverChanged has everybody look again. f.mu is held.
func (f *Fetcher) coverChanged() {
	close(f.recover)
	f.recover = make(chan struct{})
	f.dispatch()
}

// Push delivers a chunk of a layer whose tree is here. It is verified here, too;
// errors are chunk.ErrMismatch, fs.ErrNotExist for a layer that is not known, or
// the disk's, but not while somebody waits who can have it from memory.
func (f *Fetcher) Push(slot, number uint32, content []byte) error {
	l, err := f.layer(slot, false)
	if err != nil {
		return err
	}
	select {
	case <-l.ready:
	default:
		return fmt.Errorf("fetcher: layer %s: a chunk came before its table", l.Blob)
	}
	if l.bad != nil {
		return l.bad
	}
	if int64(number) >= int64(l.tree.NumChunks()) {
		return fmt.Errorf("fetcher: layer %s: chunk %d of %d", l.Blob, number, l.tree.NumChunks())
	}
	p, chunks := l.pieceOf(number)
	k := l.tree.Chunk(number)
	if err := k.ID.Verify(content); err != nil {
		return fmt.Errorf("fetcher: layer %s: %w", l.Blob, err)
	}
	err = f.storePushed(l, number, p, chunks, k, content)
	f.mu.Lock()
	defer f.mu.Unlock()
	fl := f.queue.flights[p]
	if err == nil {
		f.counts.Chunks++
		l.wrong.right(number)
		l.census.set(l, number)
		f.arrived(p)
		f.settled(l)
		content = nil
	} else if fl != nil && fl.waiters > 0 {
		content = slices.Clone(content)
		f.spare.keep(p, content)
		f.cannotStore(err)
		err = nil
	} else {
		f.cannotStore(err)
		return fmt.Errorf("fetcher: %w: %w", errLocal, err)
	}
	if fl != nil {
		for _, t := range fl.carriers {
			if t.came != nil {
				t.landed++
				t.ticket.hear()
			}
		}
	}
	f.land(p, content, nil)
	return err
}

func (f *Fetcher) storePushed(l *layer, number uint32, p piece, chunks uint32, k toc.Chunk, content []byte) error {
	o, err := f.store.Object(p.object, l.tree.Attr(l.tree.ChunkFile(number)).Size, chunks)
	if err != nil {
		return err
	}
	return errors.Join(o.Put(p.index, k, content), o.Close())
}

// receivePushed has the Pusher bring what t is to bring.
func (f *Fetcher) receivePushed(ctx context.Context, t *transfer) error {
	f.mu.Lock()
	var numbers []uint32
	for m := t.first; m < t.end; m++ {
		first, end := t.l.tree.MemberChunks(m)
		for c := first; c < end; c++ {
			if p, _ := t.l.pieceOf(c); t.brings(p) {
				numbers = append(numbers, c)
			}
		}
	}
	by := t.l.from.cover.by
	if by == nil || len(numbers) == 0 {
		t.came = nil
		f.mu.Unlock()
		return nil
	}
	came := t.came
	t.stream = pushed{by, t.l.Slot, t}
	by.Ask(t.urgency(), t.l.Slot, numbers)
	f.mu.Unlock()
	var err error
	select {
	case <-came:
	case <-ctx.Done():
		err = errEnough // what is left is asked for elsewhere
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	t.came, t.stream = nil, nil
	return err
}

// pushed is a transfer that a Pusher brings, as something whose urgency changes.
type pushed struct {
	by   Pusher
	slot uint32
	t    *transfer
}

// SetClass implements promotable. Only what somebody rides with is asked for
// again, more urgently: the rest keeps its place. Fetcher.mu is held.
func (p pushed) SetClass(c Class) {
	if c != Demand {
		return
	}
	f := p.t.ticket.f
	for piece := range p.t.pieces {
		if fl := f.queue.flights[piece]; fl != nil && fl.waiters > 0 {
			for _, o := range fl.origins {
				if o.l == p.t.l {
					p.by.Ask(Demand, p.slot, []uint32{o.chunk})
				}
			}
		}
	}
}

// tellPusher has the Pusher that a flight was asked of by a transfer forget about it.
// f.mu is held.
func (f *Fetcher) tellPusher(fl *flight, t *transfer) {
	ps, ok := t.stream.(pushed)
	if !ok {
		return
	}
	for _, o := range fl.origins {
		if o.l == t.l {
			ps.by.Came(ps.slot, o.chunk)
			return
		}
	}
}

// arrive ends a transfer that a Pusher brings, if nothing of it is to come.
// Fetcher.mu is held.
func (t *transfer) arrive() {
	if t.came != nil && len(t.pieces) == 0 {
		close(t.came)
		t.came = nil
	}
}

// pushTicket is leave to ask the Pusher. f.mu is held.
func (f *Fetcher) pushTicket(class Class) *ticket {
	t := f.issue(f.host(pushHost), pushSource, forChunks, class)
	t.answered = true
	return t
}
