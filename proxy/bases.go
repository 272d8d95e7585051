package proxy

import (
	"context"
	"slices"

	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/internal/link/wire"
	"github.com/airstream-io/airstream/internal/toc"
)

// A changed file is mostly what it was before. So a chunk of a file that the node
// has in an earlier version is compressed with that version's content as the
// dictionary: what lies around the same place in the file of the same path. The
// inventory's first image of the same repository is what it builds on. Which file
// that is follows from the request, so that every proxy compresses alike.
//
// This finds what moved by less than baseReach. Codecs that find more are a matter
// of another Codec in wire.Head and of compress here; the plan doesn't care.

// baseReach is how far before and behind its place a chunk's base is looked at, in
// bytes. With twice as much, encoding takes twice as long; insertions are mostly
// shorter. A guess.
const baseReach = 64 << 10

// baseFile is a file that the node has.
type baseFile struct {
	l     *layer
	entry uint32
	warm  pieces // what of it is there; nil: all
}

// bases are the files that the chunks of an image may build on: by layer and
// entry, of files that are wanted and have an earlier version.
type bases map[baseKey]baseFile

type baseKey struct {
	layer int
	entry uint32
}

// findBases pairs files that are wanted with what is at their path in the image
// that the node has of the same repository.
func findBases(layers []*layer, here *inventory, w *wants) bases {
	b := bases{}
	warm := here.warm
	if here.whole {
		warm = nil
	}
	for i, l := range layers {
		if l == nil {
			continue
		}
		var dirs []baseFile // the top layer first: it is what a container would see
		for _, earlier := range slices.Backward(here.before) {
			dirs = append(dirs, baseFile{earlier, toc.Root, warm})
		}
		b.descend(i, l.tree, toc.Root, dirs, w)
	}
	return b
}

// descend pairs what is in one directory. Trees have no cycles and bounded depth.
func (b bases) descend(layer int, tree *toc.Tree, dir uint32, dirs []baseFile, w *wants) {
	for k := range tree.NumChildren(dir) {
		name, e := tree.Child(dir, k)
		isDir := tree.NumChildren(e) > 0
		if !isDir && !w.any(layer, tree, e) {
			continue
		}
		var same []baseFile
		for _, d := range dirs {
			if at, ok := d.l.tree.Lookup(d.entry, name); ok {
				same = append(same, baseFile{d.l, at, d.warm})
			}
		}
		if len(same) == 0 {
			continue
		}
		if isDir {
			b.descend(layer, tree, e, same, w)
			continue
		}
		if first, end := same[0].l.tree.Chunks(same[0].entry); first < end {
			b[baseKey{layer, e}] = same[0]
		}
	}
}

// any tells whether a chunk of a file is wanted.
func (w *wants) any(layer int, tree *toc.Tree, entry uint32) bool {
	for c, end := tree.Chunks(entry); c < end; c++ {
		if w.left[layer][c/64]>>(c%64)&1 == 1 {
			return true
		}
	}
	return false
}

// compress returns a chunk as it crosses, and notes in m what it builds on.
func (p *pull) compress(ctx context.Context, k key, content []byte, m *wire.Chunk) (wire.Codec, []byte) {
	tree := p.layers[k.layer].tree
	base, ok := p.bases[baseKey{int(k.layer), tree.ChunkFile(k.chunk)}]
	if !ok {
		return link.Encode(content)
	}
	at := tree.Chunk(k.chunk).Offset
	from, window, err := base.read(ctx, at, int64(len(content)))
	if err != nil || len(window) == 0 {
		return link.Encode(content) // whatever is wrong with it, there is another way
	}
	codec, payload := link.EncodeWith(content, window)
	if codec == wire.Codec_CODEC_ZSTD_BASE {
		m.Base = &wire.Base{Table: []byte(prefixOf(base.l.toc)), Entry: base.entry, Offset: from, Length: uint32(len(window))} //nolint:gosec // bounded
	}
	return codec, payload
}

// read returns what the node has of the file about a place, size bytes from at
// on, and where that begins: whole chunks that follow each other.
func (b baseFile) read(ctx context.Context, at, size int64) (begin int64, content []byte, err error) {
	t := b.l.tree
	c, ok := t.FindChunk(b.entry, max(0, at-baseReach))
	if !ok {
		return 0, nil, nil
	}
	for _, end := t.Chunks(b.entry); c < end && t.Chunk(c).Offset < at+size+baseReach; c++ {
		k := t.Chunk(c)
		if b.warm != nil && !b.has(c) {
			if begin+int64(len(content)) > at {
				break // nearer than what follows
			}
			content = nil
			continue
		}
		part, err := b.l.chunk(ctx, c)
		if err != nil {
			return 0, nil, err
		}
		if len(content) == 0 {
			begin = k.Offset
		}
		content = append(content, part...)
	}
	return begin, content, nil
}

// has tells whether the node has a chunk.
func (b baseFile) has(c uint32) bool {
	_, ok := b.warm[b.l.piece(c)]
	return ok
}
