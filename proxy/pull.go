package proxy

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/internal/link/wire"
)

// pull is an image that a node is being sent.
type pull struct {
	ss   *session
	req  *wire.Pull
	stop context.CancelFunc

	tables map[string]bool // prefixes of digests of tables that the node has
	ready  chan struct{}   // closed when what follows is set
	layers []*layer        // of the image; nil: not lazy
	bases  bases           // what chunks may build on

	owes atomic.Int64 // what the node waits for: the plan, and demands

	mu      sync.Mutex
	has     [][]uint64            // guarded by mu; by layer: bit set of chunks that the plan leaves out; nil: none
	begun   map[key]*wire.Partial // guarded by mu; what the node has of what broke off
	wanted  [link.NumLanes][]want // guarded by mu; demands, in their order
	left    []leftOut             // guarded by mu; what is wanted and left to other pulls
	opening []ocispec.Descriptor  // guarded by mu; layers
	more    chan struct{}         // guarded by mu; closed and replaced when wanted grows
}

// want is a demand: for what, and how many records the node had seen then.
type want struct {
	key  key
	seen arrived
}

// leftOut is what a pull is asked for and another one sends.
type leftOut struct {
	key key
	e   *parcel
}

// key names a chunk of an image.
type key struct {
	layer uint32
	chunk uint32
}

// tableKey is the chunk of a key that is a layer's table.
const tableKey = ^uint32(0)

// maxWanted bounds what a node may demand ahead of what it got.
const maxWanted = 1 << 16

func newPull(ss *session, req *wire.Pull) *pull {
	p := &pull{ss: ss, req: req, stop: func() {}, tables: map[string]bool{}, ready: make(chan struct{}), begun: map[key]*wire.Partial{}, more: make(chan struct{})}
	for t := range sliceChunks(req.GetTables(), 8) {
		p.tables[string(t)] = true
	}
	for _, part := range req.GetPartial() {
		switch k := part.GetHead().GetKind().(type) {
		case *wire.Head_Chunk:
			p.begun[key{k.Chunk.GetLayer(), k.Chunk.GetChunk()}] = part
		case *wire.Head_Table:
			p.begun[key{k.Table.GetLayer(), tableKey}] = part
		}
	}
	return p
}

func sliceChunks(b []byte, n int) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(b) >= n && yield(b[:n]) {
			b = b[n:]
		}
	}
}

// put hands a record to the session's Sender.
func (p *pull) put(ctx context.Context, lane link.Lane, h *wire.Head, payload []byte) error {
	h.Pull = p.req.GetId()
	return p.ss.peer.Put(ctx, lane, link.Record{Head: h, Payload: payload})
}

// putPiece hands a piece over that the ledger knows of.
func (p *pull) putPiece(ctx context.Context, lane link.Lane, h *wire.Head, payload []byte, id pieceID, e *parcel) error {
	h.Pull = p.req.GetId()
	l := p.ss.ledger
	err := p.ss.peer.Put(ctx, lane, link.Record{Head: h, Payload: payload, Key: id, Sent: func(nth uint64) { l.gone(e, nth) }})
	if err != nil {
		l.drop(id, e)
		return err
	}
	l.handed(e)
	if l.isUrgent(e) {
		p.ss.peer.Promote(id)
	}
	return nil
}

// refuse tells the node why it gets nothing, or not now.
func (p *pull) refuse(ctx context.Context, err error) error {
	r, ok := errors.AsType[*link.Refusal](err)
	if !ok {
		r = &link.Refusal{Reason: wire.Reason_REASON_UPSTREAM, Text: "the proxy has trouble of its own"}
	}
	p.ss.s.metrics.refused(r.Reason)
	m := &wire.Refusal{Reason: r.Reason, Text: r.Text}
	if !r.Since.IsZero() {
		m.Since = r.Since.Unix()
	}
	return p.put(ctx, link.Demand, &wire.Head{Kind: &wire.Head_Refusal{Refusal: m}}, nil)
}

const (
	firstPause = time.Second
	maxPause   = time.Minute
)

