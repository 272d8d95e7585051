package toc

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"math"
	"slices"
)

// layout turns the builder's nodes into the flat form, each section in its
// place: a tree is large, and is not to be there twice.
type layout struct {
	b       *builder
	number  []uint32 // node to entry; noNode for dropped nodes
	seed    maphash.Seed
	seen    map[uint64]uint32 // hash of a string to where it begins; strings themselves would double what they take
	entries []byte            // sections, with room for what they will hold
	chunks  []byte
	members []byte
	xattrs  []byte
	dirents []byte
	strings []byte
	nx, nd  uint32
}

// sizes are how many of each record there will be.
type sizes struct {
	entries, chunks, members, xattrs, dirents uint32
	strings                                   int64 // bytes, at most: equal ones are kept once
}

func (b *builder) tree() (*Tree, error) {
	if err := b.finish(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	l := &layout{b: b, number: make([]uint32, b.nodes.n), seed: maphash.MakeSeed(), seen: map[uint64]uint32{}}
	n := l.measure()
	offsets := l.memberOffsets(n.chunks)
	n.members = uint32(len(offsets))
	if n.strings > math.MaxUint32 {
		return nil, fmt.Errorf("%w: %d bytes of names", ErrInvalid, n.strings)
	}
	raw, fixed := l.allot(n)
	if err := l.layChunks(offsets); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	b.chunks = blocks[pendingChunk]{} // they are in raw now
	for i := range b.nodes.n {
		if b.nodes.at(i).nlink > 0 {
			l.layNode(b.nodes.at(i))
		}
	}
	members := uint32(len(l.members) / memberSize) // those of replaced files are left out
	h := append(raw[:0], flatMagic...)
	for _, v := range []uint32{0, n.entries, n.chunks, members, l.nx, l.nd} {
		h = le.AppendUint32(h, v)
	}
	h = le.AppendUint64(h, uint64(len(l.strings)))
	le.AppendUint64(h, 0)
	if members < n.members {
		gap := int(n.members-members) * memberSize
		behind := fixed - gap
		copy(raw[behind-len(l.xattrs)-len(l.dirents):], raw[fixed-len(l.xattrs)-len(l.dirents):fixed+len(l.strings)])
		fixed = behind
	}
	return Load(raw[:fixed+len(l.strings)])
}

// measure numbers the nodes that are left and counts what they have.
func (l *layout) measure() sizes {
	var n sizes
	for i := range l.b.nodes.n {
		nd := l.b.nodes.at(i)
		if nd.nlink == 0 {
			l.number[i] = noNode
			continue
		}
		l.number[i] = n.entries
		n.entries++
		n.chunks += nd.count
		n.dirents += uint32(nd.children.len())
		n.xattrs += uint32(len(nd.xattrs()))
		n.strings += int64(len(nd.link()))
		for name := range nd.children.all() {
			n.strings += int64(len(name))
		}
		for name, value := range nd.xattrs() {
			n.strings += int64(len(name) + len(value))
		}
	}
	return n
}

// allot makes room for all sections in one piece of memory; fixed is where the
// strings begin.
func (l *layout) allot(n sizes) (raw []byte, fixed int) {
	type section struct {
		to   *[]byte
		size int
	}
	all := []section{
		{&l.entries, int(n.entries) * entrySize},
		{&l.chunks, int(n.chunks) * chunkSize},
		{&l.members, int(n.members) * memberSize},
		{&l.xattrs, int(n.xattrs) * xattrSize},
		{&l.dirents, int(n.dirents) * direntSize},
		{&l.strings, int(n.strings)},
	}
	total := headerSize
	for _, s := range all {
		total += s.size
	}
	raw = make([]byte, total)
	at := headerSize
	for _, s := range all {
		*s.to = raw[at : at : at+s.size]
		at += s.size
	}
	return raw, total - int(n.strings)
}

// layNode writes an entry and what belongs to it, and lets go of it.
func (l *layout) layNode(n *node) {
	e := entryRec{
		mode: n.mode, uid: n.uid, gid: n.gid, rdev: n.rdev, nlink: n.nlink,
		mtime: n.mtime, mtimeNsec: n.mtimeNsec, size: n.size,
	}
	switch n.mode & TypeMask {
	case TypeDir:
		l.layDir(n, &e)
	case TypeRegular:
		e.first, e.count = n.first, n.count
	case TypeSymlink:
		e.first, e.count = l.text(n.link()), uint32(len(n.link()))
	}
	l.layXattrs(n, &e)
	l.entries = e.append(l.entries)
	n.children, n.extra = nil, nil
}

// text puts s among the strings, unless it is there, and returns where.
func (l *layout) text(s string) uint32 {
	h := maphash.String(l.seed, s)
	off, ok := l.seen[h]
	if ok && bytes.HasPrefix(l.strings[off:], []byte(s)) {
		return off
	}
	off = uint32(len(l.strings))
	l.strings = append(l.strings, s...)
	l.seen[h] = off
	return off
}

func (l *layout) layDir(n *node, e *entryRec) {
	e.first, e.count = l.nd, uint32(n.children.len())
	e.parent = l.number[n.parent]
	e.nlink = 2
	for _, c := range n.children.sorted() {
		if l.b.nodes.at(c.id).isDir() {
			e.nlink++
		}
		l.dirents = le.AppendUint32(l.dirents, l.number[c.id])
		l.dirents = le.AppendUint32(l.dirents, l.text(c.name))
		l.dirents = le.AppendUint16(l.dirents, uint16(len(c.name)))
		l.dirents = le.AppendUint16(l.dirents, 0)
		l.nd++
	}
}

func (l *layout) layXattrs(n *node, e *entryRec) {
	e.xattr, e.xattrs = l.nx, uint32(len(n.xattrs()))
	for _, name := range slices.Sorted(maps.Keys(n.xattrs())) {
		value := n.xattrs()[name]
		for _, v := range []uint32{l.text(name), uint32(len(name)), l.text(string(value)), uint32(len(value))} {
			l.xattrs = le.AppendUint32(l.xattrs, v)
		}
		l.nx++
	}
}

// memberOffsets returns where compressed members begin in the blob, those of
// replaced files too: they end the ones before them.
func (l *layout) memberOffsets(chunks uint32) []int64 {
	offsets := make([]int64, 0, chunks)
	for i := range l.b.chunks.n {
		offsets = append(offsets, l.b.chunks.at(i).blobOffset)
	}
	offsets = append(offsets, l.b.cuts...)
	slices.Sort(offsets)
	return slices.Compact(offsets)
}

// layChunks numbers the chunks of the surviving files and finds the members
// that hold them. Chunks must lie in the blob in the order of the table, as
// every eStargz writer lays them; members can then be numbered in one pass,
// and a range of a blob is a range of chunk numbers.
func (l *layout) layChunks(offsets []int64) error {
	var before pendingChunk
	var nchunks, nmembers uint32
	for i := range l.b.nodes.n {
		n := l.b.nodes.at(i)
		if n.nlink == 0 {
			continue
		}
		from := n.first
		n.first = nchunks
		var offset int64
		for k := range n.count {
			c := l.b.chunks.at(from + k)
			if nchunks > 0 && cmp.Or(cmp.Compare(before.blobOffset, c.blobOffset), cmp.Compare(before.inner, c.inner)) >= 0 {
				return errors.New("chunks are not in the order of the blob")
			}
			if nchunks == 0 || before.blobOffset != c.blobOffset {
				l.layMember(offsets, c.blobOffset, nchunks)
				nmembers++
			}
			l.chunks = append(l.chunks, c.id[:]...)
			l.chunks = le.AppendUint64(l.chunks, uint64(offset))
			for _, v := range []uint32{c.size, nmembers - 1, c.inner, l.number[i]} {
				l.chunks = le.AppendUint32(l.chunks, v)
			}
			nchunks++
			offset += int64(c.size)
			before = *c
		}
	}
	return nil
}

// layMember writes the member at a place in the blob; firstChunk is the first
// chunk in it.
func (l *layout) layMember(offsets []int64, at int64, firstChunk uint32) {
	k, _ := slices.BinarySearch(offsets, at)
	end := l.b.payloadSize
	if k+1 < len(offsets) {
		end = offsets[k+1]
	}
	l.members = le.AppendUint64(l.members, uint64(at))
	l.members = le.AppendUint64(l.members, uint64(end))
	l.members = le.AppendUint32(l.members, firstChunk)
	l.members = le.AppendUint32(l.members, 0)
}
