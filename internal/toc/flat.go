package toc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/airstream-io/airstream/internal/chunk"
)

// The flat form, version 1, all integers little-endian. It never leaves the
// node that wrote it, so another version is parsed anew from the JSON table
// and not converted.
//
//	header   48 B  magic "ASTREE01", 0 u32, entries u32, chunks u32,
//	               members u32, xattrs u32, dirents u32, strings u64 (bytes),
//	               0 i64
//	entry    64 B  mode, uid, gid, rdev, nlink, mtimeNsec u32; mtime, size i64;
//	               first, count, parent, xattr, xattrs, 0 u32
//	chunk    56 B  id [32]; offset i64; size, member, inner, entry u32
//	member   24 B  offset, end i64; firstChunk, 0 u32
//	xattr    16 B  nameOff, nameLen, valueOff, valueLen u32
//	dirent   12 B  entry, nameOff u32; nameLen, 0 u16
//	strings
//
// first and count select dirents for a directory, chunks for a regular file,
// and bytes of strings for a symbolic link's target.
const (
	flatMagic  = "ASTREE01"
	headerSize = 48
	entrySize  = 64
	chunkSize  = 56
	memberSize = 24
	xattrSize  = 16
	direntSize = 12
)

// ErrCorrupt says that bytes are not a flat tree that this version wrote.
var ErrCorrupt = errors.New("not a valid tree file")

var le = binary.LittleEndian

type records struct {
	b []byte
	n int
}

func (r records) at(i uint32, size int) []byte {
	o := int(i) * size
	return r.b[o : o+size : o+size]
}

type flat struct {
	raw     []byte
	entries records
	chunks  records
	members records
	xattrs  records
	dirents records
	strings []byte
}

type entryRec struct {
	mode, uid, gid, rdev, nlink, mtimeNsec uint32
	mtime, size                            int64
	first, count, parent, xattr, xattrs    uint32
}

type direntRec struct {
	entry, nameOff uint32
	nameLen        uint16
}

func (f *flat) entry(i uint32) entryRec {
	b := f.entries.at(i, entrySize)
	return entryRec{
		mode: le.Uint32(b), uid: le.Uint32(b[4:]), gid: le.Uint32(b[8:]), rdev: le.Uint32(b[12:]),
		nlink: le.Uint32(b[16:]), mtimeNsec: le.Uint32(b[20:]),
		mtime: int64(le.Uint64(b[24:])), size: int64(le.Uint64(b[32:])),
		first: le.Uint32(b[40:]), count: le.Uint32(b[44:]), parent: le.Uint32(b[48:]),
		xattr: le.Uint32(b[52:]), xattrs: le.Uint32(b[56:]),
	}
}

func (e entryRec) append(b []byte) []byte {
	for _, v := range []uint32{e.mode, e.uid, e.gid, e.rdev, e.nlink, e.mtimeNsec} {
		b = le.AppendUint32(b, v)
	}
	b = le.AppendUint64(b, uint64(e.mtime))
	b = le.AppendUint64(b, uint64(e.size))
	for _, v := range []uint32{e.first, e.count, e.parent, e.xattr, e.xattrs, 0} {
		b = le.AppendUint32(b, v)
	}
	return b
}

func (f *flat) dirent(i uint32) direntRec {
	b := f.dirents.at(i, direntSize)
	return direntRec{entry: le.Uint32(b), nameOff: le.Uint32(b[4:]), nameLen: le.Uint16(b[8:])}
}

func (f *flat) xattr(i uint32) (name, value []byte) {
	b := f.xattrs.at(i, xattrSize)
	return f.bytes(le.Uint32(b), le.Uint32(b[4:])), f.bytes(le.Uint32(b[8:]), le.Uint32(b[12:]))
}

func (f *flat) chunk(i uint32) Chunk {
	b := f.chunks.at(i, chunkSize)
	return Chunk{
		ID: chunk.ID(b[:32]), Offset: int64(le.Uint64(b[32:])),
		Size: le.Uint32(b[40:]), Member: le.Uint32(b[44:]), Inner: le.Uint32(b[48:]),
	}
}

func (f *flat) chunkFile(i uint32) uint32 { return le.Uint32(f.chunks.at(i, chunkSize)[52:]) }

func (f *flat) member(i uint32) Member {
	b := f.members.at(i, memberSize)
	return Member{Offset: int64(le.Uint64(b)), End: int64(le.Uint64(b[8:]))}
}

