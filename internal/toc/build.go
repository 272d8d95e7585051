package toc

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Names with a meaning of their own.
const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	aufsPrefix     = ".wh..wh." // leftovers of aufs, which unpackers skip
	opaqueXattr    = "trusted.overlay.opaque"
)

// hidden are the files that eStargz adds to a layer's root for its own use.
// stargz-snapshotter doesn't show them either.
var hidden = []string{"stargz.index.json", ".prefetch.landmark", ".no.prefetch.landmark"}

type hardlink struct {
	name, target []string
	meta         *node // nil: the entry says nothing but the name
}

// builder plays a table's entries in order, as an unpacker would.
type builder struct {
	payloadSize int64
	nodes       blocks[node]
	chunks      blocks[pendingChunk]
	file        uint32 // the regular file that "chunk" entries continue, or noNode
	filled      int64  // bytes of it that its chunks so far make
	late        []hardlink
	xattrBytes  int64
	cuts        []int64 // where members end that the next one doesn't follow at once
}

func newBuilder(payloadSize int64) *builder {
	b := &builder{payloadSize: payloadSize, file: noNode}
	b.nodes.add(node{mode: TypeDir | 0o755, nlink: 1})
	return b
}

func (b *builder) add(e *jsonEntry) error {
	if e.Type == "chunk" {
		return b.continueFile(e)
	}
	if err := b.endFile(); err != nil {
		return err
	}
	parts, err := splitPath(e.Name)
	if err != nil {
		return err
	}
	if len(parts) == 1 && slices.Contains(hidden, parts[0]) {
		return nil
	}
	if b.nodes.n > maxEntries {
		return fmt.Errorf("more than %d entries", maxEntries)
	}
	if len(parts) > 0 {
		if done, err := b.addMarker(e, parts); done || err != nil {
			return err
		}
	}
	if e.Type == "hardlink" {
		target, err := splitPath(e.LinkName)
		if err != nil || len(parts) == 0 {
			return fmt.Errorf("hardlink to %q: %w", shorten(e.LinkName), errors.Join(err, errors.New("not a file")))
		}
		l := hardlink{name: parts, target: target}
		if e.Mode != 0 { // writers that leave it out mean nothing by it
			n, err := e.meta()
			if err != nil {
				return err
			}
			l.meta = &n
		}
		if ok, err := b.linkTo(l); ok || err != nil {
			return err
		}
		// A prioritised name may come before its target.
		b.late = append(b.late, l)
		return nil
	}
	n, err := e.attr()
	if err != nil {
		return err
	}
	for _, v := range n.xattrs() {
		b.xattrBytes += int64(len(v))
	}
	if b.xattrBytes > MaxJSONSize {
		return errors.New("too many bytes of extended attributes")
	}
	id, err := b.place(parts, n)
	if err != nil || n.mode&TypeMask != TypeRegular || n.size == 0 {
		return err
	}
	b.file, b.filled = id, 0
	return b.continueFile(e)
}

// addMarker handles whiteouts and opaque markers; done says that e was one.
func (b *builder) addMarker(e *jsonEntry, parts []string) (done bool, err error) {
	base, dir := parts[len(parts)-1], parts[:len(parts)-1]
	switch {
	case base == opaqueMarker:
		id, err := b.mkdirAll(dir)
		if err != nil {
			return true, err
		}
		b.makeOpaque(id)
		return true, nil
	case strings.HasPrefix(base, aufsPrefix):
		return true, nil
	case strings.HasPrefix(base, whiteoutPrefix):
		name := strings.TrimPrefix(base, whiteoutPrefix)
		if name == "" || name == "." || name == ".." {
			return true, errors.New("whiteout of nothing")
		}
		w := node{mode: TypeChar, parent: noNode}
		if e.UID >= 0 && e.UID < math.MaxUint32 && e.GID >= 0 && e.GID < math.MaxUint32 {
			w.uid, w.gid = uint32(e.UID), uint32(e.GID)
		}
		if err := w.setMtime(e.ModTime); err != nil {
			return true, err
		}
		return true, b.whiteout(dir, name, w)
	}
	return false, nil
}

// whiteout hides name in the layers below. The image spec lets it speak of
// those alone: what this layer itself has under the name stays, and a
// directory is cut off from what it would merge with.
func (b *builder) whiteout(dir []string, name string, w node) error {
	at, err := b.mkdirAll(dir)
	if err != nil {
		return err
	}
	old, ok := b.nodes.at(at).children.get(name)
	if !ok {
		w.nlink = 1
		b.name(at, name, b.nodes.add(w))
		return nil
	}
	if b.nodes.at(old).isDir() {
		b.makeOpaque(old)
	}
	return nil
}

func (b *builder) makeOpaque(id uint32) { b.nodes.at(id).setXattr(opaqueXattr, []byte("y")) }

// name gives a node a name in a directory.
func (b *builder) name(dir uint32, name string, id uint32) {
	d := b.nodes.at(dir)
	if d.children == nil {
		d.children = &children{}
	}
	d.children.set(name, id)
}

// newDir makes a directory as unpackers do where no entry speaks of one.
func (b *builder) newDir(parent uint32, name string) uint32 {
	id := b.nodes.add(node{mode: TypeDir | 0o755, parent: parent, nlink: 1})
	b.name(parent, name, id)
	return id
}

