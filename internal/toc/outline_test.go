package toc

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/airstream-io/airstream/internal/chunk"
)

// tarOf makes a tar; content is looked up by name.
func tarOf(tb testing.TB, content map[string][]byte, headers ...tar.Header) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		b := content[h.Name]
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(b))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		err := w.WriteHeader(&h)
		if err == nil && h.Typeflag == tar.TypeReg {
			_, err = w.Write(b)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

func bytesOf(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 3))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func mixedTar(tb testing.TB) []byte {
	tb.Helper()
	long := strings.Repeat("a-long-name/", 20) + "é"
	content := map[string][]byte{"bin/app": bytesOf(1, 200_000), "etc/one": []byte("1"), "zeros": make([]byte, 70_000), long: bytesOf(2, 65536), "bad\xff": []byte("odd")}
	raw := tarOf(tb, content,
		tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o751, Uid: 3, Gid: 4, ModTime: time.Unix(1e9, 0)},
		tar.Header{Name: "bin/app", Typeflag: tar.TypeReg, Mode: 0o4755, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}},
		tar.Header{Name: "etc/one", Typeflag: tar.TypeReg, ModTime: time.Unix(1e9, 5e8), Format: tar.FormatPAX},
		tar.Header{Name: "etc/empty", Typeflag: tar.TypeReg},
		tar.Header{Name: "etc/two", Typeflag: tar.TypeLink, Linkname: "etc/one", ModTime: time.Unix(1e9, 5e8), Format: tar.FormatPAX},
		tar.Header{Name: "etc/sym", Typeflag: tar.TypeSymlink, Linkname: "../bin/app"},
		tar.Header{Name: "etc/.wh.gone", Typeflag: tar.TypeReg},
		tar.Header{Name: "var/.wh..wh..opq", Typeflag: tar.TypeReg},
		tar.Header{Name: "dev/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3},
		tar.Header{Name: "zeros", Typeflag: tar.TypeReg},
		tar.Header{Name: "bad\xff", Typeflag: tar.TypeReg, Format: tar.FormatGNU},
		tar.Header{Name: long, Typeflag: tar.TypeReg},
	)
	return append(raw, make([]byte, 7168)...) // as writers fill up a record
}

// chunksIn cuts all content of a tar.
func chunksIn(tb testing.TB, raw []byte) (all [][]byte) {
	tb.Helper()
	tr := tar.NewReader(bytes.NewReader(raw))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			tb.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil || int64(len(b)) != h.Size {
			tb.Fatal(err)
		}
		for len(b) > 0 {
			n := min(len(b), OutlineChunk)
			all, b = append(all, b[:n]), b[n:]
		}
	}
}

// With its chunks an outline makes the tar again, and the tree says of it what an
// unpacker would.
func TestAnOutlineMakesTheTarAgain(t *testing.T) {
	raw := mixedTar(t)
	var out bytes.Buffer
	size, err := WriteOutline(&out, bytes.NewReader(raw))
	if err != nil || size != int64(len(raw)) {
		t.Fatalf("%d bytes of %d, %v", size, len(raw), err)
	}
	if out.Len() > 6000 {
		t.Errorf("the outline has %d bytes", out.Len())
	}
	tree, err := ParseOutline(bytes.NewReader(out.Bytes()), size)
	if err != nil {
		t.Fatal(err)
	}
	chunks := chunksIn(t, raw)
	if tree.NumChunks() != len(chunks) {
		t.Fatalf("%d chunks, not %d", tree.NumChunks(), len(chunks))
	}
	var again bytes.Buffer
	err = Rebuild(&again, bytes.NewReader(out.Bytes()), func(n uint32, id chunk.ID, size int64) ([]byte, error) {
		k := tree.Chunk(n)
		if k.ID != id || int64(k.Size) != size || k.ID != chunk.Sum(chunks[n]) {
			t.Errorf("chunk %d is another one", n)
		}
		at := tree.Member(k.Member).Offset
		if !bytes.Equal(raw[at:at+size], chunks[n]) {
			t.Errorf("chunk %d is not at %d of the tar", n, at)
		}
		return chunks[n], nil
	})
	if err != nil || !bytes.Equal(again.Bytes(), raw) {
		t.Errorf("%d bytes of %d, %v", again.Len(), len(raw), err)
	}
	find := func(path string) (uint32, Attr) {
		e := Root
		for part := range strings.SplitSeq(path, "/") {
			var ok bool
			if e, ok = tree.Lookup(e, part); !ok {
				t.Fatalf("no %s", path)
			}
		}
		return e, tree.Attr(e)
	}
	app, a := find("bin/app")
	if v, _ := tree.Xattr(app, "user.a"); a.Size != 200_000 || a.Mode != TypeRegular|0o4755 || string(v) != "b" {
		t.Errorf("bin/app: %+v, %q", a, v)
	}
	if _, a := find("bin"); a.UID != 3 || a.GID != 4 || a.Mode != TypeDir|0o751 || a.Mtime.Unix() != 1e9 {
		t.Errorf("bin: %+v", a)
	}
	one, a := find("etc/one")
	if two, _ := find("etc/two"); one != two || a.Nlink != 2 || a.Mtime.Nanosecond() != 5e8 {
		t.Errorf("etc/one: %+v, etc/two is entry %d and not %d", a, two, one)
	}
	if gone, _ := find("etc/gone"); !tree.IsWhiteout(gone) {
		t.Error("no whiteout")
	}
	if dir, _ := find("var"); string(func() []byte { v, _ := tree.Xattr(dir, opaqueXattr); return v }()) != "y" {
		t.Error("var is not opaque")
	}
	if link, _ := find("etc/sym"); tree.Readlink(link) != "../bin/app" {
		t.Error("etc/sym leads elsewhere")
	}
	if _, a := find("dev/null"); a.Rdev != 0x103 {
		t.Errorf("dev/null: %+v", a)
	}
	find("bad\xff")
}

