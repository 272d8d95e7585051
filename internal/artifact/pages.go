package artifact

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/toc"
)

// ErrMismatch says that bytes are not those that the root commits to.
var ErrMismatch = errors.New("content does not match its digest")

// Pages holds the pages of a TOC blob that have arrived. It is safe for
// concurrent use.
type Pages struct {
	r *Root

	mu   sync.RWMutex
	raw  [][]byte // guarded by mu; nil: not here
	have int      // guarded by mu
}

// NewPages returns the pages of a root, of which none is here.
func (r *Root) NewPages() *Pages { return &Pages{r: r, raw: make([][]byte, len(r.pages))} }

// NumPages returns how many pages there are.
func (r *Root) NumPages() int { return len(r.pages) }

// Page returns where page n is in the TOC blob, in bytes. Pages follow each
// other, so those from n to m are one range.
func (r *Root) Page(n int) (offset, size int64) { return r.pages[n].offset, int64(r.pages[n].size) }

// BlobSize returns the size of the whole TOC blob, in bytes.
func (r *Root) BlobSize() int64 {
	if len(r.pages) == 0 {
		return r.size
	}
	offset, size := r.Page(len(r.pages) - 1)
	return offset + size
}

// onPage returns how many chunks page n has.
func (r *Root) onPage(n uint32) uint32 { return min(PageChunks, r.cold-n*PageChunks) }

// PagesOf returns the half-open range of pages on which the chunks of the file at
// an entry are, given any tree of the layer; it is empty if the root has them.
func (r *Root) PagesOf(layer int, tree *toc.Tree, entry uint32) (first, end int) {
	l := &r.layers[layer]
	c, last := tree.Chunks(entry)
	if c == last {
		return 0, 0
	}
	known, is := l.knownBelow(c)
	if is {
		return 0, 0 // of a file all are known, or none
	}
	at := l.coldBefore + c - known
	return int(at / PageChunks), int((at+last-c-1)/PageChunks) + 1
}

// PagesOfLayer returns the half-open range of pages that have chunks of a layer.
func (r *Root) PagesOfLayer(layer int) (first, end int) {
	l := &r.layers[layer]
	if l.cold == 0 {
		return 0, 0
	}
	return int(l.coldBefore / PageChunks), int((l.coldBefore+l.cold-1)/PageChunks) + 1
}

// PagesFor returns the pages, in their order, that have IDs which a tree of the layer
// lacks.
func (r *Root) PagesFor(layer int, tree *toc.Tree) (pages []int) {
	l := &r.layers[layer]
	for c := range min(uint32(tree.NumChunks()), l.chunks) {
		if tree.Chunk(c).ID != (chunk.ID{}) {
			continue
		}
		known, is := l.knownBelow(c)
		if is {
			continue
		}
		if n := int((l.coldBefore + c - known) / PageChunks); len(pages) == 0 || pages[len(pages)-1] < n {
			pages = append(pages, n)
		}
	}
	return pages
}

// Add keeps page n, if its bytes are those that the root commits to. It keeps
// raw, which must not change. Errors are ErrMismatch and ErrInvalid.
func (p *Pages) Add(n int, raw []byte) error {
	if n < 0 || n >= len(p.r.pages) {
		return fmt.Errorf("artifact: add page %d: %w", n, invalid("there are %d", len(p.r.pages)))
	}
	if sha256.Sum256(raw) != p.r.pages[n].sum {
		return fmt.Errorf("artifact: add page %d: %w", n, ErrMismatch)
	}
	chunks := p.r.onPage(uint32(n))
	c := cursor{b: raw}
	ids := c.take(uint64(chunks) * sha256.Size)
	for k := 0; k < len(ids); k += sha256.Size {
		if chunk.ID(ids[k:]) == (chunk.ID{}) {
			return fmt.Errorf("artifact: add page %d: %w", n, invalid("chunk %d has no ID", k/sha256.Size))
		}
	}
	for range chunks {
		skipWhere(&c)
	}
	if c.err != nil || len(c.b) > 0 {
		return fmt.Errorf("artifact: add page %d: %w", n, invalid("it doesn't hold %d chunks", chunks))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.raw[n] == nil {
		p.have++
	}
	p.raw[n] = raw
	return nil
}

// Has tells whether page n is here.
func (p *Pages) Has(n int) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.raw[n] != nil
}

// Len returns how many pages are here.
func (p *Pages) Len() int {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.have
}

// Complete tells whether all pages are here.
func (p *Pages) Complete() bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.have == len(p.raw)
}

// here returns the pages that are here now: one that arrives while a tree is
// built comes too late for it. Of a nil Pages there are none.
func (p *Pages) here() [][]byte {
	if p == nil {
		return nil
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	return slices.Clone(p.raw)
}
