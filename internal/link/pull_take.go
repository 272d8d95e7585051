package link

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/link/wire"
)

// take delivers a record. Errors that end the session are ErrProtocol and
// ErrContent; the pull's own end is noted there.
func (p *Pull) take(ctx context.Context, r *record, unasked *idle) error {
	switch k := r.head.GetKind().(type) {
	case *wire.Head_Manifest:
		return p.takeManifest(ctx, r, k.Manifest)
	case *wire.Head_Config:
		return p.takeConfig(ctx, r)
	case *wire.Head_Plan:
		return p.takePlan(ctx, k.Plan)
	case *wire.Head_Table:
		return p.takeTable(ctx, r, k.Table)
	case *wire.Head_Chunk:
		return p.takeChunk(ctx, r, k.Chunk, unasked)
	case *wire.Head_Done:
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.complete && !p.ended {
			p.complete = true
			close(p.done)
		}
	}
	return nil
}

// delivered ends the pull if the Sink has failed; the session is none the worse.
func (p *Pull) delivered(err error) error {
	if err != nil {
		p.fail(err)
	}
	return nil
}

// fail ends the pull with err.
func (p *Pull) fail(err error) {
	p.s.forget(p)
	p.end(err)
}

func (p *Pull) takeManifest(ctx context.Context, r *record, m *wire.Manifest) error {
	body, err := decode(r.head.GetCodec(), r.payload, r.head.GetLength(), nil)
	if err != nil {
		return broken("manifest: %w", err)
	}
	d := digest.NewDigestFromBytes(digest.SHA256, m.GetDigest())
	if digest.FromBytes(body) != d {
		return fmt.Errorf("link: manifest %s: %w", d, ErrContent)
	}
	if !m.GetIndex() {
		var parsed ocispec.Manifest
		if err := json.Unmarshal(body, &parsed); err != nil {
			return broken("manifest %s: %w", d, err)
		}
		p.mu.Lock()
		if p.state.manifest != "" && p.state.manifest != d {
			p.state = pullState{} // the tag means something else by now
		}
		p.manifest, p.raw, p.state.manifest, p.state.config = &parsed, body, d, false
		p.state.chunks = make([]Chunks, len(parsed.Layers))
		p.mu.Unlock()
	}
	return p.delivered(p.sink.Manifest(ctx, Manifest{MediaType: m.GetMediaType(), Digest: d, Body: body, Index: m.GetIndex()}))
}

