package toc

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-cmp/cmp"

	"github.com/airstream-io/airstream/internal/chunk"
)

// table returns the JSON table of entries, as eStargz has it.
func table(tb testing.TB, entries ...*estargz.TOCEntry) []byte {
	tb.Helper()
	b, err := json.Marshal(estargz.JTOC{Version: 1, Entries: entries})
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func mustParse(tb testing.TB, entries ...*estargz.TOCEntry) *Tree {
	tb.Helper()
	tree, err := Parse(bytes.NewReader(table(tb, entries...)), 1<<40)
	if err != nil {
		tb.Fatal(err)
	}
	return tree
}

// find returns the entry at a path, or fails.
func find(tb testing.TB, tree *Tree, name string) uint32 {
	tb.Helper()
	at := Root
	for p := range strings.SplitSeq(name, "/") {
		next, ok := tree.Lookup(at, p)
		if !ok {
			tb.Fatalf("%q is not in the tree:\n%s", name, dump(tree))
		}
		at = next
	}
	return at
}

// dump lists a tree, a line a name, for comparisons.
func dump(tree *Tree) string {
	var b strings.Builder
	var walk func(dir uint32, prefix string)
	walk = func(dir uint32, prefix string) {
		for k := range tree.NumChildren(dir) {
			name, e := tree.Child(dir, k)
			a := tree.Attr(e)
			fmt.Fprintf(&b, "%s%s %o %d", prefix, name, a.Mode, a.Nlink)
			if l := tree.Readlink(e); l != "" {
				fmt.Fprintf(&b, " -> %s", l)
			}
			for n, v := range tree.Xattrs(e) {
				fmt.Fprintf(&b, " %s=%s", n, v)
			}
			b.WriteByte('\n')
			walk(e, prefix+name+"/")
		}
	}
	walk(Root, "")
	return b.String()
}

func dir(name string) *estargz.TOCEntry {
	return &estargz.TOCEntry{Name: name, Type: "dir", Mode: 0o755}
}

func empty(name string) *estargz.TOCEntry {
	return &estargz.TOCEntry{Name: name, Type: "reg", Mode: 0o644}
}

func file(name string, size, offset int64) *estargz.TOCEntry {
	return &estargz.TOCEntry{Name: name, Type: "reg", Mode: 0o644, Size: size, Offset: offset, ChunkDigest: chunk.Sum([]byte(name)).String()}
}

func hardlinkTo(name, target string) *estargz.TOCEntry {
	return &estargz.TOCEntry{Name: name, Type: "hardlink", LinkName: target}
}

func TestParseReadsWhatEstargzBuilds(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 20_000) // 320,000 bytes: 5 chunks
	when := time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range []*tar.Header{
		{Name: "./", Typeflag: tar.TypeDir, Mode: 0o750, Uid: 7, Gid: 8, ModTime: when},
		{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: when},
		{Name: "bin/big", Typeflag: tar.TypeReg, Mode: 0o4755, Size: int64(len(content)), Uid: 70000, Gid: 80000, ModTime: when, PAXRecords: map[string]string{"SCHILY.xattr.user.note": "hi", "SCHILY.xattr.trusted.overlay.redirect": "/etc"}},
		{Name: "bin/none", Typeflag: tar.TypeReg, Mode: 0o600, ModTime: when},
		{Name: "bin/same", Typeflag: tar.TypeLink, Linkname: "bin/big", ModTime: when},
		{Name: "lib", Typeflag: tar.TypeSymlink, Linkname: "usr/lib", Mode: 0o777, ModTime: when},
		{Name: "dev/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666, ModTime: when},
		{Name: "dev/disk", Typeflag: tar.TypeBlock, Devmajor: 259, Devminor: 70000, Mode: 0o660, ModTime: when},
		{Name: "pipe", Typeflag: tar.TypeFifo, Mode: 0o644, ModTime: when},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write(content); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for _, minChunk := range []int{0, 50_000} {
		t.Run(fmt.Sprintf("min chunk %d", minChunk), func(t *testing.T) {
			blob, err := estargz.Build(io.NewSectionReader(bytes.NewReader(buf.Bytes()), 0, int64(buf.Len())), estargz.WithChunkSize(chunk.DefaultSize), estargz.WithMinChunkSize(minChunk))
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := blob.Close(); err != nil {
					t.Error(err)
				}
			}()
			raw, err := io.ReadAll(blob)
			if err != nil {
				t.Fatal(err)
			}
			sr := io.NewSectionReader(bytes.NewReader(raw), 0, int64(len(raw)))
			off, _, err := estargz.OpenFooter(sr)
			if err != nil {
				t.Fatal(err)
			}
			tr := tar.NewReader(gunzip(t, raw[off:]))
			if _, err := tr.Next(); err != nil {
				t.Fatal(err)
			}
			tree, err := Parse(tr, off)
			if err != nil {
				t.Fatal(err)
			}

			want := `bin 40755 2
bin/big 104755 2 user.note=hi
bin/none 100600 1
bin/same 104755 2 user.note=hi
dev 40755 2
dev/disk 60660 1
dev/null 20666 1
lib 120777 1 -> usr/lib
pipe 10644 1
`
			if diff := cmp.Diff(want, dump(tree)); diff != "" {
				t.Error(diff)
			}
			if a := tree.Attr(Root); a.UID != 7 || a.GID != 8 || a.Mode != TypeDir|0o750 || a.Nlink != 4 {
				t.Errorf("root: %+v", a)
			}
			big := find(t, tree, "bin/big")
			if a := tree.Attr(big); a.Size != int64(len(content)) || a.UID != 70000 || a.GID != 80000 || !a.Mtime.Equal(when) {
				t.Errorf("bin/big: %+v", a)
			}
			if find(t, tree, "bin/same") != big {
				t.Error("a hardlink is not the same entry as its target")
			}
			if a := tree.Attr(find(t, tree, "dev/disk")); a.Rdev != 70000&0xff|259<<8|70000&^0xff<<12 {
				t.Errorf("dev/disk: rdev %#x", a.Rdev)
			}
			first, end := tree.Chunks(big)
			if end-first != 5 {
				t.Fatalf("%d chunks, want 5", end-first)
			}
			for c := first; c < end; c++ {
				k := tree.Chunk(c)
				m := tree.Member(k.Member)
				if m.Offset < 0 || m.End > off {
					t.Fatalf("chunk %d: member %+v leaves the payload of %d bytes", c, m, off)
				}
				stream := gunzip(t, raw[m.Offset:m.End])
				if _, err := io.CopyN(io.Discard, stream, int64(k.Inner)); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, k.Size)
				if _, err := io.ReadFull(stream, got); err != nil {
					t.Fatal(err)
				}
				if err := k.ID.Verify(got); err != nil {
					t.Errorf("chunk %d: %v", c, err)
				}
				if !bytes.Equal(got, content[k.Offset:k.Offset+int64(k.Size)]) {
					t.Errorf("chunk %d is not the content at %d", c, k.Offset)
				}
				if tree.ChunkFile(c) != big {
					t.Errorf("chunk %d belongs to entry %d, want %d", c, tree.ChunkFile(c), big)
				}
			}
		})
	}
}

