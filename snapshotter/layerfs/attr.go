package layerfs

import (
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/airstream-io/airstream/internal/toc"
)

const blockSize = 4096

// rootAttr is that of the mount's root, which only ever leads to layers.
func rootAttr(out *fuse.Attr) {
	*out = fuse.Attr{Ino: rootID, Mode: fuse.S_IFDIR | 0o555, Nlink: 2, Blksize: blockSize}
}

func fillAttr(n node, a toc.Attr, out *fuse.Attr) {
	sec, nsec := uint64(a.Mtime.Unix()), uint32(a.Mtime.Nanosecond())
	*out = fuse.Attr{
		Ino:   n.id(),
		Size:  uint64(a.Size),
		Mode:  a.Mode,
		Nlink: a.Nlink,
		Owner: fuse.Owner{Uid: a.UID, Gid: a.GID},
		Rdev:  a.Rdev,
		// An archive has one time; what unpackers do to the others is chance.
		Mtime: sec, Mtimensec: nsec,
		Ctime: sec, Ctimensec: nsec,
		Atime: sec, Atimensec: nsec,
		Blksize: blockSize,
	}
	switch a.Mode & toc.TypeMask {
	case toc.TypeRegular:
		out.Blocks = (out.Size + 511) / 512
	case toc.TypeSymlink:
		out.Mode |= 0o777 // as Linux has it, whatever the archive says
	}
}

func fillEntry(n node, a toc.Attr, out *fuse.EntryOut) {
	out.NodeId = n.id()
	out.Generation = 1
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
	fillAttr(n, a, &out.Attr)
}

// Lookup finds a layer in the root of the mount, or a name in a directory of a
// layer. It waits for the layer's TOC.
func (t *tree) Lookup(cancel <-chan struct{}, header *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	t.stats.lookups.Add(1)
	ctx := t.request(cancel, header)
	defer ctx.end()
	if header.NodeId == rootID {
		slot, base, ok := ParseDirName(name)
		if !ok {
			return fuse.ENOENT
		}
		// A negative answer is not kept: the slot may be given away later.
		n, tr, err := t.locate(ctx, node{slot: slot, base: base}.id())
		if err != nil {
			return t.status(ctx, n.id(), err)
		}
		fillEntry(n, tr.Attr(n.entry), out)
		return fuse.OK
	}
	dir, tr, err := t.locate(ctx, header.NodeId)
	if err != nil {
		return t.status(ctx, header.NodeId, err)
	}
	entry, ok := tr.Lookup(dir.entry, name)
	ok = ok && !dir.hidden(tr, entry)
	if t.observer != nil {
		t.observer.Lookup(dir.slot, dir.entry, name, ok)
	}
	if !ok {
		// Node 0 is a negative entry, which the kernel keeps too.
		out.SetEntryTimeout(forever)
		return fuse.OK
	}
	fillEntry(dir.at(entry), tr.Attr(entry), out)
	return fuse.OK
}

// Forget has nothing to forget: ids are computed.
func (t *tree) Forget(uint64, uint64) {}

// GetAttr answers stat(2), when the kernel has lost what it knew.
func (t *tree) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.SetTimeout(forever)
	if in.NodeId == rootID {
		rootAttr(&out.Attr)
		return fuse.OK
	}
	ctx := t.request(cancel, &in.InHeader)
	defer ctx.end()
	n, tr, err := t.locate(ctx, in.NodeId)
	if err != nil {
		return t.status(ctx, in.NodeId, err)
	}
	fillAttr(n, tr.Attr(n.entry), &out.Attr)
	return fuse.OK
}

// Readlink returns the target of a symbolic link.
func (t *tree) Readlink(cancel <-chan struct{}, header *fuse.InHeader) ([]byte, fuse.Status) {
	ctx := t.request(cancel, header)
	defer ctx.end()
	n, tr, err := t.locate(ctx, header.NodeId)
	if err != nil {
		return nil, t.status(ctx, header.NodeId, err)
	}
	return []byte(tr.Readlink(n.entry)), fuse.OK
}

