package fetcher

import (
	"context"
	"fmt"

	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
)

// maxTouches bounds how many reads are remembered, in chunks: 64 GiB of content.
const maxTouches = 1 << 20

// touch is the first read of a chunk.
type touch struct {
	slot  uint32
	chunk uint32
}

// Trace returns what was read of an image's layers since the daemon started, in
// the order in which it was first read. slots are the image's layers from the
// lowest up, 0 for one that is not lazy. Only reads that reached the daemon
// count: what the kernel had in its cache is not in it, nor, once an image is
// old on the node, what was read from complete files; so a trace is recorded on
// a node that has just met the image.
func (f *Fetcher) Trace(ctx context.Context, slots []uint32) (*trace.Trace, error) {
	t := &trace.Trace{Version: trace.Version, Layers: len(slots)}
	layerOf, trees := map[uint32]int{}, map[uint32]*toc.Tree{}
	paths := map[uint32][]string{}
	for i, slot := range slots {
		if slot == 0 {
			continue
		}
		tree, err := f.Tree(ctx, slot)
		if err != nil {
			return nil, fmt.Errorf("fetcher: trace: %w", err)
		}
		layerOf[slot], trees[slot] = i, tree
		paths[slot] = pathsOf(tree)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.touches {
		i, ok := layerOf[r.slot]
		if !ok {
			continue
		}
		tree := trees[r.slot]
		c, path := tree.Chunk(r.chunk), paths[r.slot][tree.ChunkFile(r.chunk)]
		if n := len(t.Reads); n > 0 {
			// Reads that follow each other in a file are one.
			if last := &t.Reads[n-1]; last.Layer == i && last.Path == path && last.Offset+last.Size == c.Offset {
				last.Size += int64(c.Size)
				continue
			}
		}
		t.Reads = append(t.Reads, trace.Read{Layer: i, Path: path, Offset: c.Offset, Size: int64(c.Size)})
	}
	return t, nil
}

// pathsOf returns a path for every entry of a tree.
func pathsOf(tree *toc.Tree) []string {
	paths := make([]string, tree.Len())
	stack := []uint32{toc.Root}
	for len(stack) > 0 {
		dir := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for k := range tree.NumChildren(dir) {
			name, e := tree.Child(dir, k)
			path := name
			if dir != toc.Root {
				path = paths[dir] + "/" + name
			}
			paths[e] = path
			if tree.Attr(e).Mode&toc.TypeMask == toc.TypeDir {
				stack = append(stack, e)
			}
		}
	}
	return paths
}
