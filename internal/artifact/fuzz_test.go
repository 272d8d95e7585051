package artifact

import (
	"math/rand/v2"
	"testing"

	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
)

// FuzzRoot reads roots whose author is hostile: nothing may panic, and a tree
// that comes of one must hold together, with and without pages.
func FuzzRoot(f *testing.F) {
	r := rand.New(rand.NewPCG(7, 7))
	for _, tree := range odd(f) {
		img := encode(f, []*toc.Tree{tree, tree}, []trace.Plan{planOf(tree, r, 0.5), nil})
		f.Add(img.blob[:img.root], img.blob[img.root:])
	}
	img, _ := newContents(f).encode(f)
	f.Add(img.blob[:img.root], img.blob[img.root:])
	f.Fuzz(func(t *testing.T, raw, rest []byte) {
		root, err := ParseRoot(raw)
		if err != nil {
			return
		}
		pages := root.NewPages()
		for n := range root.NumPages() {
			offset, size := root.Page(n)
			if offset -= int64(len(raw)); offset+size <= int64(len(rest)) {
				_ = pages.Add(n, rest[offset:offset+size]) // most are not what the root says
			}
		}
		for i := range root.Layers() {
			for _, p := range []*Pages{nil, pages} {
				tree, err := root.Tree(i, payload, p)
				if err != nil {
					continue
				}
				if _, err := toc.Load(tree.Bytes()); err != nil {
					t.Fatal(err)
				}
				for e := range uint32(tree.Len()) {
					root.PagesOf(i, tree, e)
					tree.Known(e)
				}
			}
		}
	})
}

// FuzzPlaces reads columns and pages of places directly, for behind a hash no
// fuzzer gets to them.
func FuzzPlaces(f *testing.F) {
	f.Add([]byte{200, 1, 201, 1, 7, 0, 1, 9})
	f.Add([]byte{255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 3})
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, skip := cursor{b: raw}, cursor{b: raw}
		var before where
		for len(c.b) > 0 {
			now := before.decode(&c, 100)
			skipWhere(&skip)
			if c.err != nil {
				return
			}
			if len(c.b) != len(skip.b) || now.member.Offset < 0 || now.member.End <= now.member.Offset {
				t.Fatalf("%v, %d bytes left, skipping leaves %d", now, len(c.b), len(skip.b))
			}
		}
	})
}

// FuzzFrame decompresses frames that a hostile registry sends.
func FuzzFrame(f *testing.F) {
	c := newContents(f)
	img, blob := c.encode(f)
	at := uint32(0)
	for _, size := range img.frames {
		f.Add(blob[at:at+size], 200<<10)
		at += size
	}
	o, err := NewOpener()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, packed []byte, raw int) {
		if raw < 0 || raw > maxFrame {
			return
		}
		got, err := o.Open(Frame{Size: int64(len(packed)), Raw: raw}, packed)
		if err == nil && len(got) != raw {
			t.Fatalf("%d bytes, want %d", len(got), raw)
		}
	})
}