// GetXAttr returns the size of the value, too, when dest is too small for it.
// It is asked for security.capability at each exec, and for overlayfs' own
// attributes at each directory.
func (t *tree) GetXAttr(cancel <-chan struct{}, header *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	t.stats.xattrs.Add(1)
	if header.NodeId == rootID {
		return 0, fuse.ENOATTR
	}
	ctx := t.request(cancel, header)
	defer ctx.end()
	n, tr, err := t.locate(ctx, header.NodeId)
	if err != nil {
		return 0, t.status(ctx, header.NodeId, err)
	}
	value, ok := tr.Xattr(n.entry, name)
	if !ok || n.hides(name) {
		return 0, fuse.ENOATTR
	}
	if len(value) > len(dest) {
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}

// ListXAttr returns the names, each with a zero behind it.
func (t *tree) ListXAttr(cancel <-chan struct{}, header *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	t.stats.xattrs.Add(1)
	if header.NodeId == rootID {
		return 0, fuse.OK
	}
	ctx := t.request(cancel, header)
	defer ctx.end()
	n, tr, err := t.locate(ctx, header.NodeId)
	if err != nil {
		return 0, t.status(ctx, header.NodeId, err)
	}
	size := 0
	for name := range tr.Xattrs(n.entry) {
		if n.hides(name) {
			continue
		}
		if end := size + len(name) + 1; end <= len(dest) {
			copy(dest[size:], name)
			dest[end-1] = 0
		}
		size += len(name) + 1
	}
	if size > len(dest) {
		return uint32(size), fuse.ERANGE
	}
	return uint32(size), fuse.OK
}

// hides says whether the view doesn't show an extended attribute.
func (n node) hides(name string) bool {
	return n.base && strings.HasPrefix(name, "trusted.overlay.")
}

// StatFs gives what a read-only file system can say. overlayfs asks for the
// length of names when it is mounted, so this must not wait for anything.
func (t *tree) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Bsize: blockSize, Frsize: blockSize, NameLen: 255}
	return fuse.OK
}

// OpenDir needs no state. Kernels that know how are told not to ask again;
// they cache directories then.
func (t *tree) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if t.noOpenDir {
		return fuse.ENOSYS
	}
	if in.NodeId != rootID {
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_CACHE_DIR
	}
	return fuse.OK
}

// ReadDir lists names. See list.
func (t *tree) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return t.list(cancel, in, func(_ node, _ toc.Attr, e fuse.DirEntry, _ bool) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus lists names with all that Lookup would say of them.
func (t *tree) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return t.list(cancel, in, func(n node, a toc.Attr, e fuse.DirEntry, dots bool) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		if !dots { // the kernel doesn't want attributes of . and ..
			fillEntry(n, a, entry)
		}
		return true
	})
}

// list calls add for the names in a directory from an offset on, until it
// returns false. The offset of a name is its number, . and .. being the first:
// it means the same in any process. The root of the mount looks empty, because
// to list layers would be to wait for all of them.
func (t *tree) list(cancel <-chan struct{}, in *fuse.ReadIn, add func(n node, a toc.Attr, e fuse.DirEntry, dots bool) bool) fuse.Status {
	var (
		dir    node
		tr     *toc.Tree
		self   = uint64(rootID)
		parent = uint64(rootID)
		names  int
	)
	if in.NodeId != rootID {
		ctx := t.request(cancel, &in.InHeader)
		defer ctx.end()
		var err error
		if dir, tr, err = t.locate(ctx, in.NodeId); err != nil {
			return t.status(ctx, in.NodeId, err)
		}
		if t.observer != nil && in.Offset == 0 {
			t.observer.List(dir.slot, dir.entry)
		}
		self, names = dir.id(), tr.NumChildren(dir.entry)
		if dir.entry != toc.Root {
			parent = dir.at(tr.Parent(dir.entry)).id()
		}
	}
	for off := in.Offset; off < uint64(names)+2; off++ {
		e := fuse.DirEntry{Mode: fuse.S_IFDIR, Off: off + 1}
		switch off {
		case 0:
			e.Name, e.Ino = ".", self
		case 1:
			e.Name, e.Ino = "..", parent
		default:
			name, entry := tr.Child(dir.entry, int(off-2))
			if dir.hidden(tr, entry) {
				continue
			}
			a := tr.Attr(entry)
			e.Name, e.Ino, e.Mode = name, dir.at(entry).id(), a.Mode
			if !add(dir.at(entry), a, e, false) {
				return fuse.OK
			}
			continue
		}
		if !add(dir, toc.Attr{}, e, true) {
			return fuse.OK
		}
	}
	return fuse.OK
}
