package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/internal/toc"
)

// shorePull is an image that the proxy sends: it stores what comes where the
// mirror and the fetcher look for it.
type shorePull struct {
	s    *onShore
	src  catalog.Source
	ref  string
	pull *link.Pull

	known knownImage  // what is here of it
	word  atomic.Bool // the proxy vouches for layers of it

	mu      sync.Mutex
	changed chan struct{}             // guarded by mu; closed and replaced when what follows changes
	root    registry.Manifest         // guarded by mu; what ref means; no digest: not known yet
	own     registry.Manifest         // guarded by mu; the platform's
	listed  map[digest.Digest]bool    // guarded by mu; what root lists, if it is an index
	config  bool                      // guarded by mu; own's config is here
	err     error                     // guarded by mu
	at      map[digest.Digest]uint32  // guarded by mu; table to slot
	classes map[chunkOf]fetcher.Class // guarded by mu; of chunks that were asked for
	places  map[int]uint32            // guarded by mu; layer to slot
	awaits  bool                      // guarded by mu; outlines may come
	planned bool                      // guarded by mu; pending is known
	pending map[int]bool              // guarded by mu; layers whose outlines are to come
	says    string                    // guarded by mu; what the proxy is at
}

// change has everybody look again. p.mu is held.
func (p *shorePull) change() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// state returns what ref means, or the platform's manifest if it is d, once that
// is known with all that the mirror asks for next.
func (p *shorePull) state(d digest.Digest) (m registry.Manifest, done bool, changed <-chan struct{}, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m = p.root
	if d != "" {
		m = p.own
	}
	// With the config at hand, learning of the image asks for nothing more.
	done = m.Digest != "" && (p.config || p.listed != nil && d == "")
	return m, done, p.changed, p.err
}

// mayBe tells whether the pull brings, or may yet bring, the manifest d.
func (p *shorePull) mayBe(d digest.Digest) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err == nil && (p.own.Digest == d || p.own.Digest == "" && (p.root.Digest == "" || p.listed[d]))
}

// slots returns the slots of the layers that the pull brings.
func (p *shorePull) slots() (slots []uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, slot := range p.places {
		slots = append(slots, slot)
	}
	return slots
}

// follow waits for the end of the pull.
func (p *shorePull) follow() {
	err := p.pull.Wait(p.s.run)
	if p.s.run.Err() != nil {
		return
	}
	p.s.dropCookie(p)
	if err == nil {
		err = p.unchanged()
	}
	if err == nil {
		p.noMore()
		pushed, _ := p.s.divide(p)
		p.s.n.fetcher.Pushed(pushed...)
		return
	}
	if !errors.Is(err, context.Canceled) {
		p.s.log.Warn("the proxy does not send an image", slog.String("image", p.src.Host+"/"+p.src.Repo), slog.String("ref", p.ref), slog.Any("error", err))
	}
	p.mu.Lock()
	p.err = err
	p.change()
	p.mu.Unlock()
	p.s.forget(p, true)
}

// unchanged notes that ref means what it meant before, if the proxy sent no other
// manifest.
func (p *shorePull) unchanged() error {
	p.mu.Lock()
	changed := p.own.Digest != ""
	p.mu.Unlock()
	if changed {
		return nil
	}
	if err := p.cover(p.known.manifest); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.root, p.config = p.known.root, true
	p.own = registry.Manifest{Digest: digest.FromBytes(p.known.manifest), MediaType: p.known.root.MediaType, Body: p.known.manifest}
	p.change()
	return nil
}

// asked notes how urgent chunks are, for the budgets.
func (p *shorePull) asked(class fetcher.Class, layer int, chunks []uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range chunks {
		p.classes[chunkOf{layer, c}] = class
	}
}

// idle tells whether nothing is to come that was asked for.
func (p *shorePull) idle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.classes) == 0 && p.pull.Progress().Complete
}

// chunkOf names a chunk of an image.
type chunkOf struct {
	layer  int
	number uint32
}

// classOf returns how urgent a chunk is that has come. One that nobody asked for is
// hot.
func (p *shorePull) classOf(c chunkOf) fetcher.Class {
	p.mu.Lock()
	defer p.mu.Unlock()
	class, ok := p.classes[c]
	if !ok {
		return fetcher.Hot
	}
	delete(p.classes, c)
	return class
}

// Manifest implements link.Sink.
func (p *shorePull) Manifest(_ context.Context, m link.Manifest) error {
	p.alive(fetcher.Demand)
	n := p.s.n
	if err := errors.Join(n.store.PutBlob(m.Digest, m.Body), n.catalog.SetMediaType(m.Digest, m.MediaType)); err != nil {
		return err
	}
	man := registry.Manifest{Digest: m.Digest, MediaType: m.MediaType, Body: m.Body}
	var listed map[digest.Digest]bool
	if m.Index {
		var index ocispec.Index
		if err := json.Unmarshal(m.Body, &index); err != nil {
			return fmt.Errorf("index %s: %w", m.Digest, err)
		}
		listed = map[digest.Digest]bool{}
		for _, d := range index.Manifests {
			listed[d.Digest] = true
		}
	} else if err := p.cover(m.Body); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if m.Index {
		p.root, p.listed = man, listed
	} else {
		if p.own = man; p.listed == nil {
			p.root = man
		}
	}
	p.change()
	return nil
}

