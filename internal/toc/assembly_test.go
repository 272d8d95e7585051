package toc

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/airstream-io/airstream/internal/chunk"
)

var (
	aDir  = Entry{Attr: Attr{Mode: TypeDir | 0o755, Mtime: time.Unix(0, 0)}}
	aFile = Entry{Attr: Attr{Mode: TypeRegular | 0o644, Size: 10, Mtime: time.Unix(0, 0)}}
	aPipe = Entry{Attr: Attr{Mode: TypeFifo, Mtime: time.Unix(0, 0)}}
)

// with returns e with a change.
func (e Entry) with(change func(*Entry)) Entry {
	change(&e)
	return e
}

func TestAssemblyRefusesWhatParseWould(t *testing.T) {
	m := Member{Offset: 10, End: 20}
	add := func(a *Assembly, list ...Entry) error {
		for _, e := range list {
			if err := a.Add(e); err != nil {
				return err
			}
		}
		return nil
	}
	// Each begins behind a root and a file of 10 bytes, which have no name yet.
	for name, step := range map[string]func(*Assembly) error{
		"file without chunks": func(a *Assembly) error { return a.Add(aPipe) },
		"chunk too long":      func(a *Assembly) error { return a.Chunk(chunk.ID{}, 11, 0, m) },
		"chunk of nothing":    func(a *Assembly) error { return a.Chunk(chunk.ID{}, 0, 0, m) },
		"chunk too far in":    func(a *Assembly) error { return a.Chunk(chunk.ID{}, 10, maxMemberSpan, m) },
		"member outside":      func(a *Assembly) error { return a.Chunk(chunk.ID{}, 10, 0, Member{10, 1001}) },
		"member backwards": func(a *Assembly) error {
			return errors.Join(a.Chunk(chunk.ID{}, 5, 0, m), a.Chunk(chunk.ID{}, 5, 0, Member{5, 9}))
		},
		"chunk of a pipe": func(a *Assembly) error {
			return errors.Join(a.Chunk(chunk.ID{}, 10, 0, m), add(a, aPipe), a.Chunk(chunk.ID{}, 1, 0, m))
		},
		"name with a slash":    func(a *Assembly) error { return a.Name(0, "a/b", 1) },
		"name of the parent":   func(a *Assembly) error { return a.Name(0, "..", 1) },
		"long name":            func(a *Assembly) error { return a.Name(0, strings.Repeat("n", 256), 1) },
		"name for the root":    func(a *Assembly) error { return a.Name(0, "a", 0) },
		"name in a file":       func(a *Assembly) error { return a.Name(1, "a", 1) },
		"name of what is not":  func(a *Assembly) error { return a.Name(0, "a", 2) },
		"name that is there":   func(a *Assembly) error { return errors.Join(a.Name(0, "a", 1), a.Name(0, "a", 1)) },
		"entry without a name": func(a *Assembly) error { _, err := a.Tree(); return err },
		"directory in two places": func(a *Assembly) error {
			return errors.Join(a.Chunk(chunk.ID{}, 10, 0, m), a.Add(aDir), a.Name(0, "a", 2), a.Name(0, "b", 2))
		},
		"directory in itself": func(a *Assembly) error {
			return errors.Join(a.Chunk(chunk.ID{}, 10, 0, m), a.Add(aDir), a.Name(2, "a", 2))
		},
		"directory that nobody placed": func(a *Assembly) error {
			return errors.Join(a.Chunk(chunk.ID{}, 10, 0, m), a.Add(aDir), a.Name(2, "a", 1))
		},
	} {
		a := NewAssembly(1000)
		if err := add(a, aDir, aFile); err != nil {
			t.Fatal(err)
		}
		if err := step(a); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, e := range map[string]Entry{
		"socket":            aPipe.with(func(e *Entry) { e.Mode = 0o140000 }),
		"no type":           aPipe.with(func(e *Entry) { e.Mode = 0o644 }),
		"unknown bits":      aPipe.with(func(e *Entry) { e.Mode |= 1 << 20 }),
		"nobody":            aPipe.with(func(e *Entry) { e.UID = 1<<32 - 1 }),
		"too early":         aPipe.with(func(e *Entry) { e.Mtime = time.Unix(-1, 0) }),
		"too late":          aPipe.with(func(e *Entry) { e.Mtime = time.Unix(1<<40, 0) }),
		"negative size":     aFile.with(func(e *Entry) { e.Size = -1 }),
		"link to nowhere":   aPipe.with(func(e *Entry) { e.Mode = TypeSymlink }),
		"overlay's own":     aDir.with(func(e *Entry) { e.Xattrs = []Xattr{{"trusted.overlay.redirect", nil}} }),
		"opaque file":       aFile.with(func(e *Entry) { e.Xattrs = []Xattr{{opaqueXattr, []byte("y")}} }),
		"attributes twice":  aPipe.with(func(e *Entry) { e.Xattrs = []Xattr{{"user.a", nil}, {"user.a", nil}} }),
		"attribute no name": aPipe.with(func(e *Entry) { e.Xattrs = []Xattr{{"", nil}} }),
		"large attribute":   aPipe.with(func(e *Entry) { e.Xattrs = []Xattr{{"user.a", make([]byte, maxXattrSize+1)}} }),
	} {
		a := NewAssembly(1000)
		if err := add(a, aDir, e); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := NewAssembly(1000).Add(aPipe); !errors.Is(err, ErrInvalid) {
		t.Errorf("a root that is a pipe: %v", err)
	}
}

func TestAssemblyIsNoDeeperThanPaths(t *testing.T) {
	a := NewAssembly(0)
	err := a.Add(aDir)
	for i := uint32(1); err == nil && i < 1000; i++ {
		if err = a.Add(aDir); err == nil {
			err = a.Name(i-1, "d", i)
		}
	}
	if !errors.Is(err, ErrInvalid) {
		t.Errorf("a thousand directories: %v", err)
	}
}

func TestTreeThatWaitsForIDs(t *testing.T) {
	a := NewAssembly(1000)
	id := chunk.Sum([]byte("second"))
	err := errors.Join(a.Add(aDir), a.Add(aFile), a.Chunk(chunk.ID{}, 4, 0, Member{10, 20}), a.Chunk(id, 6, 0, Member{20, 30}), a.Name(0, "f", 1))
	if err != nil {
		t.Fatal(err)
	}
	tree, err := a.Tree()
	if err != nil {
		t.Fatal(err)
	}
	if tree.Known(1) || !tree.Known(0) {
		t.Error("half a file is known, or a directory is not")
	}
	if _, err := Load(tree.Bytes()); err != nil {
		t.Error(err)
	}
}

func TestTreesAgreeOnWhatBothKnow(t *testing.T) {
	one, two, three := chunk.Sum([]byte("1")), chunk.Sum([]byte("2")), chunk.Sum([]byte("3"))
	tree := func(name string, first, second chunk.ID, at int64) *Tree {
		t.Helper()
		a := NewAssembly(1000)
		err := errors.Join(a.Add(aDir), a.Add(aFile), a.Chunk(first, 4, 0, Member{10, 20}), a.Chunk(second, 6, 0, Member{at, 30}), a.Name(0, name, 1))
		if err != nil {
			t.Fatal(err)
		}
		tree, err := a.Tree()
		if err != nil {
			t.Fatal(err)
		}
		return tree
	}
	full := tree("f", one, two, 20)
	for name, test := range map[string]struct {
		other *Tree
		want  bool
	}{
		"itself":        {full, true},
		"knows less":    {tree("f", chunk.ID{}, two, 20), true},
		"knows nothing": {tree("f", chunk.ID{}, chunk.ID{}, 25), true},
		"another chunk": {tree("f", one, three, 20), false},
		"another place": {tree("f", one, two, 21), false},
		"another name":  {tree("g", one, two, 20), false},
	} {
		if full.Agrees(test.other) != test.want || test.other.Agrees(full) != test.want {
			t.Errorf("%s: want %t", name, test.want)
		}
	}
}
