package toc

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
)

func gunzip(tb testing.TB, b []byte) io.Reader {
	tb.Helper()
	zr, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		tb.Fatal(err)
	}
	return zr
}

func sample(tb testing.TB) *Tree {
	tb.Helper()
	return mustParse(tb,
		dir("d"), file("d/f", 70_000, 3), hardlinkTo("g", "d/f"),
		&estargz.TOCEntry{Name: "s", Type: "symlink", LinkName: "d/f"},
		&estargz.TOCEntry{Name: "x", Type: "reg", Xattrs: map[string][]byte{"user.a": []byte("1"), "security.capability": []byte("2")}},
		&estargz.TOCEntry{Name: ".wh.gone", Type: "reg"})
}

func TestLoadReturnsWhatWasWritten(t *testing.T) {
	tree := sample(t)
	again, err := Load(bytes.Clone(tree.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if dump(again) != dump(tree) {
		t.Errorf("got\n%s\nwant\n%s", dump(again), dump(tree))
	}
}

func TestLoadRefusesEveryCut(t *testing.T) {
	raw := sample(t).Bytes()
	for n := range raw {
		if _, err := Load(raw[:n]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d of %d: got %v, want ErrCorrupt", n, len(raw), err)
		}
	}
}

// exercise calls every accessor with every number, so that whatever Load let
// pass must hold.
func exercise(t *testing.T, tree *Tree) {
	t.Helper()
	for e := range uint32(tree.Len()) {
		a := tree.Attr(e)
		tree.Readlink(e)
		tree.IsWhiteout(e)
		tree.ObjectID(e)
		for range tree.Xattrs(e) {
			_ = a
		}
		for k := range tree.NumChildren(e) {
			tree.Child(e, k)
		}
		tree.Lookup(e, "name")
		tree.Parent(e)
		first, end := tree.Chunks(e)
		for c := first; c < end; c++ {
			tree.Member(tree.Chunk(c).Member)
		}
		tree.FindChunk(e, a.Size/2)
	}
	for m := range uint32(tree.NumMembers()) {
		first, end := tree.MemberChunks(m)
		for c := first; c < end; c++ {
			tree.ChunkFile(c)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(sample(f).Bytes())
	f.Add([]byte(flatMagic))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if tree, err := Load(raw); err == nil {
			exercise(t, tree)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add(table(f, dir("d"), file("d/f", 70_000, 3), hardlinkTo("g", "d/f"), empty("d")))
	f.Add(table(f, file("a", 5, 1), file("b", 5, 2), &estargz.TOCEntry{Name: "b/.wh..wh..opq", Type: "reg"}))
	f.Add(table(f, hardlinkTo("c", "b"), hardlinkTo("b", "a"), empty("a"), empty(".wh.a"), empty("a/.wh.x")))
	f.Add(rawSample(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		tree, err := Parse(bytes.NewReader(b), 1<<20)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("error of an unknown kind: %v", err)
			}
			return
		}
		exercise(t, tree)
		checkTree(t, tree)
	})
}

// checkTree asserts what a file system must be able to rely on.
func checkTree(t *testing.T, tree *Tree) {
	t.Helper()
	names := make([]uint32, tree.Len())
	var walk func(dir uint32, depth int)
	walk = func(dir uint32, depth int) {
		if depth > maxDepth+1 {
			t.Fatal("the tree is deeper than any path")
		}
		before := ""
		for k := range tree.NumChildren(dir) {
			name, e := tree.Child(dir, k)
			if name <= before {
				t.Fatalf("%q stands behind %q", name, before)
			}
			before = name
			if got, ok := tree.Lookup(dir, name); !ok || got != e {
				t.Fatalf("%q is listed and not found", name)
			}
			names[e]++
			if tree.Attr(e).Mode&TypeMask == TypeDir {
				if tree.Parent(e) != dir {
					t.Fatalf("%q: wrong parent", name)
				}
				walk(e, depth+1)
			}
		}
	}
	walk(Root, 0)
	for e := uint32(1); int(e) < tree.Len(); e++ {
		a := tree.Attr(e)
		if a.Mode&TypeMask == TypeDir && names[e] != 1 || a.Mode&TypeMask != TypeDir && names[e] != a.Nlink {
			t.Fatalf("entry %d: %d names, %d links", e, names[e], a.Nlink)
		}
		var at int64
		first, end := tree.Chunks(e)
		for c := first; c < end; c++ {
			k := tree.Chunk(c)
			if k.Offset != at {
				t.Fatalf("entry %d: chunk at %d, want %d", e, k.Offset, at)
			}
			at += int64(k.Size)
		}
		if a.Mode&TypeMask == TypeRegular && at != a.Size {
			t.Fatalf("entry %d: chunks end at %d of %d", e, at, a.Size)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	entries := make([]*estargz.TOCEntry, 0, 20_000)
	for i := range 20_000 {
		entries = append(entries, file("usr/lib/python3/dist-packages/pkg"+string(rune('a'+i%26))+"/module"+string(rune('a'+i/26%26))+string(rune('a'+i/676)), 9000, int64(i)*3000))
	}
	raw := table(b, entries...)
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(bytes.NewReader(raw), 1<<40); err != nil {
			b.Fatal(err)
		}
	}
}
