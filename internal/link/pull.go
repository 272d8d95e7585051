package link

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"

	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/link/wire"
)

// Sink is where a pull delivers. Its methods are called by one goroutine, in
// the order of arrival, with content that was verified; what they are given is
// theirs. While one runs, nothing more is taken from the link. An error ends the
// pull, and Wait returns it.
type Sink interface {
	Manifest(ctx context.Context, m Manifest) error
	Config(ctx context.Context, d digest.Digest, body []byte) error
	// Plan tells for which layers the proxy vouches: their tables are here, as
	// Request.Tables had it, or come next. It is told anew in each session.
	Plan(ctx context.Context, outlines []int) error
	// Table stores a table of contents and returns the chunks that it has.
	Table(ctx context.Context, t Table) (Chunks, error)
	// Known returns the chunks of a layer whose table Request.Tables named or
	// an image of Request.Have or Warm has; nil if the table is not here after all.
	Known(ctx context.Context, layer int, desc ocispec.Descriptor) (Chunks, error)
	// Chunk stores a chunk of a layer.
	Chunk(ctx context.Context, layer int, number uint32, content []byte) error
	// Base returns content that is here, of an image of Request.Have or Warm.
	Base(ctx context.Context, b Base) ([]byte, error)
	// Status tells what the proxy is at while nothing comes.
	Status(text string)
}

// Chunks says what the chunks of a layer are; toc.Tree knows.
type Chunks interface {
	NumChunks() int
	ChunkID(number uint32) (id chunk.ID, size uint32)
}

// Request is what a node asks for.
type Request struct {
	Reference string // "registry.example/repo:tag" or "…@sha256:…"
	Platform  string // "linux/amd64"
	Depth     Depth
	Have      []string        // images that are here whole: "registry.example/repo@sha256:…"; the one to build on first
	Warm      []string        // the same, of other images whose hot sets are here
	Tables    []digest.Digest // of other images that are here in part
	// Manifest is the image's as far as is known, if it, its config and a part of
	// the image are here. If the image is still that, nothing of it comes again:
	// tables that are not in Tables do, and what is demanded.
	Manifest []byte
	// Outlines says that the proxy is believed what is in layers that were never
	// converted.
	Outlines bool
}

// ErrContent says that a proxy sends content that is not what its digest says.
// The same may be had right elsewhere.
var ErrContent = errors.New("what the proxy sends is not what the image says")

// maxWrong is how often an item may come wrong before the pull ends.
const maxWrong = 3

// Pull is an image that is being asked for. Its methods may be called
// concurrently.
type Pull struct {
	s    *Session
	sink Sink
	done chan struct{} // closed when it has ended

	mu       sync.Mutex
	req      *wire.Pull        // guarded by mu; Resume, Got and Partial are made when it is sent
	manifest *ocispec.Manifest // guarded by mu
	raw      []byte            // guarded by mu; what it was read from
	state    pullState
	demanded map[chunkKey]Lane // guarded by mu; asked for, and have not come
	taking   chunkKey          // guarded by mu; the Sink is being given it
	wrong    map[chunkKey]int  // guarded by mu
	err      error             // guarded by mu
	ended    bool              // guarded by mu
	complete bool              // guarded by mu; Done came
}

// chunkKey names a chunk of a pull; chunk tableKey is the layer's table.
type chunkKey struct {
	layer uint32
	chunk uint32
}

const tableKey = ^uint32(0)

// noChunk is no chunk's key.
var noChunk = chunkKey{^uint32(0), tableKey}

// pullState is what survives a session. It is guarded by Pull.mu.
type pullState struct {
	manifest digest.Digest // it and its config are here; "" before
	config   bool
	plan     []byte
	items    uint64
	hot      uint64
	position uint64
	got      map[chunkKey]uint64 // came out of order: their items; 0: not known
	chunks   []Chunks            // by layer; nil: no table yet
	partial  []*record
}

// know notes that a manifest and its config are here. One that can't be read is
// as good as none.
func (p *Pull) know(raw []byte) {
	var m ocispec.Manifest
	if len(raw) == 0 || json.Unmarshal(raw, &m) != nil {
		return
	}
	sum := sha256.Sum256(raw)
	p.req.Known = sum[:]
	p.manifest, p.raw = &m, raw
	p.state.manifest, p.state.config, p.state.chunks = digest.FromBytes(raw), true, make([]Chunks, len(m.Layers))
}

// Wait waits until the pull has ended: everything is here (nil), the proxy has
// refused it for good (*Refusal), sent wrong content (ErrContent), or the Sink
// failed. A link that is down doesn't end it.
func (p *Pull) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("link: pull %s: %w", p.req.GetReference(), context.Cause(ctx))
	}
}

