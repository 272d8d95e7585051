package toc

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/airstream-io/airstream/internal/chunk"
)

// Assembly makes a Tree of entries in the order of their numbers, for formats
// that say what a Tree says in other words. The result is byte for byte the
// tree that Parse would have made, and what Parse would have refused is
// refused here, for the formats come from the same strangers. Errors are
// ErrInvalid. An Assembly is not safe for concurrent use, and of no use after
// an error.
//
// Calls come in this order: Add for an entry, Chunk for each chunk of it, and
// so on; Name at any time when both entries are there; Tree at the end.
type Assembly struct {
	b      *builder
	depth  map[uint32]place // of directories
	member Member           // that the last chunk begins in
	limit  int64
}

// place is how far below the root a directory is.
type place struct{ names, bytes int }

// Entry is what an entry has besides its names and its chunks. Nlink counts
// itself.
type Entry struct {
	Attr
	Link   string  // target of a symbolic link
	Xattrs []Xattr // sorted by Name
}

// Xattr is an extended attribute.
type Xattr struct {
	Name  string
	Value []byte
}

// maxAssembledXattrs bounds the attributes of a layer, in bytes. It is lower than
// what Parse takes: other formats say in two bytes that an entry has the
// attributes of the one before.
const maxAssembledXattrs = 32 << 20

// NewAssembly returns an Assembly for a layer of which no member may end
// behind payloadSize, in bytes of the blob.
func NewAssembly(payloadSize int64) *Assembly {
	return &Assembly{b: &builder{file: noNode}, depth: map[uint32]place{Root: {}}, limit: payloadSize}
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("toc: assemble: %w: %w", ErrInvalid, fmt.Errorf(format, args...))
}

// Add adds the next entry; the first is the root. The Size of what is neither
// a regular file nor a symbolic link is ignored.
func (a *Assembly) Add(e Entry) error {
	b := a.b
	if err := b.endFile(); err != nil {
		return invalid("%w", err)
	}
	if b.nodes.n > maxEntries {
		return invalid("more than %d entries", maxEntries)
	}
	n := node{mode: e.Mode, uid: e.UID, gid: e.GID, parent: noNode, mtime: e.Mtime.Unix(), mtimeNsec: uint32(e.Mtime.Nanosecond())}
	if e.Mode&^(TypeMask|0o7777) != 0 || e.UID == math.MaxUint32 || e.GID == math.MaxUint32 {
		return invalid("entry %d: mode %o, owner %d:%d", b.nodes.n, e.Mode, e.UID, e.GID)
	}
	if e.Mtime.Before(time.Unix(0, 0)) || e.Mtime.After(time.Unix(0, math.MaxInt64)) {
		return invalid("entry %d: time %v", b.nodes.n, e.Mtime)
	}
	switch e.Mode & TypeMask {
	case TypeDir:
		n.nlink = 1
	case TypeRegular:
		n.size = e.Size
	case TypeSymlink:
		if e.Link == "" || len(e.Link) > maxPathLen || strings.ContainsRune(e.Link, 0) {
			return invalid("entry %d: symbolic link without a valid target", b.nodes.n)
		}
		n.rare().link = e.Link
		n.size = int64(len(e.Link))
	case TypeChar, TypeBlock:
		n.rdev = e.Rdev
	case TypeFifo:
	default:
		return invalid("entry %d: mode %o", b.nodes.n, e.Mode)
	}
	if n.size < 0 || b.nodes.n == Root && !n.isDir() {
		return invalid("entry %d: mode %o, size %d", b.nodes.n, e.Mode, n.size)
	}
	if err := n.takeXattrs(e.Xattrs); err != nil {
		return invalid("entry %d: %w", b.nodes.n, err)
	}
	for _, x := range e.Xattrs {
		b.xattrBytes += int64(len(x.Name) + len(x.Value))
	}
	if b.xattrBytes > maxAssembledXattrs {
		return invalid("too many bytes of extended attributes")
	}
	id := b.nodes.add(n)
	if n.size > 0 && e.Mode&TypeMask == TypeRegular {
		b.file, b.filled = id, 0
	}
	return nil
}

// takeXattrs takes what Parse lets through, and the mark of an opaque
// directory, which it makes.
func (n *node) takeXattrs(list []Xattr) error {
	before := ""
	for _, x := range list {
		switch {
		case x.Name <= before || len(x.Name) > maxNameLen || strings.ContainsRune(x.Name, 0) || len(x.Value) > maxXattrSize:
			return fmt.Errorf("extended attribute %q of %d bytes", shorten(x.Name), len(x.Value))
		case x.Name == opaqueXattr && string(x.Value) == "y" && n.isDir():
		case strings.HasPrefix(x.Name, "trusted."):
			return fmt.Errorf("extended attribute %q", shorten(x.Name))
		}
		n.setXattr(x.Name, x.Value)
		before = x.Name
	}
	if len(list) > maxXattrs+1 {
		return fmt.Errorf("%d extended attributes", len(list))
	}
	return nil
}