// What a tree or the chunks can't say is refused, on whichever side sees it.
func TestTarsThatHaveNoOutline(t *testing.T) {
	content := map[string][]byte{"a": []byte("a"), ".prefetch.landmark": {1}, ".wh.b": []byte("x"), "d/e": []byte("e")}
	file := func(n string) tar.Header { return tar.Header{Name: n, Typeflag: tar.TypeReg} }
	for name, raw := range map[string][]byte{
		"twice":          tarOf(t, content, file("a"), file("a")),
		"hidden":         tarOf(t, content, file(".prefetch.landmark")),
		"whiteout":       tarOf(t, content, file(".wh.b")),
		"below a link":   tarOf(t, content, tar.Header{Name: "d", Typeflag: tar.TypeSymlink, Linkname: "a"}, file("d/e")),
		"link elsewhere": tarOf(t, content, tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "not-here"}),
		"type":           tarOf(t, content, tar.Header{Name: "c", Typeflag: tar.TypeCont}),
		"cut short":      tarOf(t, content, file("a"))[:512],
		"garbage":        []byte(strings.Repeat("not a tar ", 100)),
		"a long end":     append(tarOf(t, content, file("a")), make([]byte, maxTarEnd+1)...),
		"up":             tarOf(t, content, tar.Header{Name: "../x", Typeflag: tar.TypeDir}),
	} {
		var out bytes.Buffer
		size, err := WriteOutline(&out, bytes.NewReader(raw))
		if err == nil {
			_, err = ParseOutline(&out, size)
		}
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	broken := errors.New("the link broke")
	if _, err := WriteOutline(io.Discard, io.MultiReader(bytes.NewReader(mixedTar(t)[:3000]), failing{broken})); !errors.Is(err, broken) || errors.Is(err, ErrInvalid) {
		t.Errorf("a reader that fails: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// An outline of hostile bytes is refused, or of a tar that it makes again.
func FuzzOutline(f *testing.F) {
	raw := mixedTar(f)
	var out bytes.Buffer
	size, err := WriteOutline(&out, bytes.NewReader(raw))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(out.Bytes(), size)
	f.Add([]byte(outlineMagic), int64(0))
	f.Add([]byte(outlineMagic+"\x03\x05"), int64(5))
	f.Add([]byte(outlineMagic+"\x02\x80\x08"), int64(1024))
	f.Add([]byte(outlineMagic+"\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), int64(1))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		tree, err := ParseOutline(bytes.NewReader(b), size)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("not ErrInvalid: %v", err)
			}
			return
		}
		if size > 1<<24 {
			return
		}
		var n counter
		seen := 0
		err = Rebuild(&n, bytes.NewReader(b), func(k uint32, id chunk.ID, size int64) ([]byte, error) {
			if c := tree.Chunk(k); c.ID != id || int64(c.Size) != size {
				t.Errorf("chunk %d is not the tree's", k)
			}
			seen++
			return make([]byte, size), nil
		})
		if err != nil || int64(n) != size || seen != tree.NumChunks() {
			t.Errorf("%d bytes of %d, %d chunks of %d, %v", n, size, seen, tree.NumChunks(), err)
		}
	})
}

type counter int64

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }
