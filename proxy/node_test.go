package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/internal/toc"
)

// node collects what a pull delivers.
type node struct {
	mu       sync.Mutex
	manifest link.Manifest
	index    link.Manifest
	config   []byte
	trees    map[int]*toc.Tree
	outlines []int
	tables   []link.Table
	order    []string // what came: "table 0", "chunk 0/3"
	chunks   map[[2]int][]byte
	twice    int
	status   []string
	known    func(desc ocispec.Descriptor) *toc.Tree
	base     func(link.Base) ([]byte, error)
	slow     time.Duration
	arrived  chan struct{}
}

func newNode() *node {
	return &node{trees: map[int]*toc.Tree{}, chunks: map[[2]int][]byte{}, arrived: make(chan struct{}, 1<<20)}
}

func (n *node) Manifest(_ context.Context, m link.Manifest) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if m.Index {
		n.index = m
	} else {
		n.manifest = m
	}
	n.order = append(n.order, "manifest")
	return nil
}

func (n *node) Config(_ context.Context, _ digest.Digest, body []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.config = body
	n.order = append(n.order, "config")
	return nil
}

func (n *node) Table(_ context.Context, t link.Table) (link.Chunks, error) {
	parse := toc.Parse
	if t.Format == link.FormatOutline {
		parse = toc.ParseOutline
	}
	tree, err := parse(bytes.NewReader(t.Body), t.Payload)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.trees[t.Layer], n.tables = tree, append(n.tables, t)
	n.order = append(n.order, fmt.Sprintf("table %d", t.Layer))
	return chunksOf{tree}, nil
}

func (n *node) Plan(_ context.Context, outlines []int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.outlines = outlines
	return nil
}

func (n *node) Known(_ context.Context, layer int, desc ocispec.Descriptor) (link.Chunks, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if t := n.trees[layer]; t != nil {
		return chunksOf{t}, nil
	}
	if n.known != nil {
		if t := n.known(desc); t != nil {
			n.trees[layer] = t
			return chunksOf{t}, nil
		}
	}
	return nil, nil //nolint:nilnil // not here
}

func (n *node) Chunk(_ context.Context, layer int, number uint32, content []byte) error {
	if n.slow > 0 {
		time.Sleep(n.slow)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	k := [2]int{layer, int(number)}
	if n.chunks[k] != nil {
		n.twice++
	}
	n.chunks[k] = content
	n.order = append(n.order, fmt.Sprintf("chunk %d/%d", layer, number))
	n.arrived <- struct{}{}
	return nil
}

func (n *node) Base(_ context.Context, b link.Base) ([]byte, error) {
	if n.base == nil {
		return nil, errors.New("no base here")
	}
	return n.base(b)
}

func (n *node) Status(text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.status = append(n.status, text)
}

func (n *node) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.chunks)
}

// chunksOf is a tree as package link asks for it.
type chunksOf struct{ *toc.Tree }

func (t chunksOf) ChunkID(n uint32) (chunk.ID, uint32) {
	k := t.Chunk(n)
	return k.ID, k.Size
}

// want checks that a file is here whole and right.
func (n *node) want(tb testing.TB, img *testImage, layer int, name string) {
	tb.Helper()
	for _, f := range img.files[layer] {
		if f.name == name {
			if got := n.file(tb, img, layer, name); !bytes.Equal(got, f.content) {
				tb.Errorf("%s: %d bytes, want %d", name, len(got), len(f.content))
			}
			return
		}
	}
	tb.Errorf("no file %s", name)
}

func (n *node) file(tb testing.TB, img *testImage, layer int, name string) (b []byte) {
	tb.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	for c, end := img.trees[layer].Chunks(entryOf(tb, img.trees[layer], name)); c < end; c++ {
		b = append(b, n.chunks[[2]int{layer, int(c)}]...)
	}
	return b
}

func await(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for range 1500 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	tb.Fatalf("timed out: %s", what)
}

func wait(tb testing.TB, p *link.Pull) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 20*time.Second)
	defer cancel()
	if err := p.Wait(ctx); err != nil {
		tb.Fatal(err)
	}
}