// Progress is how far a pull is.
type Progress struct {
	Items, Hot, Position uint64 // of the plan; 0 before it has come
	Complete             bool
}

// Progress returns how far the pull is.
func (p *Pull) Progress() Progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Progress{Items: p.state.items, Hot: p.state.hot, Position: p.state.position, Complete: p.complete}
}

// Demand asks for chunks: in the lane Demand if somebody waits for them, in others
// if they are likely to be wanted, or complete the image. They come through the Sink,
// also after the pull is complete and until Cancel; a demand survives the link.
func (p *Pull) Demand(lane Lane, layer int, numbers ...uint32) {
	p.mu.Lock()
	var ask []uint32
	for _, n := range numbers {
		k := chunkKey{uint32(layer), n} //nolint:gosec // few
		if was, ok := p.demanded[k]; (!ok || lane < was) && !p.ended {
			p.demanded[k] = lane
			ask = append(ask, n)
		}
	}
	r := p.s.counter()
	seen := r.Load()
	var all []*wire.Up
	for part := range slices.Chunk(ask, MaxDemand) {
		all = append(all, p.demand(lane, uint32(layer), part, seen)) //nolint:gosec // few
	}
	p.mu.Unlock()
	if len(all) > 0 {
		p.s.say(r, all...)
	}
}

// Withdraw takes demands back: the chunks came with another pull, or from elsewhere.
// The proxy is not told; what it sends of them is on its way.
func (p *Pull) Withdraw(layer int, numbers ...uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range numbers {
		if k := (chunkKey{uint32(layer), n}); k != p.taking { //nolint:gosec // few
			delete(p.demanded, k)
		}
	}
}

// demand makes the message. p.mu is held.
func (p *Pull) demand(lane Lane, layer uint32, numbers []uint32, seen uint64) *wire.Up {
	return &wire.Up{Kind: &wire.Up_Demand{Demand: &wire.Demand{
		Pull: p.req.GetId(), Layer: layer, Chunks: numbers, Lane: uint32(lane), Records: seen,
	}}}
}

// Cancel ends the pull.
func (p *Pull) Cancel() {
	p.s.forget(p)
	p.end(context.Canceled)
}

// end notes how the pull ended.
func (p *Pull) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended && !p.complete {
		p.err = err
		close(p.done)
	}
	p.ended = true
}

// waiting tells whether something is to come. p.mu is not held.
func (p *Pull) waiting() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.ended && (!p.complete || len(p.demanded) > 0)
}

// keyOf returns what a record of a pull brings; ok is false for what has no
// key.
func keyOf(h *wire.Head) (k chunkKey, ok bool) {
	switch kind := h.GetKind().(type) {
	case *wire.Head_Table:
		return chunkKey{kind.Table.GetLayer(), tableKey}, true
	case *wire.Head_Chunk:
		return chunkKey{kind.Chunk.GetLayer(), kind.Chunk.GetChunk()}, true
	}
	return k, false
}

// request returns the message that asks for what is missing.
func (p *Pull) request() []*wire.Up {
	p.mu.Lock()
	defer p.mu.Unlock()
	m, ok := proto.Clone(p.req).(*wire.Pull)
	if !ok {
		return nil
	}
	p.state.describe(m)
	m.Records = p.s.counter().Load()
	all := []*wire.Up{{Kind: &wire.Up_Pull{Pull: m}}}
	type place struct {
		lane  Lane
		layer uint32
	}
	places := map[place][]uint32{}
	for k, lane := range p.demanded {
		places[place{lane, k.layer}] = append(places[place{lane, k.layer}], k.chunk)
	}
	for at, numbers := range places {
		slices.Sort(numbers)
		for part := range slices.Chunk(numbers, MaxDemand) {
			all = append(all, p.demand(at.lane, at.layer, part, m.GetRecords()))
		}
	}
	return all
}

// begun returns what is here of a record that goes on.
func (p *Pull) begun(h *wire.Head) ([]byte, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, r := range p.state.partial {
		if sameForm(r.head, h) {
			p.state.partial = slices.Delete(p.state.partial, i, i+1)
			return r.payload, true
		}
	}
	return nil, false
}

// keep keeps what broke off, the latest first.
func (p *Pull) keep(r *record) {
	if _, ok := keyOf(r.head); !ok {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	k, _ := keyOf(r.head)
	p.state.partial = slices.DeleteFunc(p.state.partial, func(o *record) bool {
		ok, _ := keyOf(o.head)
		return ok == k
	})
	p.state.partial = slices.Insert(p.state.partial, 0, r)
	p.state.partial = p.state.partial[:min(len(p.state.partial), int(NumLanes))]
}