func (f *flat) memberChunks(i uint32) (first, end uint32) {
	first = le.Uint32(f.members.at(i, memberSize)[16:])
	if int(i)+1 == f.members.n {
		return first, uint32(f.chunks.n)
	}
	return first, le.Uint32(f.members.at(i+1, memberSize)[16:])
}

func (f *flat) bytes(off, n uint32) []byte {
	return f.strings[off : uint64(off)+uint64(n) : uint64(off)+uint64(n)]
}

// Bytes returns the tree's flat form, to be written to disk. The caller must
// not change it.
func (t *Tree) Bytes() []byte { return t.flat.raw }

// Load makes a Tree of what Bytes returned. It keeps raw, which may be mapped
// memory and must not change while the Tree is used. Every reference within
// raw is checked, so that no later call can leave it; errors are ErrCorrupt.
// Whether it is the tree that was written, the caller must check by hash.
func Load(raw []byte) (*Tree, error) {
	if len(raw) < headerSize || string(raw[:8]) != flatMagic {
		return nil, fmt.Errorf("toc: load: %w: no header", ErrCorrupt)
	}
	f := flat{raw: raw}
	rest := raw[headerSize:]
	for i, s := range []struct {
		r    *records
		size int
	}{{&f.entries, entrySize}, {&f.chunks, chunkSize}, {&f.members, memberSize}, {&f.xattrs, xattrSize}, {&f.dirents, direntSize}} {
		n := uint64(le.Uint32(raw[12+4*i:]))
		if n*uint64(s.size) > uint64(len(rest)) {
			return nil, fmt.Errorf("toc: load: %w: section %d is cut short", ErrCorrupt, i)
		}
		*s.r = records{b: rest[:n*uint64(s.size)], n: int(n)}
		rest = rest[n*uint64(s.size):]
	}
	if n := le.Uint64(raw[32:]); n != uint64(len(rest)) || n > math.MaxUint32 {
		return nil, fmt.Errorf("toc: load: %w: %d bytes of strings, want %d", ErrCorrupt, len(rest), n)
	}
	f.strings = rest
	if err := f.check(); err != nil {
		return nil, fmt.Errorf("toc: load: %w: %w", ErrCorrupt, err)
	}
	return &Tree{flat: f}, nil
}

func (f *flat) check() error {
	if f.entries.n == 0 || f.entry(Root).mode&TypeMask != TypeDir {
		return errors.New("no root directory")
	}
	within := func(first, count uint32, n int) bool { return uint64(first)+uint64(count) <= uint64(n) }
	for i := range uint32(f.entries.n) {
		e := f.entry(i)
		ok := within(e.xattr, e.xattrs, f.xattrs.n)
		switch e.mode & TypeMask {
		case TypeDir:
			ok = ok && within(e.first, e.count, f.dirents.n) && int(e.parent) < f.entries.n
		case TypeRegular:
			ok = ok && within(e.first, e.count, f.chunks.n) && e.size >= 0
		case TypeSymlink:
			ok = ok && within(e.first, e.count, len(f.strings))
		}
		if !ok {
			return fmt.Errorf("entry %d points outside", i)
		}
	}
	for i := range uint32(f.dirents.n) {
		if d := f.dirent(i); int(d.entry) >= f.entries.n || !within(d.nameOff, uint32(d.nameLen), len(f.strings)) {
			return fmt.Errorf("name %d points outside", i)
		}
	}
	for i := range uint32(f.xattrs.n) {
		b := f.xattrs.at(i, xattrSize)
		if !within(le.Uint32(b), le.Uint32(b[4:]), len(f.strings)) || !within(le.Uint32(b[8:]), le.Uint32(b[12:]), len(f.strings)) {
			return fmt.Errorf("attribute %d points outside", i)
		}
	}
	for i := range uint32(f.chunks.n) {
		if c := f.chunk(i); int(c.Member) >= f.members.n || c.Size > chunk.MaxSize || c.Offset < 0 || int(f.chunkFile(i)) >= f.entries.n {
			return fmt.Errorf("chunk %d points outside", i)
		}
	}
	for i := range uint32(f.members.n) {
		m := f.member(i)
		first, end := f.memberChunks(i)
		if m.Offset < 0 || m.End <= m.Offset || first > end || int(end) > f.chunks.n {
			return fmt.Errorf("member %d points outside", i)
		}
	}
	return nil
}
