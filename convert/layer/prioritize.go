package layer

import (
	"archive/tar"
	"path"
	"slices"
	"strings"
)

// order returns the order in which the entries of a tar are written, and how
// many of them come before the landmark: the files of the list, as far as the
// tar has them, in the list's order, each behind the directories that it is in.
//
// An unpacker must get the same from the new order as from the old. Moved are
// therefore only files and directories that the tar has once, below nothing but
// such directories, and that no whiteout of the same layer speaks of; of
// hardlinks the file that has the content, since a hardlink's own header may
// change what an earlier one said. A directory's opaque marker comes along.
// Where entries lie below symbolic links, and so have other names than they
// seem to, or where global headers speak of all that follow, nothing is moved.
func order(entries []entry, files []string) (list []int, hot int) {
	list = make([]int, 0, len(entries))
	if m := newMover(entries, files); m != nil {
		for _, f := range files {
			list = m.move(list, cleanName(f))
		}
		hot = len(list)
		for i := range entries {
			if !m.moved[i] {
				list = append(list, i)
			}
		}
		return list, hot
	}
	for i := range entries {
		list = append(list, i)
	}
	return list, 0
}

type mover struct {
	entries []entry
	at      map[string]int // clean name to entry, or one of those below
	moved   []bool
}

// What a name can have instead of an entry.
const (
	several = -1 - iota // directories that are listed more than once
	mixed               // entries of which not all are directories
)

// newMover returns nil if nothing may be moved.
func newMover(entries []entry, files []string) *mover {
	if len(files) == 0 {
		return nil
	}
	m := &mover{entries: entries, at: make(map[string]int, len(entries)), moved: make([]bool, len(entries))}
	for i := range entries {
		if entries[i].global {
			return nil
		}
		name := cleanName(entries[i].name)
		k, ok := m.at[name]
		switch {
		case !ok:
			k = i
		case k == mixed || entries[i].kind != tar.TypeDir || k >= 0 && entries[k].kind != tar.TypeDir:
			k = mixed
		default:
			k = several
		}
		m.at[name] = k
	}
	for i := range entries {
		for dir := parent(cleanName(entries[i].name)); dir != ""; dir = parent(dir) {
			if k, ok := m.at[dir]; ok && (k == mixed || k >= 0 && entries[k].kind != tar.TypeDir) {
				return nil
			}
		}
	}
	return m
}

// parent returns the directory that a clean name is in, "" for the root.
func parent(name string) string {
	dir := path.Dir(name)
	if dir == "." {
		return ""
	}
	return dir
}

// move appends the file with a clean name, and what must come before it, if it
// may be moved.
func (m *mover) move(list []int, name string) []int {
	i, ok := m.at[name]
	if ok && i >= 0 && m.entries[i].kind == tar.TypeLink {
		name = cleanName(m.entries[i].link)
		i, ok = m.at[name]
	}
	if !ok || i < 0 || m.moved[i] || m.entries[i].kind != tar.TypeReg || m.isWhiteout(name) || m.whitedOut(name) {
		return list
	}
	var dirs []string // from the deepest
	for dir := parent(name); dir != ""; dir = parent(dir) {
		if k, ok := m.at[dir]; ok && k < 0 || m.whitedOut(dir) {
			return list
		}
		if _, ok := m.at[dir]; !ok && m.opaque(dir) >= 0 {
			return list // what the marker is to mean there is the unpacker's choice
		}
		dirs = append(dirs, dir)
	}
	if k, ok := m.at[""]; ok && k >= 0 {
		list = m.take(list, k)
	}
	for _, dir := range slices.Backward(dirs) {
		k, ok := m.at[dir]
		if !ok || m.moved[k] {
			continue
		}
		list = m.take(list, k)
		if o := m.opaque(dir); o >= 0 {
			list = m.take(list, o)
		}
	}
	return m.take(list, i)
}

func (m *mover) take(list []int, i int) []int {
	if m.moved[i] {
		return list
	}
	m.moved[i] = true
	return append(list, i)
}

func (m *mover) isWhiteout(name string) bool { return strings.HasPrefix(path.Base(name), ".wh.") }

// whitedOut tells whether the layer has a whiteout for the name.
func (m *mover) whitedOut(name string) bool {
	_, ok := m.at[path.Join(parent(name), ".wh."+path.Base(name))]
	return ok
}

// opaque returns the entry of a directory's opaque marker, or -1.
func (m *mover) opaque(dir string) int {
	if k, ok := m.at[path.Join(dir, ".wh..wh..opq")]; ok && k >= 0 {
		return k
	}
	return -1
}