// cover gives slots to the layers of a manifest, and has the fetcher leave them to
// the proxy.
func (p *shorePull) cover(manifest []byte) error {
	layers, err := p.s.n.catalog.Layers(p.src, manifest)
	if errors.Is(err, catalog.ErrInvalid) {
		return nil // no image; whoever asked must know what it is
	}
	if err != nil {
		return err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return err
	}
	at, places := map[digest.Digest]uint32{}, map[int]uint32{}
	for _, l := range layers {
		at[l.TOC] = l.Slot
	}
	p.s.mu.Lock()
	for i, desc := range m.Layers {
		if slot := at[annotation.TableOf(desc.Digest, desc.Annotations)]; slot > 0 {
			places[i] = slot
			// What another pull has been asked for, or is about to bring, stays with it.
			if was := p.s.bySlot[slot].pull; was == nil || was == p {
				p.s.bySlot[slot] = shorePlace{p, i}
			}
		}
	}
	given := p.s.given
	p.s.mu.Unlock()
	p.mu.Lock()
	p.at, p.places, p.awaits = at, places, p.s.awaitsOutlines(&m)
	p.mu.Unlock()
	if given {
		return nil
	}
	p.s.cover(p)
	if given, _ = p.s.givenUp(); given { // meanwhile
		p.s.n.fetcher.Uncover(p.slots()...)
	}
	return nil
}

// Config implements link.Sink.
func (p *shorePull) Config(_ context.Context, d digest.Digest, body []byte) error {
	p.alive(fetcher.Demand)
	if err := p.s.n.store.PutBlob(d, body); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.config = true
	p.change()
	return nil
}

func (p *shorePull) slot(layer int) (uint32, error) {
	p.mu.Lock()
	covered := p.places != nil
	p.mu.Unlock()
	if !covered { // no manifest came: it is the one that is known
		if err := p.cover(p.known.manifest); err != nil {
			return 0, err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	slot, ok := p.places[layer]
	if !ok {
		return 0, fmt.Errorf("layer %d of %s/%s is not lazy", layer, p.src.Host, p.src.Repo)
	}
	return slot, nil
}

// Table implements link.Sink.
func (p *shorePull) Table(ctx context.Context, t link.Table) (link.Chunks, error) {
	p.alive(fetcher.Demand)
	var slot uint32
	var err error
	switch t.Format {
	case link.FormatEStargz:
		slot, err = p.slot(t.Layer)
	case link.FormatOutline:
		if slot, err = p.takeOutline(t); errors.Is(err, catalog.ErrConflict) {
			p.s.log.WarnContext(ctx, "what the proxy says of a layer is not taken; the layer crosses whole", slog.String("image", p.src.Host+"/"+p.src.Repo), slog.Any("error", err))
			p.arrived(t.Layer)
			return noChunks{}, nil
		}
	default:
		err = fmt.Errorf("a table of contents of format %q, which this version does not know", strings.ToValidUTF8(t.Format, "?"))
	}
	if err != nil {
		return nil, err
	}
	tree, err := p.s.n.fetcher.PutTable(ctx, slot, t.Body, t.Payload)
	if err != nil {
		return nil, err
	}
	p.arrived(t.Layer)
	return treeChunks{tree}, nil
}

// Known implements link.Sink.
func (p *shorePull) Known(_ context.Context, layer int, _ ocispec.Descriptor) (link.Chunks, error) {
	slot, err := p.slot(layer)
	if err != nil {
		return nil, err
	}
	tree, err := p.s.n.fetcher.TreeHere(slot)
	if err != nil || tree == nil {
		return nil, err
	}
	return treeChunks{tree}, nil
}

// Chunk implements link.Sink.
func (p *shorePull) Chunk(_ context.Context, layer int, number uint32, content []byte) error {
	p.alive(p.classOf(chunkOf{layer, number}))
	slot, err := p.slot(layer)
	if err != nil {
		return err
	}
	return p.s.n.fetcher.Push(slot, number, content)
}

// Base implements link.Sink.
func (p *shorePull) Base(_ context.Context, b link.Base) ([]byte, error) {
	p.s.mu.Lock()
	slot, ok := p.s.byTable[b.Table]
	p.s.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("no image has a table %x…", b.Table)
	}
	return p.s.n.fetcher.ReadHere(slot, b.Entry, b.Offset, b.Length)
}

// Status implements link.Sink.
func (p *shorePull) Status(text string) {
	p.alive(fetcher.Demand)
	p.mu.Lock()
	p.says = text
	p.mu.Unlock()
	p.s.log.Debug("the proxy says", slog.String("image", p.src.Host+"/"+p.src.Repo), slog.String("text", text))
}

// noChunks are those of a layer that is not lazy: nobody asks for any.
type noChunks struct{}

// NumChunks implements link.Chunks.
func (noChunks) NumChunks() int { return 0 }

// ChunkID implements link.Chunks.
func (noChunks) ChunkID(uint32) (id chunk.ID, size uint32) { return id, 0 }

// treeChunks is a tree as package link asks for chunks.
type treeChunks struct{ *toc.Tree }

// ChunkID implements link.Chunks.
func (t treeChunks) ChunkID(number uint32) (id chunk.ID, size uint32) {
	k := t.Chunk(number)
	return k.ID, k.Size
}
