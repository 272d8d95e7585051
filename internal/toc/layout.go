package toc

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
)

// layout turns the builder's nodes into the flat form.
type layout struct {
	number  []uint32 // node to entry; noNode for dropped nodes
	strings []byte
	seen    map[string]uint32
	chunks  []byte
	members []byte
	xattrs  []byte
	dirents []byte
	nx, nd  uint32
}

func (b *builder) tree() (*Tree, error) {
	if err := b.finish(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	l := &layout{number: make([]uint32, len(b.nodes)), seen: map[string]uint32{}}
	kept := uint32(0)
	for i := range b.nodes {
		if b.nodes[i].nlink == 0 {
			l.number[i] = noNode
			continue
		}
		l.number[i] = kept
		kept++
	}
	ranges, nchunks, nmembers, err := l.layChunks(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	var entries []byte
	for i := range b.nodes {
		n := &b.nodes[i]
		if n.nlink == 0 {
			continue
		}
		e := entryRec{
			mode: n.mode, uid: n.uid, gid: n.gid, rdev: n.rdev, nlink: n.nlink,
			mtime: n.mtime, mtimeNsec: n.mtimeNsec, size: n.size,
		}
		switch n.mode & TypeMask {
		case TypeDir:
			l.layDir(b, n, &e)
		case TypeRegular:
			e.first, e.count = ranges[i].first, ranges[i].count
		case TypeSymlink:
			e.first, e.count = l.text(n.link), uint32(len(n.link))
		}
		l.layXattrs(n, &e)
		entries = e.append(entries)
	}
	if len(l.strings) > math.MaxUint32 {
		return nil, fmt.Errorf("%w: %d bytes of names", ErrInvalid, len(l.strings))
	}

	raw := make([]byte, 0, headerSize+len(entries)+len(l.chunks)+len(l.members)+len(l.xattrs)+len(l.dirents)+len(l.strings))
	raw = append(raw, flatMagic...)
	for _, v := range []uint32{0, kept, nchunks, nmembers, l.nx, l.nd} {
		raw = le.AppendUint32(raw, v)
	}
	raw = le.AppendUint64(raw, uint64(len(l.strings)))
	raw = le.AppendUint64(raw, 0)
	for _, s := range [][]byte{entries, l.chunks, l.members, l.xattrs, l.dirents, l.strings} {
		raw = append(raw, s...)
	}
	return Load(raw)
}

func (l *layout) text(s string) uint32 {
	if off, ok := l.seen[s]; ok {
		return off
	}
	off := uint32(len(l.strings))
	l.strings = append(l.strings, s...)
	l.seen[s] = off
	return off
}

func (l *layout) layDir(b *builder, n *node, e *entryRec) {
	e.first, e.count = l.nd, uint32(len(n.children))
	e.parent = l.number[n.parent]
	e.nlink = 2
	for _, name := range sortedNames(n.children) {
		child := n.children[name]
		if b.nodes[child].mode&TypeMask == TypeDir {
			e.nlink++
		}
		l.dirents = le.AppendUint32(l.dirents, l.number[child])
		l.dirents = le.AppendUint32(l.dirents, l.text(name))
		l.dirents = le.AppendUint16(l.dirents, uint16(len(name)))
		l.dirents = le.AppendUint16(l.dirents, 0)
		l.nd++
	}
}

func (l *layout) layXattrs(n *node, e *entryRec) {
	e.xattr, e.xattrs = l.nx, uint32(len(n.xattrs))
	for _, name := range sortedNames(n.xattrs) {
		value := n.xattrs[name]
		for _, v := range []uint32{l.text(name), uint32(len(name)), l.text(string(value)), uint32(len(value))} {
			l.xattrs = le.AppendUint32(l.xattrs, v)
		}
		l.nx++
	}
}

type span struct{ first, count uint32 }

// layChunks numbers the chunks of the surviving files and finds the members
// that hold them. Chunks must lie in the blob in the order of the table, as
// every eStargz writer lays them; members can then be numbered in one pass,
// and a range of a blob is a range of chunk numbers.
func (l *layout) layChunks(b *builder) (ranges []span, nchunks, nmembers uint32, err error) {
	ranges = make([]span, len(b.nodes))
	var offsets []int64 // where members begin, those of replaced files too
	for i := range b.nodes {
		for _, c := range b.nodes[i].chunks {
			offsets = append(offsets, c.blobOffset)
		}
	}
	slices.Sort(offsets)
	offsets = slices.Compact(offsets)
	var before pendingChunk
	for i := range b.nodes {
		n := &b.nodes[i]
		if n.nlink == 0 {
			continue
		}
		ranges[i] = span{nchunks, uint32(len(n.chunks))}
		for _, c := range n.chunks {
			if nchunks > 0 && cmp.Or(cmp.Compare(before.blobOffset, c.blobOffset), cmp.Compare(before.inner, c.inner)) >= 0 {
				return nil, 0, 0, errors.New("chunks are not in the order of the blob")
			}
			if nchunks == 0 || before.blobOffset != c.blobOffset {
				k, _ := slices.BinarySearch(offsets, c.blobOffset)
				end := b.payloadSize
				if k+1 < len(offsets) {
					end = offsets[k+1]
				}
				l.members = le.AppendUint64(l.members, uint64(c.blobOffset))
				l.members = le.AppendUint64(l.members, uint64(end))
				l.members = le.AppendUint32(l.members, nchunks)
				l.members = le.AppendUint32(l.members, 0)
				nmembers++
			}
			l.chunks = append(l.chunks, c.id[:]...)
			l.chunks = le.AppendUint64(l.chunks, uint64(c.offset))
			for _, v := range []uint32{c.size, nmembers - 1, uint32(c.inner), l.number[i]} {
				l.chunks = le.AppendUint32(l.chunks, v)
			}
			nchunks++
			before = c
		}
	}
	return ranges, nchunks, nmembers, nil
}
