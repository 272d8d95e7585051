package layer

import (
	"archive/tar"
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// row is one entry of the table: a name that is still there when the whole tar
// has been unpacked.
type row struct {
	name  string // clean
	link  string // clean, for a hardlink
	entry int    // the tar entry that it describes, and whose content it has
	attrs []int  // further entries, in order, whose attributes override
	kind  byte
}

// inode is what names point to. All hardlinks of a file share one.
type inode struct {
	entry    int // of the tar; -1 for a directory that no entry names
	kind     byte
	live     bool // a directory that is still there at the end
	link     string
	attrs    []int
	children map[string]name
	places   []place // of anything but a directory, by entry
}

// name is what a directory holds: an inode, and the entry that put it there.
type name struct {
	*inode
	entry int
}

// place is a name that an inode was given, by which entry.
type place struct {
	dir   *inode
	path  string
	entry int
}

const maxLinks = 255 // symbolic links on the way to one name, as in containerd

func newDir(entry int) *inode {
	return &inode{entry: entry, kind: tar.TypeDir, children: map[string]name{}}
}

// resolve plays the entries as an unpacker would and returns the rows, by
// entry. The rules are those of containerd's archive.Apply: what a name had
// before is removed, unless both are directories; symbolic links on the way to
// a name are followed within the layer; a hardlink's header changes the file
// that it points to.
func resolve(entries []entry) ([]row, error) {
	root := newDir(-1)
	for i := range entries {
		if err := play(root, entries, i); err != nil {
			return nil, fmt.Errorf("%w: %q: %w", ErrInvalid, shorten(entries[i].name), err)
		}
	}
	root.mark()
	var rows []row
	if root.entry >= 0 {
		rows = append(rows, row{entry: root.entry, kind: tar.TypeDir})
	}
	rows = root.list(rows, "")
	slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(a.entry, b.entry) })
	return rows, nil
}

func play(root *inode, entries []entry, i int) error {
	e := &entries[i]
	clean := cleanName(e.name)
	if clean == "" {
		root.entry = i
		return nil
	}
	dir, at, err := walk(root, path.Dir(clean), true)
	if err != nil {
		return err
	}
	base := path.Base(clean)
	switch old := dir.children[base]; e.kind {
	case tar.TypeDir:
		if old.inode != nil && old.kind == tar.TypeDir {
			old.inode.entry = i
			return nil
		}
		dir.children[base] = name{newDir(i), i}
	case tar.TypeLink:
		target, err := linkTarget(root, e.link)
		if err != nil {
			return fmt.Errorf("hardlink to %q: %w", shorten(e.link), err)
		}
		if target.inode == old.inode && target.entry == old.entry {
			return errors.New("hardlink to itself")
		}
		target.attrs = append(target.attrs, i)
		target.places = append(target.places, place{dir, path.Join(at, base), i})
		dir.children[base] = name{target.inode, i}
	default:
		n := &inode{entry: i, kind: e.kind, link: e.link, places: []place{{dir, path.Join(at, base), i}}}
		dir.children[base] = name{n, i}
	}
	return nil
}

func linkTarget(root *inode, link string) (name, error) {
	clean := cleanName(link)
	dir, _, err := walk(root, path.Dir(clean), false)
	if err != nil {
		return name{}, err
	}
	t, ok := dir.children[path.Base(clean)]
	if !ok {
		return name{}, errors.New("it is not in the layer")
	}
	if t.kind == tar.TypeDir {
		return name{}, errors.New("it is a directory")
	}
	return t, nil
}

// walk finds the directory at a clean path and says where it really is.
func walk(root *inode, clean string, create bool) (dir *inode, at string, err error) {
	todo := strings.Split(clean, "/")
	stack := []*inode{root}
	var names []string
	for links := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if len(names) > 0 {
				stack, names = stack[:len(stack)-1], names[:len(names)-1]
			}
			continue
		}
		here := stack[len(stack)-1]
		next := here.children[part].inode
		if next == nil && !create {
			return nil, "", fmt.Errorf("%q is not in the layer", shorten(path.Join(append(names, part)...)))
		}
		if next == nil {
			next = newDir(-1)
			here.children[part] = name{next, -1}
		}
		switch next.kind {
		case tar.TypeDir:
			stack, names = append(stack, next), append(names, part)
		case tar.TypeSymlink:
			if links++; links > maxLinks {
				return nil, "", errors.New("too many symbolic links")
			}
			if strings.HasPrefix(next.link, "/") {
				stack, names = stack[:1], nil
			}
			todo = append(strings.Split(next.link, "/"), todo...)
		default:
			return nil, "", fmt.Errorf("%q is not a directory", shorten(path.Join(append(names, part)...)))
		}
		if len(names) > maxDepth || len(todo) > 2*maxPath {
			return nil, "", errors.New("path too deep")
		}
	}
	return stack[len(stack)-1], path.Join(names...), nil
}

func (n *inode) mark() {
	n.live = true
	for _, c := range n.children {
		if c.kind == tar.TypeDir {
			c.mark()
		}
	}
}

// list appends the rows of everything below the directory n, which is at at.
func (n *inode) list(rows []row, at string) []row {
	for base, c := range n.children {
		if c.kind == tar.TypeDir {
			if c.inode.entry >= 0 {
				rows = append(rows, row{name: path.Join(at, base), entry: c.inode.entry, kind: tar.TypeDir})
			}
			rows = c.list(rows, path.Join(at, base))
			continue
		}
		if first := c.first(); first.entry == c.entry {
			rows = append(rows, row{name: first.path, entry: c.inode.entry, attrs: c.attrs, kind: c.kind})
		} else {
			rows = append(rows, row{name: path.Join(at, base), link: first.path, entry: c.entry, kind: tar.TypeLink})
		}
	}
	return rows
}

// first is the first of the names of a file that it still has. Its content is
// listed there; the other names are hardlinks to it.
func (n *inode) first() place {
	for len(n.places) > 1 && !n.places[0].holds(n) {
		n.places = n.places[1:]
	}
	return n.places[0]
}

func (p place) holds(n *inode) bool {
	c := p.dir.children[path.Base(p.path)]
	return p.dir.live && c.inode == n && c.entry == p.entry
}