// retry does something until it succeeds, or cannot; what is in the way is told
// to the node, once.
func (p *pull) retry(ctx context.Context, do func() error) error {
	told := ""
	for n := 0; ; n++ {
		err := do()
		if err == nil || ctx.Err() != nil || errors.Is(err, link.ErrEnded) {
			return err
		}
		r, ok := errors.AsType[*link.Refusal](err)
		if ok && !r.Temporary() {
			return err
		}
		if err.Error() != told {
			told = err.Error()
			p.ss.log.WarnContext(ctx, "an image cannot be served now", slog.String("image", p.req.GetReference()), slog.Any("error", err))
			if err := p.refuse(ctx, err); err != nil {
				return err
			}
		}
		pause := min(firstPause<<min(n, 10), maxPause)
		t := time.NewTimer(pause/2 + rand.N(pause/2)) //nolint:gosec // jitter, no secret
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

// run sends the image.
func (p *pull) run(ctx context.Context) {
	began := time.Now()
	p.owes.Add(1)
	err := p.send(ctx)
	p.owes.Add(-1)
	if ctx.Err() != nil || errors.Is(err, link.ErrEnded) {
		return
	}
	if err != nil {
		p.ss.log.WarnContext(ctx, "an image is not served", slog.String("image", p.req.GetReference()), slog.Any("error", err))
		if err := p.refuse(ctx, err); err == nil {
			p.ss.cancel(p.req.GetId())
		}
		return
	}
	p.ss.s.metrics.images.Inc()
	p.ss.log.InfoContext(ctx, "an image was sent", slog.String("image", p.req.GetReference()), slog.Duration("took", time.Since(began).Round(time.Millisecond)))
}

// reassure tells a node that waits for something that the proxy is at it, while
// nothing else can be said: else it would take the link for dead. It costs a few
// bytes, and none while the link is what everything waits for.
func (p *pull) reassure(ctx context.Context) {
	every := p.ss.s.opts.Reassure
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		if p.owes.Load() == 0 || p.ss.peer.Quiet() < every || p.ss.peer.TCP().Waiting {
			continue
		}
		h := &wire.Head{Kind: &wire.Head_Status{Status: &wire.Status{Text: p.doing()}}}
		if p.put(ctx, link.Demand, h, nil) != nil {
			return
		}
	}
}

func (p *pull) send(ctx context.Context) error {
	var img *image
	err := p.retry(ctx, func() (err error) {
		img, err = p.ss.s.image(ctx, p.req.GetReference(), p.req.GetPlatform())
		return err
	})
	if err != nil {
		return err
	}
	resumed := p.req.GetResume()
	if sum, err := hex.DecodeString(img.manifest.digest.Encoded()); err != nil || !bytes.Equal(sum, resumed.GetManifest()) {
		resumed = nil
		if err := p.sendNames(ctx, img); err != nil {
			return err
		}
	}
	var plan *plan
	err = p.retry(ctx, func() (err error) {
		plan, err = p.plan(ctx, img)
		return err
	})
	if err != nil {
		return err
	}
	close(p.ready)
	if err := p.put(ctx, link.Demand, &wire.Head{Kind: &wire.Head_Plan{Plan: &wire.Plan{Digest: plan.digest[:], Items: plan.items, Hot: plan.hot, Outlines: p.outlines()}}}, nil); err != nil {
		return err
	}
	from := uint64(0)
	if bytes.Equal(resumed.GetPlan(), plan.digest[:]) {
		from = resumed.GetPosition()
		p.skipGot()
	}
	if err := p.items(ctx, plan, from); err != nil {
		return err
	}
	return p.put(ctx, link.Rest, &wire.Head{Kind: &wire.Head_Done{Done: &wire.Done{}}}, nil)
}

// skipGot has the plan leave out what came out of order.
func (p *pull) skipGot() {
	for _, g := range p.req.GetGot() {
		if int(g.GetLayer()) >= len(p.layers) || p.layers[g.GetLayer()] == nil {
			continue
		}
		link.Expand(g, uint32(p.layers[g.GetLayer()].tree.NumChunks()), func(c uint32) { //nolint:gosec // below 2^32
			p.leaveOut(key{g.GetLayer(), c})
			p.ss.ledger.here(p.layers[g.GetLayer()].piece(c), p.req.GetId())
		})
	}
}

// sendNames sends manifests and config.
func (p *pull) sendNames(ctx context.Context, img *image) error {
	send := func(d document, index bool) error {
		sum, err := hex.DecodeString(d.digest.Encoded())
		if err != nil {
			return err
		}
		codec, payload := link.Encode(d.body)
		h := &wire.Head{Codec: codec, Length: uint64(len(d.body)), Kind: &wire.Head_Manifest{Manifest: &wire.Manifest{MediaType: d.mediaType, Digest: sum, Index: index}}}
		return p.put(ctx, link.Demand, h, payload)
	}
	if img.index != nil {
		if err := send(*img.index, true); err != nil {
			return err
		}
	}
	if err := send(img.manifest, false); err != nil {
		return err
	}
	codec, payload := link.Encode(img.config)
	return p.put(ctx, link.Demand, &wire.Head{Codec: codec, Length: uint64(len(img.config)), Kind: &wire.Head_Config{Config: &wire.Config{}}}, payload)
}
