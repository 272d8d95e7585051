package artifact

import (
	"fmt"

	"github.com/airstream-io/airstream/internal/toc"
)

// Tree returns the tree of a layer, counted from the lowest, whose table of
// contents begins at payloadSize in its blob. Chunks whose ID is neither in the
// root nor on pages, which may be nil, have the zero ID (see toc.Tree.Known), and
// as their member some part of the blob that they begin in. With all pages the
// result is what toc.Parse makes of the layer's own table. Entries and chunks
// have the same numbers whatever is known, members have not. Errors are
// ErrInvalid.
func (r *Root) Tree(number int, payloadSize int64, pages *Pages) (*toc.Tree, error) {
	return r.Extend(nil, number, payloadSize, pages)
}

// Extend does what Tree does, and takes from an earlier result for the same layer what
// it knows: pages that it was made with need not be here any more.
func (r *Root) Extend(earlier *toc.Tree, number int, payloadSize int64, pages *Pages) (*toc.Tree, error) {
	if number < 0 || number >= len(r.layers) {
		return nil, fmt.Errorf("artifact: tree: %w", invalid("layer %d of %d", number, len(r.layers)))
	}
	l := &r.layers[number]
	if earlier != nil && uint64(earlier.NumChunks()) != uint64(l.chunks) {
		return nil, fmt.Errorf("artifact: tree of layer %d: %w", number, invalid("an earlier one of %d chunks, want %d", earlier.NumChunks(), l.chunks))
	}
	b := builder{r: r, l: l, files: newFiles(r, l), limit: payloadSize, scout: newScout(r, l, pages), to: toc.NewAssembly(payloadSize)}
	b.scout.earlier = earlier
	if err := b.build(); err != nil {
		return nil, fmt.Errorf("artifact: tree of layer %d: %w: %w", number, ErrInvalid, err)
	}
	t, err := b.to.Tree()
	if err != nil {
		return nil, fmt.Errorf("artifact: tree of layer %d: %w: %w", number, ErrInvalid, err)
	}
	return t, nil
}

// builder puts a layer's columns together.
type builder struct {
	r     *Root
	l     *layer
	files *files
	scout *scout
	limit int64 // where the layer's table of contents begins
	to    *toc.Assembly

	chunk  uint32 // number of the next one
	before where  // the last one whose place is known
	ahead  found  // the next one whose place is known
	unsure uint32 // how many since before
}

func (b *builder) share(col int) cursor { return cursor{b: b.l.shares[col-perLayer]} }

func (b *builder) build() error {
	if err := b.scout.next(&b.ahead); err != nil {
		return err
	}
	when, link := b.share(colTime), b.share(colLink)
	fresh := uint64(b.l.timesBefore)
	for e := range b.l.entries {
		if err := b.files.next(e); err != nil {
			return err
		}
		entry := b.files.entry
		t := when.uvarint()
		if t == 0 {
			fresh++
			t = fresh
		}
		if when.err != nil || t > uint64(len(b.r.times)) {
			return invalid("entry %d has a time that isn't there", e)
		}
		entry.Mtime = b.r.times[t-1]
		if entry.Mode&toc.TypeMask == toc.TypeSymlink {
			entry.Link = string(link.zeroTerminated())
			if link.err != nil {
				return link.err
			}
		}
		if err := b.to.Add(entry); err != nil {
			return err
		}
		for k := range b.files.count() {
			if err := b.addChunk(b.files.size(k)); err != nil {
				return err
			}
		}
	}
	if err := b.scout.end(); err != nil {
		return err
	}
	if len(when.b)+len(link.b) > 0 {
		return invalid("there are more times or links than entries")
	}
	if err := b.files.end(); err != nil {
		return err
	}
	return b.names()
}

// names gives the entries their names: first directories, whose places must be
// there before anything can be in them.
func (b *builder) names() error {
	parent, prefix, suffix := b.share(colParent), b.share(colPrefix), b.share(colName)
	dirs := make([]uint32, b.l.entries)
	isDir := make([]bool, b.l.entries)
	kind := newFiles(b.r, b.l)
	var name, later []byte // later: names of what is no directory, one after the other
	ends := make([]uint32, b.l.entries)
	for e := range b.l.entries {
		if err := kind.next(e); err != nil {
			return err
		}
		isDir[e] = kind.entry.Mode&toc.TypeMask == toc.TypeDir
		ends[e] = uint32(len(later))
		if e == 0 {
			continue
		}
		dir, err := parentOf(dirs, e, parent.uvarint())
		if err != nil {
			return err
		}
		n := prefix.uvarint()
		rest := suffix.zeroTerminated()
		if parent.err != nil || prefix.err != nil || suffix.err != nil || n > uint64(len(name)) {
			return invalid("entry %d has no name", e)
		}
		if n+uint64(len(rest)) > maxName || len(later) > maxColumns {
			return invalid("entry %d has a name of %d bytes, those before of %d", e, n+uint64(len(rest)), len(later))
		}
		dirs[e] = dir
		name = append(name[:n], rest...)
		if isDir[e] {
			if err := b.to.Name(dir, string(name), e); err != nil {
				return err
			}
			continue
		}
		later = append(later, name...)
		ends[e] = uint32(len(later))
	}
	if len(parent.b)+len(prefix.b)+len(suffix.b) > 0 {
		return invalid("there are more names than entries")
	}
	for e := uint32(1); e < b.l.entries; e++ {
		if isDir[e] {
			continue
		}
		if err := b.to.Name(dirs[e], string(later[ends[e-1]:ends[e]]), e); err != nil {
			return err
		}
	}
	extra := b.share(colExtra)
	for len(extra.b) > 0 {
		dir, e, name := extra.u32(), extra.u32(), extra.text()
		if extra.err != nil {
			return extra.err
		}
		if err := b.to.Name(dir, string(name), e); err != nil {
			return err
		}
	}
	return extra.err
}

// maxName bounds names before toc looks at them, so that few bytes don't make
// many: the longest that it takes.
const maxName = 255

// parentOf resolves a parent code.
func parentOf(dirs []uint32, e uint32, code uint64) (uint32, error) {
	before := e - 1
	switch {
	case code == 0:
		return dirs[before], nil
	case code == 1:
		return before, nil
	case code < absolute:
		at := dirs[before]
		for ; code > 1; code-- {
			if at == toc.Root || at >= e {
				return 0, invalid("entry %d is above the root, or above what has no place yet", e)
			}
			at = dirs[at]
		}
		return at, nil
	case code-absolute < uint64(len(dirs)):
		return uint32(code - absolute), nil
	}
	return 0, invalid("entry %d has a parent that isn't there", e)
}
