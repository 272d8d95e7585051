package toc

import (
	"iter"
	"slices"
	"strings"

	"github.com/airstream-io/airstream/internal/chunk"
)

const noNode = 1<<32 - 1

// node is one inode while the tree is being built. There may be hundreds of
// thousands, so what few of them have is kept apart.
type node struct {
	mode, uid, gid, rdev uint32
	mtimeNsec            uint32
	parent               uint32 // of a directory
	nlink                uint32 // names that point here; 0: replaced, dropped
	first, count         uint32 // chunks of a regular file
	mtime                int64
	size                 int64
	children             *children // of a directory; nil while it is empty
	extra                *extra    // nil: neither a link nor attributes
}

// extra is what few nodes have. It is shared with none.
type extra struct {
	link   string
	xattrs map[string][]byte
}

// rare returns the node's extra for writing.
func (n *node) rare() *extra {
	if n.extra == nil {
		n.extra = &extra{}
	}
	return n.extra
}

func (n *node) link() string {
	if n.extra == nil {
		return ""
	}
	return n.extra.link
}

func (n *node) xattrs() map[string][]byte {
	if n.extra == nil {
		return nil
	}
	return n.extra.xattrs
}

// setXattr sets an attribute of a node.
func (n *node) setXattr(name string, value []byte) {
	x := n.rare()
	if x.xattrs == nil {
		x.xattrs = map[string][]byte{}
	}
	x.xattrs[name] = value
}

func (n *node) isDir() bool      { return n.mode&TypeMask == TypeDir }
func (n *node) isWhiteout() bool { return n.mode&TypeMask == TypeChar && n.rdev == 0 }

// children are the names in a directory. Most have a few, for which a map is
// several times too large.
type children struct {
	few  []child // while there are at most maxFew
	many map[string]uint32
}

type child struct {
	name string
	id   uint32
}

const maxFew = 16

func (c *children) get(name string) (id uint32, ok bool) {
	if c == nil {
		return 0, false
	}
	if c.many != nil {
		id, ok = c.many[name]
		return id, ok
	}
	for i := range c.few {
		if c.few[i].name == name {
			return c.few[i].id, true
		}
	}
	return 0, false
}

// set gives name to a node. The name is copied, for it is a part of a whole
// path that would stay with it.
func (c *children) set(name string, id uint32) {
	for i := range c.few {
		if c.few[i].name == name {
			c.few[i].id = id
			return
		}
	}
	if _, ok := c.many[name]; !ok {
		name = strings.Clone(name)
	}
	switch {
	case c.many != nil:
		c.many[name] = id
	case len(c.few) < maxFew:
		c.few = append(c.few, child{name, id})
	default:
		c.many = make(map[string]uint32, 2*maxFew)
		for _, k := range c.few {
			c.many[k.name] = k.id
		}
		c.many[name] = id
		c.few = nil
	}
}

// all returns the children in no order.
func (c *children) all() iter.Seq2[string, uint32] {
	return func(yield func(string, uint32) bool) {
		if c == nil {
			return
		}
		for _, k := range c.few {
			if !yield(k.name, k.id) {
				return
			}
		}
		for name, id := range c.many {
			if !yield(name, id) {
				return
			}
		}
	}
}

func (c *children) len() int {
	if c == nil {
		return 0
	}
	return len(c.few) + len(c.many)
}

// sorted returns the children by name.
func (c *children) sorted() []child {
	out := make([]child, 0, c.len())
	for name, id := range c.all() {
		out = append(out, child{name, id})
	}
	slices.SortFunc(out, func(a, b child) int { return strings.Compare(a.name, b.name) })
	return out
}

// pendingChunk is a chunk of a node. Where it is in the file follows from those
// before it.
type pendingChunk struct {
	id         chunk.ID
	blobOffset int64
	size       uint32
	inner      uint32
}

// blocks is a list that grows without copying what it has: twice the memory,
// for a moment, is what a small machine can't give.
type blocks[T any] struct {
	all [][]T
	n   uint32
}

const perBlock = 1024

func (b *blocks[T]) add(v T) uint32 {
	if b.n%perBlock == 0 {
		b.all = append(b.all, make([]T, 0, perBlock))
	}
	last := &b.all[len(b.all)-1]
	*last = append(*last, v)
	b.n++
	return b.n - 1
}

// at returns the item with a number; it stays where it is.
func (b *blocks[T]) at(i uint32) *T { return &b.all[i/perBlock][i%perBlock] }
