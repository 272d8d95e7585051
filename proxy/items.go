package proxy

import (
	"context"
	"encoding/hex"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/internal/link/wire"
)

// items sends what the plan has behind an item.
func (p *pull) items(ctx context.Context, plan *plan, from uint64) error {
	at := uint64(0)
	for _, r := range plan.runs {
		if at+uint64(r.count) <= from {
			at += uint64(r.count)
			continue
		}
		for c := r.first; c < r.first+r.count; c++ {
			if at++; at <= from {
				continue
			}
			lane := link.Hot
			if at > plan.hot {
				lane = link.Rest
			}
			err := p.retry(ctx, func() error {
				if r.table {
					return p.sendTable(ctx, r.layer, at)
				}
				return p.sendChunk(ctx, lane, key{uint32(r.layer), c}, at)
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// sendTable sends a layer's table, unless the node has it.
func (p *pull) sendTable(ctx context.Context, layer uint16, item uint64) error {
	l := p.layers[layer]
	if p.tables[prefixOf(l.toc)] {
		return nil
	}
	codec, payload, length, err := l.table(ctx)
	if err != nil {
		return err
	}
	m := &wire.Table{Layer: uint32(layer), Format: link.FormatEStargz, Payload: l.payload}
	if l.outline != nil {
		m.Format, m.Digest, m.DiffId = link.FormatOutline, l.outline.body[:], l.outline.diffID[:]
	} else if m.Digest, err = hex.DecodeString(l.toc.Encoded()); err != nil {
		return err
	}
	h := &wire.Head{Item: item, Codec: codec, Length: uint64(length), Kind: &wire.Head_Table{Table: m}} //nolint:gosec // not negative
	return p.put(ctx, link.Hot, h, p.behind(h, key{uint32(layer), tableKey}, payload), nil)
}

// behind returns what the node lacks of a payload: all, or what is behind the
// beginning that it has of the very same.
func (p *pull) behind(h *wire.Head, k key, payload []byte) []byte {
	p.mu.Lock()
	part := p.begun[k]
	delete(p.begun, k)
	p.mu.Unlock()
	if part == nil || part.GetOffset() == 0 || part.GetOffset() > uint64(len(payload)) {
		return payload
	}
	theirs, ok := proto.Clone(part.GetHead()).(*wire.Head)
	if !ok {
		return payload
	}
	theirs.Pull, theirs.Item, theirs.Offset = h.GetPull(), h.GetItem(), 0
	mine, ok := proto.Clone(h).(*wire.Head)
	if !ok {
		return payload
	}
	mine.Size = uint64(len(payload))
	if !proto.Equal(theirs, mine) {
		return payload
	}
	h.Offset = part.GetOffset()
	return payload[part.GetOffset():]
}

// sendChunk sends a chunk, unless it has been sent. item is 0 for a demand.
func (p *pull) sendChunk(ctx context.Context, lane link.Lane, k key, item uint64) error {
	if !p.claim(k, lane == link.Demand) {
		return nil
	}
	h, payload, err := p.encode(ctx, k, item)
	if err != nil {
		p.unclaim(k)
		return err
	}
	rk := recordKey{p.req.GetId(), k}
	if err := p.put(ctx, lane, h, payload, rk); err != nil {
		return err
	}
	p.ss.s.metrics.chunk(lane, int(h.GetLength()), len(payload)) //nolint:gosec // bounded
	if p.made(k, item) {
		p.ss.peer.Promote(rk)
	}
	return nil
}

// encode makes a chunk's record.
func (p *pull) encode(ctx context.Context, k key, item uint64) (*wire.Head, []byte, error) {
	began := time.Now()
	l := p.layers[k.layer]
	content, err := l.chunk(ctx, k.chunk)
	if err != nil {
		return nil, nil, err
	}
	m := &wire.Chunk{Layer: k.layer, Chunk: k.chunk}
	codec, payload := p.compress(ctx, k, content, m)
	p.ss.s.metrics.encoded(time.Since(began))
	h := &wire.Head{Item: item, Codec: codec, Length: uint64(len(content)), Kind: &wire.Head_Chunk{Chunk: m}}
	return h, p.behind(h, k, payload), nil
}

// claim is what is known of a chunk besides the plan.
type claim uint8

const (
	making claim = iota + 1
	urgent       // it is being made, and somebody waits
	gone         // it was sent or is at the node: the plan leaves it out
)

// claim takes a chunk for whoever is to send it. A demand for one that is being
// made leaves word that somebody waits.
func (p *pull) claim(k key, demanded bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch p.claimed[k] {
	case making:
		if demanded {
			p.claimed[k] = urgent
		}
		return false
	case urgent, gone:
		return false
	}
	p.claimed[k] = making
	return true
}

func (p *pull) unclaim(k key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.claimed, k)
}

// made notes that a chunk is with the Sender, and tells whether somebody waits.
func (p *pull) made(k key, item uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	waited := p.claimed[k] == urgent
	if item > 0 {
		delete(p.claimed, k) // the plan doesn't come to it again
	} else {
		p.claimed[k] = gone
	}
	p.sent.add(k, item)
	delete(p.asked, k)
	return waited
}

// want takes a demand.
func (p *pull) want(m *wire.Demand) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range m.GetChunks() {
		k := key{m.GetLayer(), c}
		if len(p.wanted[m.GetLane()]) >= maxWanted || m.GetLane() == uint32(link.Demand) && p.ss.peer.Promote(recordKey{p.req.GetId(), k}) {
			continue
		}
		if p.sent.underWay(k, m.GetPosition(), m.GetReceived()) {
			continue
		}
		if p.claimed[k] == gone {
			delete(p.claimed, k) // it has arrived, and is wanted again
		}
		p.wanted[m.GetLane()], p.asked[k] = append(p.wanted[m.GetLane()], k), true
		p.owes.Add(1)
	}
	close(p.more)
	p.more = make(chan struct{})
}

// serveDemands sends what was asked for in a lane, in its order.
func (p *pull) serveDemands(ctx context.Context, lane link.Lane) {
	select {
	case <-p.ready:
	case <-ctx.Done():
		return
	}
	for {
		p.mu.Lock()
		more := p.more
		var k key
		var open bool
		n := len(p.wanted[lane])
		if n > 0 {
			k, p.wanted[lane] = p.wanted[lane][0], p.wanted[lane][1:]
			open = p.asked[k]
		}
		p.mu.Unlock()
		if n == 0 {
			select {
			case <-more:
				continue
			case <-ctx.Done():
				return
			}
		}
		var err error
		switch {
		case open:
			err = p.meet(ctx, lane, k)
		case lane == link.Demand: // the plan came to it first
			p.ss.peer.Promote(recordKey{p.req.GetId(), k})
		}
		p.owes.Add(-1)
		if err != nil {
			if ctx.Err() == nil && p.refuse(ctx, err) == nil {
				p.ss.cancel(p.req.GetId())
			}
			return
		}
	}
}

// meet sends what was demanded, if there is such a chunk.
func (p *pull) meet(ctx context.Context, lane link.Lane, k key) error {
	if int(k.layer) >= len(p.layers) || p.layers[k.layer] == nil || int64(k.chunk) >= int64(p.layers[k.layer].tree.NumChunks()) {
		return nil
	}
	return p.retry(ctx, func() error { return p.sendChunk(ctx, lane, k, 0) })
}

// sentLog remembers what was handed to the Sender lately, to tell a chunk that
// is on its way from one that was lost at the node. One that is older than the
// log is taken for arrived: at worst it crosses twice.
type sentLog struct {
	ring    [1024]sentChunk
	next    int
	demands uint64 // chunks that were no items
}

type sentChunk struct {
	key  key
	ok   bool
	item uint64 // of the plan, or
	nth  uint64 // the how manieth chunk outside of it
}

func (l *sentLog) add(k key, item uint64) {
	c := sentChunk{key: k, ok: true, item: item}
	if item == 0 {
		l.demands++
		c.nth = l.demands
	}
	l.ring[l.next%len(l.ring)] = c
	l.next++
}

func (l *sentLog) find(k key) (sentChunk, bool) {
	for i := range min(l.next, len(l.ring)) {
		if c := l.ring[(l.next-1-i)%len(l.ring)]; c.key == k {
			return c, true
		}
	}
	return sentChunk{}, false
}

// underWay tells whether a chunk was sent and had not arrived when the node was
// at a position and had received so many chunks outside of the plan.
func (l *sentLog) underWay(k key, position, received uint64) bool {
	c, ok := l.find(k)
	if !ok {
		return false
	}
	if c.item > 0 {
		return c.item > position
	}
	return c.nth > received
}