func (p *Pull) takeConfig(ctx context.Context, r *record) error {
	p.mu.Lock()
	m := p.manifest
	p.mu.Unlock()
	if m == nil {
		return broken("a config before its manifest")
	}
	body, err := decode(r.head.GetCodec(), r.payload, r.head.GetLength(), nil)
	if err != nil {
		return broken("config: %w", err)
	}
	if digest.FromBytes(body) != m.Config.Digest {
		return fmt.Errorf("link: config %s: %w", m.Config.Digest, ErrContent)
	}
	if err := p.sink.Config(ctx, m.Config.Digest, body); err != nil {
		return p.delivered(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.config = true
	return nil
}

// maxItems bounds a plan: tables and chunks of all layers.
const maxItems = 1 << 32

func (p *Pull) takePlan(ctx context.Context, m *wire.Plan) error {
	outlines, err := p.setPlan(m)
	if err != nil {
		return err
	}
	return p.delivered(p.sink.Plan(ctx, outlines))
}

func (p *Pull) setPlan(m *wire.Plan) (outlines []int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.manifest == nil || len(m.GetDigest()) != sha256.Size || m.GetItems() > maxItems || m.GetHot() > m.GetItems() {
		return nil, broken("a plan that can't be one")
	}
	for _, layer := range m.GetOutlines() {
		if len(outlines) >= len(p.manifest.Layers) || int(layer) >= len(p.manifest.Layers) || !p.maybeOutline(p.manifest.Layers[layer]) {
			return nil, broken("an outline of layer %d, for which the proxy may not vouch", layer)
		}
		outlines = append(outlines, int(layer))
	}
	if !bytes.Equal(p.state.plan, m.GetDigest()) {
		p.state.plan, p.state.position, p.state.got = m.GetDigest(), 0, nil
	}
	p.state.items, p.state.hot = m.GetItems(), m.GetHot()
	return outlines, nil
}

// maybeOutline tells whether a layer's table may be the proxy's word: not if the
// image says what it is. req.Outlines never changes.
func (p *Pull) maybeOutline(desc ocispec.Descriptor) bool {
	_, said := desc.Annotations[annotation.TOCDigest]
	return !said && p.req.GetOutlines()
}

func (p *Pull) takeTable(ctx context.Context, r *record, t *wire.Table) error {
	p.mu.Lock()
	m := p.manifest
	p.mu.Unlock()
	if m == nil || int(t.GetLayer()) >= len(m.Layers) {
		return broken("a table of layer %d, which there is not", t.GetLayer())
	}
	desc := m.Layers[t.GetLayer()]
	want := digest.Digest(desc.Annotations[annotation.TOCDigest])
	if t.GetFormat() == FormatEStargz && digest.NewDigestFromBytes(digest.SHA256, t.GetDigest()) != want {
		return fmt.Errorf("link: table of layer %s: %w: it is %x, not %s", desc.Digest, ErrContent, t.GetDigest(), want)
	}
	var diffID digest.Digest
	if t.GetFormat() == FormatOutline {
		if !p.maybeOutline(desc) || len(t.GetDiffId()) != sha256.Size {
			return broken("an outline of layer %d, for which the proxy may not vouch", t.GetLayer())
		}
		diffID = digest.NewDigestFromBytes(digest.SHA256, t.GetDiffId())
	}
	body, err := decode(r.head.GetCodec(), r.payload, r.head.GetLength(), nil)
	if err != nil {
		return broken("table: %w", err)
	}
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], t.GetDigest()) {
		return fmt.Errorf("link: table of layer %s: %w", desc.Digest, ErrContent)
	}
	chunks, err := p.sink.Table(ctx, Table{Layer: int(t.GetLayer()), Desc: desc, Format: t.GetFormat(), Digest: digest.NewDigestFromBytes(digest.SHA256, t.GetDigest()), Payload: t.GetPayload(), DiffID: diffID, Body: body})
	if err != nil {
		return p.delivered(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.chunks[t.GetLayer()] = chunks
	return p.advance(r.head, chunkKey{t.GetLayer(), tableKey})
}

func (p *Pull) takeChunk(ctx context.Context, r *record, m *wire.Chunk, unasked *idle) error {
	k := chunkKey{m.GetLayer(), m.GetChunk()}
	asked := p.begins(k)
	defer p.ends()
	if r.head.GetItem() == 0 && !asked {
		// A demand and its chunk may cross; but not without end.
		if err := unasked.add(r); err != nil {
			return err
		}
	}
	chunks, err := p.chunksOf(ctx, m.GetLayer())
	if err != nil {
		return err
	}
	if int64(m.GetChunk()) >= int64(chunks.NumChunks()) {
		return broken("chunk %d of layer %d, which has %d", m.GetChunk(), m.GetLayer(), chunks.NumChunks())
	}
	id, size := chunks.ChunkID(m.GetChunk())
	if r.head.GetLength() != uint64(size) {
		return p.wrongChunk(k, fmt.Errorf("%d bytes, not %d", r.head.GetLength(), size))
	}
	var base []byte
	if r.head.GetCodec() == wire.Codec_CODEC_ZSTD_BASE {
		if base, err = p.base(ctx, m.GetBase()); err != nil {
			return err
		}
	}
	content, err := decode(r.head.GetCodec(), r.payload, r.head.GetLength(), base)
	if err == nil {
		err = id.Verify(content)
	}
	if err != nil {
		return p.wrongChunk(k, err)
	}
	if err := p.sink.Chunk(ctx, int(m.GetLayer()), m.GetChunk(), content); err != nil {
		return p.delivered(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.advance(r.head, k)
}

// begins notes that a chunk is being taken, so that it is not withdrawn meanwhile,
// and tells whether it was demanded.
func (p *Pull) begins(k chunkKey) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taking = k
	_, ok := p.demanded[k]
	return ok
}

func (p *Pull) ends() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taking = noChunk
}

// chunksOf returns what is known of a layer's chunks.
func (p *Pull) chunksOf(ctx context.Context, layer uint32) (Chunks, error) {
	p.mu.Lock()
	m := p.manifest
	var c Chunks
	if m != nil && int(layer) < len(m.Layers) {
		c = p.state.chunks[layer]
	}
	p.mu.Unlock()
	if c != nil {
		return c, nil
	}
	if m == nil || int(layer) >= len(m.Layers) {
		return nil, broken("a chunk of layer %d, which there is not", layer)
	}
	c, err := p.sink.Known(ctx, int(layer), m.Layers[layer])
	if err != nil {
		p.fail(err)
		return nil, err
	}
	if c == nil {
		if p.again() {
			return nil, fmt.Errorf("%w: the table of layer %d is not here after all", errAgain, layer)
		}
		return nil, broken("a chunk of layer %d, before its table", layer)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.chunks[layer] = c
	return c, nil
}

// errAgain ends a session so that the next one asks for something else.
var errAgain = errors.New("link: asking again")

// base returns content that a chunk builds on. If it is not here, the inventory
// was wrong: the pull goes on without one.
func (p *Pull) base(ctx context.Context, b *wire.Base) ([]byte, error) {
	if len(b.GetTable()) != 8 || b.GetLength() > chunk.MaxSize || b.GetOffset() < 0 {
		return nil, broken("a base that can't be one")
	}
	content, err := p.sink.Base(ctx, Base{Table: [8]byte(b.GetTable()), Entry: b.GetEntry(), Offset: b.GetOffset(), Length: b.GetLength()})
	if err == nil {
		return content, nil
	}
	p.again()
	return nil, fmt.Errorf("%w: content is not here after all: %w", errAgain, err)
}

// again has the pull begin anew without what was said to be here. It is false if
// nothing was.
func (p *Pull) again() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.req.GetHave()) == 0 && len(p.req.GetWarm()) == 0 && len(p.req.GetTables()) == 0 {
		return false
	}
	p.req.Have, p.req.Warm, p.req.Tables = nil, nil, nil
	p.state.plan, p.state.position, p.state.partial = nil, 0, nil
	return true
}

// wrongChunk notes a chunk that is not what its table says.
func (p *Pull) wrongChunk(k chunkKey, why error) error {
	p.mu.Lock()
	if p.wrong == nil {
		p.wrong = map[chunkKey]int{}
	}
	p.wrong[k]++
	hopeless := p.wrong[k] >= maxWrong
	p.mu.Unlock()
	err := fmt.Errorf("link: chunk %d of layer %d: %w: %w", k.chunk, k.layer, ErrContent, why)
	if hopeless {
		p.fail(err)
	}
	return err
}

// advance notes that an item is here. p.mu is held.
func (p *Pull) advance(h *wire.Head, k chunkKey) error {
	item := h.GetItem()
	_, asked := p.demanded[k]
	delete(p.demanded, k)
	delete(p.wrong, k)
	switch {
	case item > p.state.items:
		return broken("item %d of %d", item, p.state.items)
	case asked || item == 0: // it may have overtaken others
		if p.state.got == nil {
			p.state.got = map[chunkKey]uint64{}
		}
		p.state.got[k] = item
	case item <= p.state.position:
		return broken("item %d after item %d", item, p.state.position)
	default:
		p.state.position = item
	}
	return nil
}