// Name names an entry in a directory. A directory has one name, in one that
// was added before it; other entries have any number, and one at least.
func (a *Assembly) Name(dir uint32, name string, entry uint32) error {
	b := a.b
	if entry == Root || entry >= b.nodes.n || dir >= b.nodes.n || !b.nodes.at(dir).isDir() {
		return invalid("a name for entry %d in %d, of %d", entry, dir, b.nodes.n)
	}
	if name == "" || name == "." || name == ".." || len(name) > maxNameLen || strings.ContainsAny(name, "/\x00") {
		return invalid("name %q", shorten(name))
	}
	above, ok := a.depth[dir]
	if !ok {
		return invalid("directory %d has no name yet", dir)
	}
	here := place{above.names + 1, above.bytes + len(name) + 1}
	if here.names > maxDepth || here.bytes > maxPathLen+1 {
		return invalid("name %q lies too deep", shorten(name))
	}
	if _, twice := b.nodes.at(dir).children.get(name); twice {
		return invalid("name %q is there twice", shorten(name))
	}
	n := b.nodes.at(entry)
	if n.isDir() {
		if dir >= entry || n.parent != noNode {
			return invalid("directory %q is in two places, or in itself", shorten(name))
		}
		n.parent = dir
		a.depth[entry] = here
	} else {
		n.nlink++
	}
	b.name(dir, name, entry)
	return nil
}

// Chunk adds the next chunk of the entry that was added last. m is the member
// that it begins in, that of the chunk before or one that lies behind; inner is
// bytes into that. The zero ID stands for one that isn't known yet.
func (a *Assembly) Chunk(id chunk.ID, size, inner uint32, m Member) error {
	b := a.b
	if b.file == noNode {
		return invalid("a chunk of no file")
	}
	n := b.nodes.at(b.file)
	if size == 0 || size > chunk.MaxSize || int64(size) > n.size-b.filled || int64(inner) > int64(maxMemberSpan)-int64(size) {
		return invalid("a chunk of %d bytes at %d in a file of %d, %d bytes into its member", size, b.filled, n.size, inner)
	}
	if b.chunks.n == maxChunks {
		return invalid("more than %d chunks", maxChunks)
	}
	if m != a.member {
		if m.Offset < a.member.End || m.End <= m.Offset || m.End > a.limit {
			return invalid("member from %d to %d, behind one that ends at %d, of %d bytes", m.Offset, m.End, a.member.End, a.limit)
		}
		if m.Offset > a.member.End && b.chunks.n > 0 {
			b.cuts = append(b.cuts, a.member.End)
		}
		a.member = m
	}
	at := b.chunks.add(pendingChunk{id: id, blobOffset: m.Offset, size: size, inner: inner})
	if n.count == 0 {
		n.first = at
	}
	n.count++
	if b.filled += int64(size); b.filled == n.size {
		b.file = noNode
	}
	return nil
}

// Tree returns the tree. The Assembly is used up.
func (a *Assembly) Tree() (*Tree, error) {
	b := a.b
	if b.nodes.n == 0 {
		return nil, invalid("no root")
	}
	root := b.nodes.at(Root)
	root.parent = Root
	for i := range b.nodes.n {
		if n := b.nodes.at(i); n.nlink == 0 || n.parent == noNode && n.isDir() {
			return nil, invalid("entry %d has no name", i)
		}
	}
	b.payloadSize = a.member.End
	t, err := b.tree()
	if err != nil {
		return nil, fmt.Errorf("toc: assemble: %w", err)
	}
	return t, nil
}

// Known tells whether the IDs of all chunks of the regular file at entry are
// here. Of a tree that Parse made they are; one from an Assembly may wait for
// some. Until then the file's content has no ObjectID.
func (t *Tree) Known(entry uint32) bool {
	first, end := t.Chunks(entry)
	for c := first; c < end; c++ {
		if chunk.ID(t.flat.chunks.at(c, chunkSize)[:32]) == (chunk.ID{}) {
			return false
		}
	}
	return true
}

// KnowsAll tells whether the IDs of all chunks are here.
func (t *Tree) KnowsAll() bool {
	for c := range uint32(t.NumChunks()) {
		if chunk.ID(t.flat.chunks.at(c, chunkSize)[:32]) == (chunk.ID{}) {
			return false
		}
	}
	return true
}

// Agrees tells whether two trees say the same of a layer, as far as both know:
// names, attributes, how files are cut, and of chunks whose IDs both have, what
// they are and where. Images may share a layer and say different things of it in
// their artifacts; a node that keeps one tree for both must know.
func (t *Tree) Agrees(o *Tree) bool {
	a, b := &t.flat, &o.flat
	if !bytes.Equal(a.entries.b, b.entries.b) || !bytes.Equal(a.xattrs.b, b.xattrs.b) || !bytes.Equal(a.dirents.b, b.dirents.b) ||
		!bytes.Equal(a.strings, b.strings) || a.chunks.n != b.chunks.n {
		return false
	}
	for c := range uint32(a.chunks.n) {
		x, y := a.chunk(c), b.chunk(c)
		if x.Offset != y.Offset || x.Size != y.Size || a.chunkFile(c) != b.chunkFile(c) {
			return false
		}
		if x.ID == (chunk.ID{}) || y.ID == (chunk.ID{}) {
			continue
		}
		if x.ID != y.ID || x.Inner != y.Inner || a.member(x.Member).Offset != b.member(y.Member).Offset {
			return false
		}
	}
	return true
}
