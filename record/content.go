package record

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/airstream-io/airstream/internal/trace"
)

// Content is the content of one regular file. It is safe for concurrent use.
type Content struct {
	layers *Layers
	slot   uint32
	layer  *layer
	entry  uint32
}

// Complete returns nil: every read has to come here to be written down.
func (c *Content) Complete() *os.File { return nil }

// Close does nothing.
func (c *Content) Close() error { return nil }

// ReadAt fills p from byte off on, unless the file ends before: then it returns
// io.EOF as io.ReaderAt does. All bytes were verified.
func (c *Content) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		at, ok := c.layer.tree.FindChunk(c.entry, off+int64(n))
		if _, end := c.layer.tree.Chunks(c.entry); !ok || at >= end {
			return n, io.EOF
		}
		c.layers.note(event{slot: c.slot, kind: trace.Content, at: at})
		data, err := c.chunk(at)
		if err != nil {
			return n, fmt.Errorf("record: %s: %w", c.layer.paths[c.entry], err)
		}
		n += copy(p[n:], data[off+int64(n)-c.layer.tree.Chunk(at).Offset:])
	}
	return n, nil
}

// chunk returns the bytes of a chunk, verified.
func (c *Content) chunk(number uint32) ([]byte, error) {
	cache := &c.layers.cache
	if data := cache.get(cacheKey{c.slot, number}); data != nil {
		return data, nil
	}
	tree := c.layer.tree
	m := tree.Chunk(number).Member
	where := tree.Member(m)
	z, err := gzip.NewReader(io.NewSectionReader(c.layer.blob, where.Offset, where.End-where.Offset))
	if err != nil {
		return nil, err
	}
	var want []byte
	var at int64
	first, end := tree.MemberChunks(m)
	for k := first; k < end; k++ { // of a group all, since they were unpacked
		chunk := tree.Chunk(k)
		if _, err := io.CopyN(io.Discard, z, int64(chunk.Inner)-at); err != nil {
			return nil, err
		}
		data := make([]byte, chunk.Size)
		if _, err := io.ReadFull(z, data); err != nil {
			return nil, err
		}
		if err := chunk.ID.Verify(data); err != nil {
			return nil, err
		}
		at = int64(chunk.Inner) + int64(chunk.Size)
		cache.put(cacheKey{c.slot, k}, data)
		if k == number {
			want = data
		}
	}
	return want, nil
}

// cacheSize bounds what is kept of unpacked chunks, in bytes: the kernel reads
// a chunk in several pieces, and caches what it has read.
const cacheSize = 64 << 20

type cacheKey struct{ slot, chunk uint32 }

// cache keeps the chunks that were unpacked last.
type cache struct {
	mu    sync.Mutex
	data  map[cacheKey][]byte // guarded by mu
	order []cacheKey          // guarded by mu; oldest first
	size  int                 // guarded by mu; bytes
}

func (c *cache) get(k cacheKey) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.data[k]
}

func (c *cache) put(k cacheKey, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.data[k]; ok {
		return
	}
	if c.data == nil {
		c.data = map[cacheKey][]byte{}
	}
	c.data[k], c.order, c.size = data, append(c.order, k), c.size+len(data)
	for c.size > cacheSize && len(c.order) > 1 {
		c.size -= len(c.data[c.order[0]])
		delete(c.data, c.order[0])
		c.order = c.order[1:]
	}
}
