package link

import (
	"bytes"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/airstream-io/airstream/internal/link/wire"
)

// record is a record that came whole.
type record struct {
	head    *wire.Head
	payload []byte
}

// receiver puts the pieces of one session together.
type receiver struct {
	lanes [NumLanes]laneIn
	// begun returns what an earlier session brought of a record, if it is the
	// beginning of this one.
	begun func(head *wire.Head) ([]byte, bool)
}

// laneIn is a lane at the receiving end.
type laneIn struct {
	head *wire.Head // nil: between records
	data []byte
}

// bound returns how many bytes a record of a kind may have, as it crosses and
// decoded.
func bound(h *wire.Head) (size, length uint64) {
	switch h.GetKind().(type) {
	case *wire.Head_Manifest:
		return MaxManifest, MaxManifest
	case *wire.Head_Config:
		return MaxConfig, MaxConfig
	case *wire.Head_Table:
		return MaxTable, maxExpanded
	case *wire.Head_Chunk:
		return maxPayload, maxPayload
	case *wire.Head_Part:
		return PartSize, PartSize
	}
	return maxText, maxText
}

// piece takes the next piece. It returns the record that it ends, or nil.
func (r *receiver) piece(m *wire.Down) (*record, error) {
	if m.GetLane() >= uint32(NumLanes) {
		return nil, broken("lane %d", m.GetLane())
	}
	l := &r.lanes[m.GetLane()]
	if h := m.GetHead(); h != nil {
		if l.head != nil {
			return nil, broken("a record begins within another one")
		}
		size, length := bound(h)
		if h.GetSize() > size || h.GetLength() > length || h.GetOffset() > h.GetSize() {
			return nil, broken("a record of %d bytes, %d decoded, from byte %d on", h.GetSize(), h.GetLength(), h.GetOffset())
		}
		l.head, l.data = h, nil
		if h.GetOffset() > 0 {
			before, ok := r.begun(h)
			if !ok || uint64(len(before)) != h.GetOffset() {
				return nil, broken("a record goes on from byte %d, which is not where it broke off", h.GetOffset())
			}
			l.data = before
		}
	}
	if l.head == nil {
		return nil, broken("a piece of no record")
	}
	if uint64(len(l.data))+uint64(len(m.GetData())) > l.head.GetSize() {
		return nil, broken("a record is longer than it says")
	}
	l.data = append(l.data, m.GetData()...)
	if uint64(len(l.data)) < l.head.GetSize() {
		if len(m.GetData()) == 0 && m.GetHead() == nil {
			return nil, broken("an empty piece")
		}
		return nil, nil
	}
	done := &record{l.head, l.data}
	l.head, l.data = nil, nil
	return done, nil
}

// partials returns the records that broke off.
func (r *receiver) partials() (all []*record) {
	for i := range r.lanes {
		if l := &r.lanes[i]; l.head != nil && len(l.data) > 0 {
			all = append(all, &record{l.head, l.data})
		}
	}
	return all
}

// sameForm tells whether two heads are of the same bytes: what came under one is
// the beginning of what comes under the other.
func sameForm(a, b *wire.Head) bool {
	key := func(h *wire.Head) []byte {
		k, err := proto.MarshalOptions{Deterministic: true}.Marshal(&wire.Head{Size: h.GetSize(), Codec: h.GetCodec(), Length: h.GetLength(), Kind: h.GetKind()})
		if err != nil {
			return nil
		}
		return k
	}
	ka, kb := key(a), key(b)
	return ka != nil && bytes.Equal(ka, kb)
}

// idle bounds what a proxy sends to no purpose: news of its health, kinds of
// records that this version doesn't know, what is still under way of a pull that
// was given up.
type idle struct {
	bytes int64
	since time.Time
}

const (
	idleBurst = 4 << 20 // what may be under way of a pull that was given up
	idleRate  = 1 << 10 // bytes/s
)

func (i *idle) add(r *record) error {
	i.bytes += int64(len(r.payload)) + 64
	if i.bytes > idleBurst+int64(time.Since(i.since).Seconds()*idleRate) {
		return broken("%d bytes that nobody asked for", i.bytes)
	}
	return nil
}
