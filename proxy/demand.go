package proxy

import (
	"context"

	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/internal/link/wire"
)

// maxLeft is how many things that were left to other pulls are remembered before
// those are looked for that have come.
const maxLeft = 1 << 10

// leaveOut has the plan leave a chunk out, if it is still to come to it.
func (p *pull) leaveOut(k key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.has == nil {
		p.has = make([][]uint64, len(p.layers))
	}
	if p.has[k.layer] == nil {
		p.has[k.layer] = make([]uint64, (p.layers[k.layer].tree.NumChunks()+63)/64)
	}
	p.has[k.layer][k.chunk/64] |= 1 << (k.chunk % 64)
}

func (p *pull) isLeftOut(k key) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.has != nil && p.has[k.layer] != nil && p.has[k.layer][k.chunk/64]&(1<<(k.chunk%64)) != 0
}

// there tells whether an image has a chunk, as far as is known.
func (p *pull) there(k key) bool {
	return int(k.layer) < len(p.layers) && p.layers[k.layer] != nil && int64(k.chunk) < int64(p.layers[k.layer].tree.NumChunks())
}

// isReady tells whether layers are set.
func (p *pull) isReady() bool {
	select {
	case <-p.ready:
		return true
	default:
		return false
	}
}

// want takes a demand.
func (p *pull) want(m *wire.Demand) {
	lane, seen := link.Lane(m.GetLane()), arrived(m.GetRecords()) //nolint:gosec // checked when it came
	for _, c := range m.GetChunks() {
		k := key{m.GetLayer(), c}
		if p.isReady() && p.there(k) && p.onItsWay(lane, want{k, seen}) {
			continue
		}
		p.mu.Lock()
		if len(p.wanted[lane]) < maxWanted {
			p.wanted[lane] = append(p.wanted[lane], want{k, seen})
			p.owes.Add(1)
		}
		p.mu.Unlock()
	}
	p.again()
}

// again has serveDemands look again.
func (p *pull) again() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.more)
	p.more = make(chan struct{})
}

// onItsWay tells whether what is wanted was sent, by whichever pull, and had not
// arrived; if it is with the Sender and somebody waits, it is hurried.
func (p *pull) onItsWay(lane link.Lane, w want) bool {
	id := p.layers[w.key.layer].piece(w.key.chunk)
	e, ok := p.ss.ledger.underWay(id, w.seen, lane == link.Demand)
	if !ok {
		return false
	}
	if lane == link.Demand {
		p.ss.peer.Promote(id)
	}
	p.leave(w.key, e)
	return true
}

// leave notes that another pull sends what this one is asked for.
func (p *pull) leave(k key, e *parcel) {
	if e.pull == p.req.GetId() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.left) >= maxLeft {
		seen := arrived(p.ss.seen.Load())
		kept := p.left[:0]
		for _, o := range p.left {
			if p.ss.ledger.coming(o.e, seen) {
				kept = append(kept, o)
			}
		}
		p.left = kept
	}
	p.left = append(p.left, leftOut{k, e})
}

// takeBack asks again for what was left to a pull that has been canceled and had
// not come by then.
func (p *pull) takeBack(canceled uint32, seen arrived) {
	p.mu.Lock()
	kept := p.left[:0]
	for _, o := range p.left {
		switch {
		case o.e.pull != canceled:
			kept = append(kept, o)
		case p.ss.ledger.coming(o.e, seen):
			p.wanted[link.Hot] = append(p.wanted[link.Hot], want{o.key, seen})
			p.owes.Add(1)
		}
	}
	p.left = kept
	p.mu.Unlock()
	p.again()
}

// next takes the next demand of a lane, or returns what is closed when there is one.
func (p *pull) next(lane link.Lane) (w want, ok bool, more <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.wanted[lane]) == 0 {
		return w, false, p.more
	}
	w, p.wanted[lane] = p.wanted[lane][0], p.wanted[lane][1:]
	return w, true, nil
}

// serveDemands sends what was asked for in a lane, in its order.
func (p *pull) serveDemands(ctx context.Context, lane link.Lane) {
	select {
	case <-p.ready:
	case <-ctx.Done():
		return
	}
	for {
		w, ok, more := p.next(lane)
		if !ok {
			select {
			case <-more:
				continue
			case <-ctx.Done():
				return
			}
		}
		err := p.meet(ctx, lane, w)
		p.owes.Add(-1)
		if err != nil {
			if ctx.Err() == nil && p.refuse(ctx, err) == nil {
				p.ss.cancel(p.req.GetId())
			}
			return
		}
	}
}

// meet sends what was demanded, if there is such a thing and it is not on its way.
func (p *pull) meet(ctx context.Context, lane link.Lane, w want) error {
	k := w.key
	if k.chunk == tableKey && int(k.layer) < len(p.layers) && p.layers[k.layer] != nil {
		return p.retry(ctx, func() error { return p.sendTable(ctx, uint16(k.layer), 0) }) //nolint:gosec // below maxLayers
	}
	if !p.there(k) {
		return nil
	}
	id := p.layers[k.layer].piece(k.chunk)
	return p.retry(ctx, func() error {
		e, mine := p.ss.ledger.take(id, p.req.GetId(), w.seen, lane == link.Demand)
		if mine {
			return p.sendChunk(ctx, lane, k, 0, id, e)
		}
		if lane == link.Demand {
			p.ss.peer.Promote(id)
		}
		p.leave(k, e)
		return nil
	})
}
