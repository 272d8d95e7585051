package fetcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/artifact"
)

// place is where in a hot blob a transfer is. Fetcher.mu guards it.
type place struct {
	at, end int64           // bytes into the blob: what arrives next, and the end of what was asked for
	ends    map[piece]int64 // of the frames that hold the pieces
	lead    *transfer       // the one that stands for all of the stream
}

// needed returns the chunks of a frame that are missing, if they are most of it;
// of others the layers bring the rest. f.mu is held.
func (s *hotStream) needed(frame *artifact.Frame) (chunks []origin) {
	size := 0
	for _, run := range frame.Chunks {
		l := s.layers[run.Layer]
		for c := run.First; c < run.First+run.Count; c++ {
			p, n := l.pieceOf(c)
			if l.census.has(c) || s.f.carried(p) {
				continue
			}
			if s.f.store.HasChunk(p.object, n, p.index) {
				l.census.set(l, c)
				continue
			}
			chunks = append(chunks, origin{l, c})
			size += int(l.tree.Chunk(c).Size)
		}
	}
	if size*2 < frame.Raw {
		return nil
	}
	return chunks
}

// attempt makes one request for what is missing; more says that there may be
// more to ask for.
func (s *hotStream) attempt(ctx context.Context, o *artifact.Opener) (more bool, err error) {
	f := s.f
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t, err := f.ask(ctx, &errand{kind: forBlob, class: func() Class { return Hot }, from: &s.from})
	if err != nil {
		return false, err
	}
	f.mu.Lock()
	c, err := s.load(t, cancel)
	f.mu.Unlock()
	if err == nil && c != nil {
		err = s.receive(ctx, t, c, o)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if c == nil {
		t.discard()
		f.dispatch()
		return false, err
	}
	landed := s.unload(c)
	if errors.Is(err, errEnough) {
		err = nil
	}
	f.giveBack(t, &s.from, err, landed > 0)
	if isLocal(err) {
		f.cannotStore(err)
	}
	f.dispatch()
	return true, err
}

// convoy is what one request is to bring: frames, and a transfer for each layer.
type convoy struct {
	frames    []artifact.Frame
	place     place
	transfers map[*layer]*transfer
	decoders  map[*layer]*decoder
}

// load decides what the next request is for; nil: nothing is left. f.mu is held.
func (s *hotStream) load(t *ticket, cancel context.CancelFunc) (*convoy, error) {
	f := s.f
	if slices.ContainsFunc(s.layers, func(l *layer) bool { return l.gone }) {
		return nil, fmt.Errorf("fetcher: a layer was just forgotten: %w", ErrBusy)
	}
	c := &convoy{transfers: map[*layer]*transfer{}, decoders: map[*layer]*decoder{}}
	first, last := -1, -1
	span := f.hotSpan()
	for i := range s.frames {
		frame := &s.frames[i]
		chunks := s.needed(frame)
		if len(chunks) == 0 {
			continue
		}
		if first < 0 {
			first = i
			c.place.ends = map[piece]int64{}
		} else if !f.worthSkipping(frame.Offset-s.frames[last].Offset-s.frames[last].Size) || frame.Offset+frame.Size-s.frames[first].Offset > span {
			break
		}
		last = i
		for _, k := range chunks {
			p, _ := k.l.pieceOf(k.chunk)
			f.board(c.transfer(f, t, k.l, cancel), p, k.chunk)
			c.place.ends[p] = frame.Offset + frame.Size
		}
	}
	if first < 0 {
		return nil, nil
	}
	c.frames = s.frames[first : last+1]
	c.place.at, c.place.end = s.frames[first].Offset, s.frames[last].Offset+s.frames[last].Size
	f.counts.Requests++
	return c, nil
}

// transfer returns the transfer for a layer. f.mu is held.
func (c *convoy) transfer(f *Fetcher, tk *ticket, l *layer, cancel context.CancelFunc) *transfer {
	t := c.transfers[l]
	if t == nil {
		t = &transfer{l: l, class: Hot, ticket: tk, done: make(chan struct{}), cancel: cancel, pieces: map[piece]uint32{}, place: &c.place}
		if c.place.lead == nil {
			c.place.lead = t
		}
		c.transfers[l], c.decoders[l] = t, &decoder{f: f, t: t}
		f.queue.transfers[t] = struct{}{}
		l.active++
	}
	return t
}

// unload lets go of what did not come. f.mu is held.
func (s *hotStream) unload(c *convoy) (landed int) {
	f := s.f
	for l, t := range c.transfers {
		landed += t.landed
		left := len(t.pieces) > 0
		for p := range t.pieces {
			if fl := f.queue.flights[p]; fl != nil {
				f.dropCarrier(fl, t)
			}
		}
		t.pieces, t.stream = nil, nil
		l.active--
		f.settle(t, left, nil)
		delete(f.queue.transfers, t)
		close(t.done)
	}
	return landed
}

// receive makes the request, and hands on what it brings frame by frame.
func (s *hotStream) receive(ctx context.Context, t *ticket, c *convoy, o *artifact.Opener) (err error) {
	defer func() {
		for _, d := range c.decoders {
			err = errors.Join(err, d.close())
		}
	}()
	return s.f.get(ctx, t, s.ref.Hot, c.place.at, c.place.end-c.place.at, func(r, body io.Reader) error {
		s.promotable(c, body)
		var packed []byte
		for i := range c.frames {
			frame := &c.frames[i]
			if err := s.arriveAt(c, i); err != nil {
				return err
			}
			packed = slices.Grow(packed[:0], int(frame.Size))[:frame.Size]
			if _, err := io.ReadFull(r, packed); err != nil {
				return err
			}
			raw, err := o.Open(*frame, packed)
			if err != nil {
				return err
			}
			if err := s.put(c, frame, raw); err != nil {
				return err
			}
		}
		return nil
	})
}

// arriveAt notes that frame i arrives. The error is errEnough if it, and what
// follows, has come otherwise, and is too much to be read in vain.
func (s *hotStream) arriveAt(c *convoy, i int) error {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	c.place.at = c.frames[i].Offset
	next := c.place.end // of what is still to be brought
	for _, t := range c.transfers {
		for p := range t.pieces {
			next = min(next, c.place.ends[p])
		}
	}
	vain := int64(0)
	for ; i < len(c.frames) && c.frames[i].Offset+c.frames[i].Size < next; i++ {
		vain += c.frames[i].Size
	}
	if vain > 0 && !s.f.worthSkipping(vain) {
		return errEnough
	}
	return nil
}

// put verifies and stores a frame's chunks.
func (s *hotStream) put(c *convoy, frame *artifact.Frame, raw []byte) error {
	for _, run := range frame.Chunks {
		l := s.layers[run.Layer]
		d := c.decoders[l]
		for n := run.First; n < run.First+run.Count; n++ {
			k := l.tree.Chunk(n)
			p := raw[:k.Size]
			raw = raw[k.Size:]
			if d == nil {
				continue // all of the layer is here
			}
			// Wrong bytes are the blob's fault, and not held against the layer.
			if err := k.ID.Verify(p); err != nil {
				s.f.mu.Lock()
				s.f.counts.Bad++
				s.f.mu.Unlock()
				return fmt.Errorf("fetcher: hot set of layer %s: %w", l.Blob, err)
			}
			if err := d.put(n, k, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// promotable lets the stream become more urgent while a reader of any layer rides
// with it.
func (s *hotStream) promotable(c *convoy, r io.Reader) {
	body, ok := r.(promotable)
	if !ok {
		return
	}
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	for _, t := range c.transfers {
		t.stream = shared{c, body}
		if t.riders > 0 {
			t.stream.SetClass(Demand)
		}
	}
}

// shared is the urgency of a stream that several transfers go by.
type shared struct {
	c    *convoy
	body promotable
}

// SetClass implements promotable: the most urgent of all counts.
func (s shared) SetClass(c uplink.Class) {
	for _, t := range s.c.transfers {
		c = min(c, t.urgency())
	}
	s.body.SetClass(c)
}
