package record

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
)

// Layers serves the layers of an image from local files and writes down what is
// asked for. Slots count from 1, the lowest. Methods are safe for concurrent
// use.
type Layers struct {
	layers []*layer
	cache  cache

	mu    sync.Mutex
	reads []trace.Read       // guarded by mu
	seen  map[event]struct{} // guarded by mu
}

// layer is one that is open.
type layer struct {
	blob  *os.File
	tree  *toc.Tree
	paths []string // by entry
}

// event is what is written down once.
type event struct {
	slot uint32
	kind trace.Kind
	at   uint32 // chunk, or directory
	name string
}

// openLayers opens blobs and verifies their tables of contents.
func openLayers(list []Layer) (_ *Layers, err error) {
	l := &Layers{seen: map[event]struct{}{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	for i, d := range list {
		f, err := os.Open(d.Path)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		l.layers = append(l.layers, &layer{blob: f})
		tree, err := readTree(f, d)
		if err != nil {
			return nil, fmt.Errorf("layer %d: table of contents: %w", i+1, err)
		}
		l.layers[i].tree, l.layers[i].paths = tree, trace.Paths(tree)
	}
	return l, nil
}

func readTree(blob io.ReaderAt, d Layer) (*toc.Tree, error) {
	z, err := gzip.NewReader(io.NewSectionReader(blob, d.TOCOffset, d.Size-d.TOCOffset))
	if err != nil {
		return nil, err
	}
	file := tar.NewReader(z)
	if _, err := file.Next(); err != nil {
		return nil, err
	}
	sum := sha256.New()
	raw := io.TeeReader(io.LimitReader(file, toc.MaxJSONSize), sum)
	tree, err := toc.Parse(raw, d.TOCOffset)
	if _, derr := io.Copy(io.Discard, raw); derr != nil {
		return nil, errors.Join(err, derr)
	}
	if got := fmt.Sprintf("sha256:%x", sum.Sum(nil)); got != d.TOCDigest {
		return nil, fmt.Errorf("it has the digest %s, and the layer names %s", got, d.TOCDigest)
	}
	return tree, err
}

func (l *Layers) close() error {
	var errs []error
	for _, y := range l.layers {
		errs = append(errs, y.blob.Close())
	}
	return errors.Join(errs...)
}

func (l *Layers) layer(slot uint32) (*layer, error) {
	if slot < 1 || int(slot) > len(l.layers) {
		return nil, fmt.Errorf("record: layer %d: %w", slot, fs.ErrNotExist)
	}
	return l.layers[slot-1], nil
}

// Tree returns the file tree of a layer.
func (l *Layers) Tree(_ context.Context, slot uint32) (*toc.Tree, error) {
	y, err := l.layer(slot)
	if err != nil {
		return nil, err
	}
	return y.tree, nil
}

// Open opens the regular file at entry of a layer.
func (l *Layers) Open(_ context.Context, slot, entry uint32) (*Content, error) {
	y, err := l.layer(slot)
	if err != nil {
		return nil, err
	}
	if int(entry) >= y.tree.Len() || y.tree.Attr(entry).Mode&toc.TypeMask != toc.TypeRegular {
		return nil, fmt.Errorf("record: entry %d of layer %d is not a regular file: %w", entry, slot, fs.ErrInvalid)
	}
	return &Content{l, slot, y, entry}, nil
}

// Lookup notes that a name was looked for in a directory.
func (l *Layers) Lookup(slot, dir uint32, name string, found bool) {
	kind := trace.Absent
	if found {
		kind = trace.Found
	}
	l.note(event{slot, kind, dir, name})
}

// List notes that the names in a directory were listed.
func (l *Layers) List(slot, dir uint32) { l.note(event{slot, trace.List, dir, ""}) }

func (l *Layers) note(e event) {
	y, err := l.layer(e.slot)
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.seen[e]; ok {
		return
	}
	l.seen[e] = struct{}{}
	r := trace.Read{Layer: int(e.slot) - 1, Kind: e.kind}
	switch e.kind {
	case trace.Content:
		c := y.tree.Chunk(e.at)
		r.Path, r.Offset, r.Size, r.Chunk = y.paths[y.tree.ChunkFile(e.at)], c.Offset, int64(c.Size), trace.HintOf(c.ID)
	case trace.List:
		r.Path = y.paths[e.at]
	case trace.Found, trace.Absent:
		r.Path = e.name
		if dir := y.paths[e.at]; dir != "" {
			r.Path = dir + "/" + e.name
		}
	}
	if r.Path == "" {
		r.Path = "."
	}
	l.reads = append(l.reads, r)
}

// trace returns what has been written down so far.
func (l *Layers) trace() *trace.Trace {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &trace.Trace{Version: trace.Version, Layers: len(l.layers), Reads: append([]trace.Read(nil), l.reads...)}
}
