package store

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// disk models what may be left of a file system when the power fails. Nothing
// is durable but what fsync, of a file for its content and of a directory for
// its names, or syncfs has been told of; the rest may be there, or not, or in
// part.
type disk struct {
	files map[uint64]*file // by the number of the inode's birth
	born  map[uint64]uint64
	base  map[string]uint64 // durable: path → birth; directories are 0
	todo  []change          // to names since, in their order
}

type file struct {
	stable []byte
	todo   []event // writes and sizes that are not durable yet
}

// change is one to names.
type change struct {
	event
	birth uint64
	done  bool // durable, though others before it may not be
}

func newDisk() *disk {
	return &disk{files: map[uint64]*file{}, born: map[uint64]uint64{}, base: map[string]uint64{}}
}

func (d *disk) apply(i int, e event) {
	switch e.What {
	case "create":
		birth := uint64(i) + 1
		d.born[e.Ino], d.files[birth] = birth, &file{}
		d.todo = append(d.todo, change{event: e, birth: birth})
	case "write", "size":
		if f := d.files[d.born[e.Ino]]; f != nil {
			f.todo = append(f.todo, e)
		}
	case "fsync":
		if f := d.files[d.born[e.Ino]]; f != nil {
			f.stable, f.todo = f.all(), nil
		}
	case "fsyncdir":
		for i, c := range d.todo {
			at := c.Path
			if c.To != "" {
				at = c.To
			}
			if !c.done && filepath.Clean(filepath.Dir(at)) == filepath.Clean(e.Path) {
				d.todo[i].done = true
			}
		}
		for len(d.todo) > 0 && d.todo[0].done {
			d.base, d.todo = rename(d.base, d.todo[0]), d.todo[1:]
		}
	case "mkdir", "unlink", "rename", "link":
		if strings.HasPrefix(filepath.Base(e.Path), ".sync-") {
			d.syncAll()
			return
		}
		if strings.HasPrefix(filepath.Base(e.Path), ".fail-") {
			for _, f := range d.files {
				// The kernel takes the pages for clean: nobody writes them any more.
				f.todo = slices.DeleteFunc(f.todo, func(e event) bool { return e.What == "write" })
			}
			return
		}
		c := change{event: e}
		if e.What != "mkdir" {
			c.birth = d.now()[e.Path]
		}
		d.todo = append(d.todo, c)
	}
}

func (d *disk) syncAll() {
	d.base, d.todo = d.now(), nil
	for _, f := range d.files {
		f.stable, f.todo = f.all(), nil
	}
}

// now is what names mean with all changes.
func (d *disk) now() map[string]uint64 { return d.until(len(d.todo)) }

// until is what they mean with the first n changes and those that are durable.
func (d *disk) until(n int) map[string]uint64 {
	names := maps.Clone(d.base)
	for i, c := range d.todo {
		if i < n || c.done {
			names = rename(names, c)
		}
	}
	return names
}

func rename(names map[string]uint64, c change) map[string]uint64 {
	switch c.What {
	case "create", "mkdir":
		names[c.Path] = c.birth
	case "unlink":
		delete(names, c.Path)
	case "rename":
		delete(names, c.Path)
		names[c.To] = c.birth
	case "link":
		names[c.To] = c.birth
	}
	return names
}

func (f *file) all() []byte {
	b := bytes.Clone(f.stable)
	for _, e := range f.todo {
		b = put(b, e, e.Data)
	}
	return b
}

// put applies one event, with other data than its own.
func put(b []byte, e event, data []byte) []byte {
	if e.What == "size" {
		b = append(b, make([]byte, max(0, int(e.Size)-len(b)))...)
		return b[:e.Size]
	}
	end := int(e.Off) + len(data)
	b = append(b, make([]byte, max(0, end-len(b)))...)
	copy(b[e.Off:], data)
	return b
}

// outage is a way in which the power fails.
type outage struct {
	name    string
	names   func(d *disk) map[string]uint64
	content func(f *file) []byte
}

func outages(seed uint64) []outage {
	r := rand.New(rand.NewPCG(seed, 99))
	strict := func(d *disk) map[string]uint64 { return d.until(0) }
	return []outage{
		{"nothing but what was synced", strict, func(f *file) []byte { return f.stable }},
		{"everything", (*disk).now, (*file).all},
		{"names and sizes without data", (*disk).now, func(f *file) []byte {
			b := bytes.Clone(f.stable)
			for _, e := range f.todo { // what is overwritten is old, what is new is zero
				if old := len(b); e.What == "size" || int(e.Off)+len(e.Data) > old {
					e.Size = max(e.Size, e.Off+int64(len(e.Data)))
					b = put(b, event{What: "size", Size: e.Size}, nil)
				}
			}
			return b
		}},
		{"data without names", strict, (*file).all},
		{"anything", func(d *disk) map[string]uint64 {
			return d.until(r.IntN(len(d.todo) + 1))
		}, func(f *file) []byte {
			b := bytes.Clone(f.stable)
			for _, e := range f.todo {
				if e.What == "size" {
					if r.IntN(2) == 0 {
						b = put(b, e, nil)
					}
					continue
				}
				for off := 0; off < len(e.Data); off += 512 { // sectors come and go
					part := e
					part.Off += int64(off)
					if r.IntN(2) == 0 {
						b = put(b, part, e.Data[off:min(off+512, len(e.Data))])
					}
				}
			}
			return b
		}},
	}
}

// write puts what an outage leaves into dir.
func (d *disk) write(t *testing.T, o outage, dir string) {
	t.Helper()
	names := o.names(d)
	for _, path := range slices.Sorted(maps.Keys(names)) {
		to := filepath.Join(dir, path)
		birth := names[path]
		if birth == 0 {
			must(t, os.MkdirAll(to, 0o700))
			continue
		}
		if _, err := os.Stat(filepath.Dir(to)); err != nil {
			continue // its directory is lost, and it with it
		}
		must(t, os.WriteFile(to, o.content(d.files[birth]), 0o600))
	}
}

// sumOf tells states apart.
func sumOf(t *testing.T, dir string, step int) uint64 {
	t.Helper()
	h := fnv.New64a()
	h.Write([]byte{byte(step)})
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		h.Write(append(fmt.Append(nil, path, len(b)), b...))
		return err
	})
	if !errors.Is(err, fs.ErrNotExist) {
		must(t, err)
	}
	return h.Sum64()
}