// mkdirAll returns the directory at parts, making what is missing as
// unpackers do: mode 0755, owned by root.
func (b *builder) mkdirAll(parts []string) (uint32, error) {
	at := Root
	for _, name := range parts {
		next, ok := b.nodes.at(at).children.get(name)
		switch {
		case !ok:
			if b.nodes.n > maxEntries {
				return 0, fmt.Errorf("more than %d entries", maxEntries)
			}
			next = b.newDir(at, name)
		case b.nodes.at(next).isWhiteout():
			b.drop(next)
			next = b.newDir(at, name)
		case !b.nodes.at(next).isDir():
			return 0, fmt.Errorf("%q is not a directory", shorten(name))
		}
		at = next
	}
	return at, nil
}

// place puts n at parts, replacing what is there; a directory over a
// directory keeps its children and takes the new attributes.
func (b *builder) place(parts []string, n node) (uint32, error) {
	if len(parts) == 0 {
		if !n.isDir() {
			return 0, errors.New("the root is not a directory")
		}
		b.mergeDir(Root, n)
		return Root, nil
	}
	dir, err := b.mkdirAll(parts[:len(parts)-1])
	if err != nil {
		return 0, err
	}
	name := parts[len(parts)-1]
	if old, ok := b.nodes.at(dir).children.get(name); ok {
		if n.isDir() && b.nodes.at(old).isDir() {
			b.mergeDir(old, n)
			return old, nil
		}
		b.drop(old)
	}
	n.nlink = 1
	if n.isDir() {
		n.parent = dir
	}
	id := b.nodes.add(n)
	b.name(dir, name, id)
	return id, nil
}

// mergeDir gives a directory the attributes of a later entry. Extended
// attributes that it has stay, as on disk.
func (b *builder) mergeDir(id uint32, n node) {
	b.nodes.at(id).become(n)
}

func (n *node) become(later node) {
	n.mode = n.mode&TypeMask | later.mode&^TypeMask
	n.uid, n.gid, n.mtime, n.mtimeNsec = later.uid, later.gid, later.mtime, later.mtimeNsec
	for name, value := range later.xattrs() {
		n.setXattr(name, value)
	}
}

// drop takes one name away from a node, and from all below a directory.
func (b *builder) drop(id uint32) {
	stack := []uint32{id}
	for len(stack) > 0 {
		n := b.nodes.at(stack[len(stack)-1])
		stack = stack[:len(stack)-1]
		n.nlink--
		for _, c := range n.children.all() {
			stack = append(stack, c)
		}
		n.children = nil
	}
}

// linkTo makes another name for a file, and gives it the attributes that the
// name's entry has: an unpacker sets them through the name. ok is false if the
// target isn't there.
func (b *builder) linkTo(l hardlink) (ok bool, err error) {
	at := Root
	for _, name := range l.target {
		next, found := b.nodes.at(at).children.get(name)
		if !found {
			return false, nil
		}
		at = next
	}
	if b.nodes.at(at).isDir() {
		return false, errors.New("hardlink to a directory")
	}
	dir, err := b.mkdirAll(l.name[:len(l.name)-1])
	if err != nil {
		return false, err
	}
	name := l.name[len(l.name)-1]
	old, exists := b.nodes.at(dir).children.get(name)
	if exists && old == at {
		return true, nil
	}
	if exists {
		b.drop(old)
	}
	if b.nodes.at(at).nlink == 0 { // it was the target's last name, or above it
		return false, errors.New("hardlink replaces its own target")
	}
	b.nodes.at(at).nlink++
	b.name(dir, name, at)
	if l.meta != nil {
		b.nodes.at(at).become(*l.meta)
	}
	return true, nil
}

func (b *builder) continueFile(e *jsonEntry) error {
	if b.file == noNode {
		return errors.New("chunk without a file")
	}
	n := b.nodes.at(b.file)
	c, err := e.chunk(n.size)
	if err != nil {
		return err
	}
	if c.blobOffset < 0 || c.blobOffset >= b.payloadSize {
		return fmt.Errorf("chunk at %d of a blob of %d bytes", c.blobOffset, b.payloadSize)
	}
	if e.ChunkOffset != b.filled {
		return fmt.Errorf("chunk at %d of the file, want %d", e.ChunkOffset, b.filled)
	}
	if b.chunks.n == maxChunks {
		return fmt.Errorf("more than %d chunks", maxChunks)
	}
	if at := b.chunks.add(c); n.count == 0 {
		n.first = at
	}
	n.count++
	b.filled += int64(c.size)
	return nil
}

// endFile checks that the chunks so far make the whole of the current file.
func (b *builder) endFile() error {
	if b.file == noNode {
		return nil
	}
	n := b.nodes.at(b.file)
	b.file = noNode
	if b.filled != n.size {
		return fmt.Errorf("the file before it ends at %d of %d bytes", b.filled, n.size)
	}
	return nil
}

// finish resolves what had to wait for the last entry.
func (b *builder) finish() error {
	if err := b.endFile(); err != nil {
		return err
	}
	for len(b.late) > 0 {
		var still []hardlink
		for _, l := range b.late {
			ok, err := b.linkTo(l)
			if err != nil {
				return fmt.Errorf("%q: %w", shorten(strings.Join(l.name, "/")), err)
			}
			if !ok {
				still = append(still, l)
			}
		}
		if len(still) == len(b.late) {
			l := still[0]
			return fmt.Errorf("%q is a hardlink to %q, which is not in the layer",
				shorten(strings.Join(l.name, "/")), shorten(strings.Join(l.target, "/")))
		}
		b.late = still
	}
	return nil
}