func TestParsePlaysEntriesInOrder(t *testing.T) {
	wh := func(name string) *estargz.TOCEntry { return &estargz.TOCEntry{Name: name, Type: "reg"} }
	for _, tc := range []struct {
		name    string
		entries []*estargz.TOCEntry
		want    string
	}{
		{"parents are implied", []*estargz.TOCEntry{empty("a/b/c")}, "a 40755 3\na/b 40755 2\na/b/c 100644 1\n"},
		{"leading slash and dot", []*estargz.TOCEntry{empty("/a"), empty("./b"), empty("c/../d")}, "a 100644 1\nb 100644 1\nd 100644 1\n"},
		{"later file wins", []*estargz.TOCEntry{file("a", 5, 0), empty("a")}, "a 100644 1\n"},
		{"later directory keeps children", []*estargz.TOCEntry{empty("d/f"), {Name: "d", Type: "dir", Mode: 0o700}}, "d 40700 2\nd/f 100644 1\n"},
		{"file replaces directory", []*estargz.TOCEntry{empty("d/f"), empty("d")}, "d 100644 1\n"},
		{"directory replaces file", []*estargz.TOCEntry{empty("d"), dir("d"), empty("d/f")}, "d 40755 2\nd/f 100644 1\n"},
		{"hardlink keeps what its target was", []*estargz.TOCEntry{empty("a"), hardlinkTo("b", "a"), {Name: "a", Type: "fifo", Mode: 0o600}}, "a 10600 1\nb 100644 1\n"},
		{"hardlink brings attributes", []*estargz.TOCEntry{empty("a"), {Name: "b", Type: "hardlink", LinkName: "a", Mode: 0o4711, Xattrs: map[string][]byte{"user.x": []byte("1")}}}, "a 104711 2 user.x=1\nb 104711 2 user.x=1\n"},
		{"later directory adds attributes", []*estargz.TOCEntry{{Name: "d", Type: "dir", Mode: 0o700, Xattrs: map[string][]byte{"user.x": []byte("1")}}, {Name: "d", Type: "dir", Mode: 0o755, Xattrs: map[string][]byte{"user.y": []byte("2")}}}, "d 40755 2 user.x=1 user.y=2\n"},
		{"hardlink before its target", []*estargz.TOCEntry{hardlinkTo("c", "b"), hardlinkTo("b", "a"), empty("a")}, "a 100644 3\nb 100644 3\nc 100644 3\n"},
		{"whiteout", []*estargz.TOCEntry{wh("d/.wh.gone")}, "d 40755 2\nd/gone 20000 1\n"},
		{"opaque", []*estargz.TOCEntry{dir("d"), wh("d/.wh..wh..opq"), empty("d/f")}, "d 40755 2 trusted.overlay.opaque=y\nd/f 100644 1\n"},
		{"opaque before its directory", []*estargz.TOCEntry{wh("d/.wh..wh..opq"), dir("d")}, "d 40755 2 trusted.overlay.opaque=y\n"},
		{"whiteout spares its own layer", []*estargz.TOCEntry{empty("f"), wh(".wh.f"), dir("d"), wh(".wh.d")}, "d 40755 2 trusted.overlay.opaque=y\nf 100644 1\n"},
		{"name behind a whiteout", []*estargz.TOCEntry{wh(".wh.f"), empty("f"), wh(".wh.d"), empty("d/x")}, "d 40755 2\nd/x 100644 1\nf 100644 1\n"},
		{"aufs leftovers", []*estargz.TOCEntry{wh(".wh..wh.plnk"), wh(".wh..wh.aufs")}, ""},
		{"landmarks are hidden", []*estargz.TOCEntry{empty(".no.prefetch.landmark"), empty("stargz.index.json"), empty("d/.no.prefetch.landmark")}, "d 40755 2\nd/.no.prefetch.landmark 100644 1\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, dump(mustParse(t, tc.entries...))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	id := chunk.Sum(nil).String()
	bigFile := func(first, second estargz.TOCEntry) []*estargz.TOCEntry {
		first.Name, first.Type, first.Size = "a", "reg", 100
		second.Name, second.Type = "a", "chunk"
		return []*estargz.TOCEntry{&first, &second}
	}
	for _, tc := range []struct {
		name    string
		entries []*estargz.TOCEntry
		want    string
	}{
		{"path traversal", []*estargz.TOCEntry{empty("a/../../etc/passwd")}, "leaves the layer"},
		{"traversal by hardlink", []*estargz.TOCEntry{hardlinkTo("a", "../../etc/shadow")}, "leaves the layer"},
		{"NUL in a name", []*estargz.TOCEntry{empty("a\x00b")}, "NUL"},
		{"long name", []*estargz.TOCEntry{empty(strings.Repeat("n", 256))}, "256 bytes"},
		{"long path", []*estargz.TOCEntry{empty(strings.Repeat("n/", 2500))}, "5000 bytes"},
		{"deep path", []*estargz.TOCEntry{empty(strings.Repeat("n/", 300))}, "directories"},
		{"file as directory", []*estargz.TOCEntry{empty("a"), empty("a/b")}, "not a directory"},
		{"hardlink to nothing", []*estargz.TOCEntry{hardlinkTo("a", "b")}, "not in the layer"},
		{"hardlink cycle", []*estargz.TOCEntry{hardlinkTo("a", "b"), hardlinkTo("b", "a")}, "not in the layer"},
		{"hardlink to a directory", []*estargz.TOCEntry{dir("d"), hardlinkTo("a", "d")}, "hardlink to a directory"},
		{"hardlink over its own parent", []*estargz.TOCEntry{empty("d/f"), hardlinkTo("d", "d/f")}, "its own target"},
		{"root as a file", []*estargz.TOCEntry{empty("/")}, "root"},
		{"unknown type", []*estargz.TOCEntry{{Name: "a", Type: "door"}}, "unknown type"},
		{"negative size", []*estargz.TOCEntry{{Name: "a", Type: "reg", Size: -1}}, "size -1"},
		{"negative owner", []*estargz.TOCEntry{{Name: "a", Type: "dir", UID: -1}}, "owner"},
		{"huge device", []*estargz.TOCEntry{{Name: "a", Type: "char", DevMajor: 1 << 20}}, "device"},
		{"empty symlink", []*estargz.TOCEntry{{Name: "a", Type: "symlink"}}, "target"},
		{"bad time", []*estargz.TOCEntry{{Name: "a", Type: "dir", ModTime3339: "yesterday"}}, "time"},
		{"chunk of nothing", []*estargz.TOCEntry{{Name: "a", Type: "chunk", ChunkDigest: id}}, "chunk without a file"},
		{"no digest", []*estargz.TOCEntry{{Name: "a", Type: "reg", Size: 1}}, "digest"},
		{"bad digest", []*estargz.TOCEntry{{Name: "a", Type: "reg", Size: 1, ChunkDigest: "sha256:zz"}}, "digits"},
		{"missing chunk", []*estargz.TOCEntry{{Name: "a", Type: "reg", Size: 100, ChunkSize: 50, ChunkDigest: id}}, "ends at 50 of 100"},
		{"gap between chunks", bigFile(estargz.TOCEntry{ChunkSize: 50, ChunkDigest: id}, estargz.TOCEntry{ChunkOffset: 60, Offset: 9, ChunkDigest: id}), "want 50"},
		{"overlapping chunks", bigFile(estargz.TOCEntry{ChunkSize: 50, ChunkDigest: id}, estargz.TOCEntry{ChunkOffset: 40, Offset: 9, ChunkDigest: id}), "want 50"},
		{"chunk behind the file", bigFile(estargz.TOCEntry{ChunkSize: 50, ChunkDigest: id}, estargz.TOCEntry{ChunkOffset: 50, ChunkSize: 51, Offset: 9, ChunkDigest: id}), "51 bytes"},
		{"chunks backwards in the blob", bigFile(estargz.TOCEntry{ChunkSize: 50, Offset: 9, ChunkDigest: id}, estargz.TOCEntry{ChunkOffset: 50, Offset: 3, ChunkDigest: id}), "order"},
		{"chunks at one place", []*estargz.TOCEntry{file("a", 5, 3), file("b", 5, 3)}, "order"},
		{"chunk behind the blob", []*estargz.TOCEntry{file("a", 5, 1<<41)}, "blob"},
		{"chunk deep in a member", []*estargz.TOCEntry{{Name: "a", Type: "reg", Size: 1, InnerOffset: 1 << 40, ChunkDigest: id}}, "into its member"},
		{"huge chunk", []*estargz.TOCEntry{file("a", 1<<33, 0)}, "chunk of"},
		{"huge attribute", []*estargz.TOCEntry{{Name: "a", Type: "dir", Xattrs: map[string][]byte{"user.x": make([]byte, 1<<17)}}}, "extended attribute"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse(bytes.NewReader(table(t, tc.entries...)), 1<<40)
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want ErrInvalid with %q", err, tc.want)
			}
		})
	}
	for _, s := range []string{
		"", "{", "[]", `{"version":2,"entries":[]}`, `{"version":1,"entries":[{]}`, `{"version":1,"entries":[{"name":7}]}`,
		`{"version":1,"entries":[{"name":"a","rawName":"%","type":"dir"}]}`,
		`{"version":1,"entries":[{"name":"a","type":"dir","xattrs":{"user.x":"%"}}]}`,
	} {
		if _, err := Parse(strings.NewReader(s), 1); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %v, want ErrInvalid", s, err)
		}
	}
	broken := errors.New("link is gone")
	if _, err := Parse(io.MultiReader(strings.NewReader(`{"version":1,`), errReader{broken}), 1); !errors.Is(err, broken) || errors.Is(err, ErrInvalid) {
		t.Errorf("reader's error: got %v", err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestFractionsOfSecondsAreKept(t *testing.T) {
	tree := mustParse(t,
		&estargz.TOCEntry{Name: "a", Type: "dir", ModTime3339: "1971-12-31T23:59:58.25Z"},
		&estargz.TOCEntry{Name: "b", Type: "dir", ModTime3339: "1969-12-31T23:59:58.25Z"})
	if got, want := tree.Attr(find(t, tree, "a")).Mtime, time.Date(1971, 12, 31, 23, 59, 58, 250_000_000, time.UTC); !got.Equal(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := tree.Attr(find(t, tree, "b")).Mtime; !got.Equal(time.Unix(0, 0)) {
		t.Errorf("before the epoch: got %v; unpackers set the epoch", got)
	}
}

func TestFindChunk(t *testing.T) {
	id := chunk.Sum(nil).String()
	tree := mustParse(t,
		file("other", 9, 0),
		&estargz.TOCEntry{Name: "a", Type: "reg", Size: 25, ChunkSize: 10, Offset: 1, ChunkDigest: id},
		&estargz.TOCEntry{Name: "a", Type: "chunk", Offset: 2, ChunkOffset: 10, ChunkSize: 10, ChunkDigest: id},
		&estargz.TOCEntry{Name: "a", Type: "chunk", Offset: 3, ChunkOffset: 20, ChunkDigest: id})
	a := find(t, tree, "a")
	first, _ := tree.Chunks(a)
	for off, want := range map[int64]int{-1: -1, 0: 0, 9: 0, 10: 1, 19: 1, 20: 2, 24: 2, 25: -1, 1 << 40: -1} {
		c, ok := tree.FindChunk(a, off)
		if got := int(c) - int(first); ok != (want >= 0) || ok && got != want {
			t.Errorf("byte %d: chunk %d, %v; want %d", off, got, ok, want)
		}
	}
}

func TestObjectIDNamesContentAndNothingElse(t *testing.T) {
	id := func(e ...*estargz.TOCEntry) ObjectID {
		tree := mustParse(t, e...)
		return tree.ObjectID(find(t, tree, "a"))
	}
	plain := id(file("a", 9, 0))
	moved := file("a", 9, 70)
	moved.Mode, moved.UID = 0o4755, 12
	if id(dir("before"), moved) != plain {
		t.Error("place in the blob or attributes changed the ID of the content")
	}
	other := file("a", 9, 0)
	other.ChunkDigest = chunk.Sum([]byte("other")).String()
	if id(other) == plain {
		t.Error("other content, same ID")
	}
	if id(file("a", 8, 0)) == plain {
		t.Error("other size, same ID")
	}
}
