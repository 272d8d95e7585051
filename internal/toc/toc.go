// Package toc holds a layer's table of contents: which names, which
// attributes, and which chunks make which file.
//
// A table crosses the link as eStargz writes it: JSON, named by a digest that
// the image manifest commits to. Parse reads that form, distrusting every
// field, and plays the entries in their order as an unpacker would, so that
// the result is the tree that overlayfs would have got: later entries replace
// earlier ones, hardlinks share an entry, whiteouts are character devices 0/0
// and opaque directories carry trusted.overlay.opaque.
//
// The result is a Tree: one block of bytes with fixed-size records (layout in
// flat.go) that is written to disk once and mapped into memory afterwards. A
// node with fifty images then needs neither time to parse nor heap to hold
// their tables. Entry numbers depend on nothing but the table's bytes, so
// inode numbers made from them mean the same in every process.
package toc

import (
	"iter"
	"time"

	"github.com/airstream-io/airstream/internal/chunk"
)

// Root is the entry of the layer's root directory.
const Root uint32 = 0

// File types as stat(2) has them in the mode, and the mask that selects them.
const (
	TypeMask    uint32 = 0o170000
	TypeSymlink uint32 = 0o120000
	TypeRegular uint32 = 0o100000
	TypeBlock   uint32 = 0o060000
	TypeDir     uint32 = 0o040000
	TypeChar    uint32 = 0o020000
	TypeFifo    uint32 = 0o010000
)

// Attr is what stat(2) says of an entry.
type Attr struct {
	Mode  uint32 // file type and permission bits, as in st_mode
	UID   uint32
	GID   uint32
	Rdev  uint32 // device number as Linux encodes it in 32 bits; 0 unless a device
	Nlink uint32
	Size  int64 // bytes; length of the target for a symbolic link
	Mtime time.Time
}

// Chunk is one piece of one file, and where its bytes are in the layer blob.
type Chunk struct {
	ID     chunk.ID
	Offset int64  // bytes into the file
	Size   uint32 // bytes, uncompressed; at most chunk.MaxSize
	Member uint32 // the gzip member that it begins in; see Tree.Member
	Inner  uint32 // bytes into the uncompressed stream that begins at that member
}

// Member is a run of the layer blob that can be decompressed by itself.
type Member struct {
	Offset int64 // bytes into the compressed blob
	End    int64 // first byte behind it; the next member's Offset or the TOC's
}

// Tree is a layer's file tree. It is immutable and safe for concurrent use.
// Entry numbers handed to its methods must be below Len.
type Tree struct {
	flat flat
}

// Len returns the number of entries. Entry 0 is the root directory; names
// that are hardlinks to one file share one entry.
func (t *Tree) Len() int { return t.flat.entries.n }

// Attr returns the attributes of an entry.
func (t *Tree) Attr(entry uint32) Attr {
	e := t.flat.entry(entry)
	a := Attr{Mode: e.mode, UID: e.uid, GID: e.gid, Rdev: e.rdev, Nlink: e.nlink, Mtime: time.Unix(e.mtime, int64(e.mtimeNsec))}
	switch e.mode & TypeMask {
	case TypeRegular, TypeSymlink:
		a.Size = e.size
	}
	return a
}

// NumChildren returns how many names the directory dir holds, or 0 if it is
// not a directory.
func (t *Tree) NumChildren(dir uint32) int {
	e := t.flat.entry(dir)
	if e.mode&TypeMask != TypeDir {
		return 0
	}
	return int(e.count)
}

// Child returns the k-th name in dir, in byte order, and its entry.
// k is in [0, NumChildren(dir)).
func (t *Tree) Child(dir uint32, k int) (name string, entry uint32) {
	d := t.flat.dirent(t.flat.entry(dir).first + uint32(k))
	return string(t.flat.bytes(d.nameOff, uint32(d.nameLen))), d.entry
}

// Lookup finds name in the directory dir.
func (t *Tree) Lookup(dir uint32, name string) (entry uint32, ok bool) {
	e := t.flat.entry(dir)
	if e.mode&TypeMask != TypeDir {
		return 0, false
	}
	lo, hi := e.first, e.first+e.count
	for lo < hi {
		mid := lo + (hi-lo)/2
		d := t.flat.dirent(mid)
		switch have := t.flat.bytes(d.nameOff, uint32(d.nameLen)); {
		case string(have) == name:
			return d.entry, true
		case string(have) < name:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return 0, false
}

// Parent returns the directory that holds the directory dir; the root's is
// the root itself.
func (t *Tree) Parent(dir uint32) uint32 { return t.flat.entry(dir).parent }

// Readlink returns a symbolic link's target.
func (t *Tree) Readlink(entry uint32) string {
	e := t.flat.entry(entry)
	if e.mode&TypeMask != TypeSymlink {
		return ""
	}
	return string(t.flat.bytes(e.first, e.count))
}

// Xattrs goes through the extended attributes of an entry, by name. The value
// is valid as long as the Tree is.
func (t *Tree) Xattrs(entry uint32) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		e := t.flat.entry(entry)
		for i := range e.xattrs {
			name, value := t.flat.xattr(e.xattr + i)
			if !yield(string(name), value) {
				return
			}
		}
	}
}

// Xattr returns one extended attribute of an entry.
func (t *Tree) Xattr(entry uint32, name string) ([]byte, bool) {
	e := t.flat.entry(entry)
	for i := range e.xattrs {
		if have, value := t.flat.xattr(e.xattr + i); string(have) == name {
			return value, true
		}
	}
	return nil, false
}

// IsWhiteout tells whether the entry is an overlayfs whiteout: it hides the
// name in the layers below.
func (t *Tree) IsWhiteout(entry uint32) bool {
	e := t.flat.entry(entry)
	return e.mode&TypeMask == TypeChar && e.rdev == 0
}

// Chunks returns the half-open range of chunk numbers that make the regular
// file at entry, in file order; the range is empty for an empty file.
func (t *Tree) Chunks(entry uint32) (first, end uint32) {
	e := t.flat.entry(entry)
	if e.mode&TypeMask != TypeRegular {
		return 0, 0
	}
	return e.first, e.first + e.count
}

// NumChunks returns the number of chunks in the layer. They are numbered in
// the order of the table, which is the order in the blob.
func (t *Tree) NumChunks() int { return t.flat.chunks.n }

// Chunk returns the chunk with number c.
func (t *Tree) Chunk(c uint32) Chunk { return t.flat.chunk(c) }

// ChunkFile returns the entry of the regular file that chunk c is a piece of.
func (t *Tree) ChunkFile(c uint32) uint32 { return t.flat.chunkFile(c) }

// NumMembers returns the number of members, which are sorted by Offset and
// don't overlap.
func (t *Tree) NumMembers() int { return t.flat.members.n }

// Member returns the member with number m.
func (t *Tree) Member(m uint32) Member { return t.flat.member(m) }

// MemberChunks returns the half-open range of chunk numbers that begin in
// member m. Chunks are sorted by (Member, Inner).
func (t *Tree) MemberChunks(m uint32) (first, end uint32) { return t.flat.memberChunks(m) }

// FindChunk returns the number of the chunk of the file at entry that holds
// byte off of it. ok is false behind the end of the file.
func (t *Tree) FindChunk(entry uint32, off int64) (c uint32, ok bool) {
	lo, end := t.Chunks(entry)
	hi := end
	for lo < hi {
		mid := lo + (hi-lo)/2
		if k := t.flat.chunk(mid); k.Offset+int64(k.Size) <= off {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo, lo < end && off >= 0
}
