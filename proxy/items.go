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
				return p.planned(ctx, lane, key{uint32(r.layer), c}, at)
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// sendTable sends a layer's table, unless the node has it or another pull sends it.
func (p *pull) sendTable(ctx context.Context, layer uint16, item uint64) error {
	l := p.layers[layer]
	if p.tables[prefixOf(l.toc)] {
		return nil
	}
	k, id := key{uint32(layer), tableKey}, tableOf(l.toc)
	e, mine := p.ss.ledger.take(id, p.req.GetId(), arrived(p.req.GetRecords()), false)
	if !mine {
		p.leave(k, e)
		return p.ss.ledger.made(ctx, e) // so that it comes before the layer's chunks
	}
	h, payload, err := p.encodeTable(ctx, layer, item)
	if err != nil {
		p.ss.ledger.drop(id, e)
		return err
	}
	return p.putPiece(ctx, p.ss.tableLane(), h, p.behind(h, k, payload), id, e)
}

func (p *pull) encodeTable(ctx context.Context, layer uint16, item uint64) (*wire.Head, []byte, error) {
	l := p.layers[layer]
	codec, payload, length, err := l.table(ctx)
	if err != nil {
		return nil, nil, err
	}
	m := &wire.Table{Layer: uint32(layer), Format: link.FormatEStargz, Payload: l.payload}
	if l.outline != nil {
		m.Format, m.Digest, m.DiffId = link.FormatOutline, l.outline.body[:], l.outline.diffID[:]
	} else if m.Digest, err = hex.DecodeString(l.toc.Encoded()); err != nil {
		return nil, nil, err
	}
	return &wire.Head{Item: item, Codec: codec, Length: uint64(length), Kind: &wire.Head_Table{Table: m}}, payload, nil //nolint:gosec // not negative
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

// planned sends a chunk of the plan, unless it was sent by whoever.
func (p *pull) planned(ctx context.Context, lane link.Lane, k key, item uint64) error {
	if p.isLeftOut(k) {
		return nil
	}
	id := p.layers[k.layer].piece(k.chunk)
	e, mine := p.ss.ledger.take(id, p.req.GetId(), never, false)
	if !mine {
		return nil
	}
	return p.sendChunk(ctx, lane, k, item, id, e)
}

// sendChunk sends a chunk that the ledger has given to this pull. item is 0 for a
// demand.
func (p *pull) sendChunk(ctx context.Context, lane link.Lane, k key, item uint64, id pieceID, e *parcel) error {
	h, payload, err := p.encode(ctx, k, item)
	if err != nil {
		p.ss.ledger.drop(id, e)
		return err
	}
	if err := p.putPiece(ctx, lane, h, payload, id, e); err != nil {
		return err
	}
	p.ss.s.metrics.chunk(lane, int(h.GetLength()), len(payload)) //nolint:gosec // bounded
	if item == 0 {
		p.leaveOut(k)
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
