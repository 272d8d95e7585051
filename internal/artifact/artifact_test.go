package artifact

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
)

// check decodes an image and compares it with what it was made of: without
// pages, with some, and with all.
func check(t *testing.T, img image, r *rand.Rand) {
	t.Helper()
	root, err := ParseRoot(img.blob[:img.root])
	if err != nil {
		t.Fatal(err)
	}
	if root.Layers() != len(img.trees) || root.BlobSize() != int64(len(img.blob)) {
		t.Fatalf("%d layers in %d bytes, want %d in %d", root.Layers(), root.BlobSize(), len(img.trees), len(img.blob))
	}
	checkHot(t, img, root)
	pages := root.NewPages()
	grown := make([]*toc.Tree, len(img.trees)) // each with the pages of its own step alone
	for _, part := range []float64{0, 0.5, 1} {
		fresh := root.NewPages()
		for n := range root.NumPages() {
			offset, size := root.Page(n)
			if pages.Has(n) || r.Float64() >= part {
				continue
			}
			if err := errors.Join(pages.Add(n, img.blob[offset:offset+size]), fresh.Add(n, img.blob[offset:offset+size])); err != nil {
				t.Fatal(err)
			}
		}
		for i, want := range img.trees {
			got, err := root.Tree(i, payload, pages)
			if err != nil {
				t.Fatal(err)
			}
			if grown[i], err = root.Extend(grown[i], i, payload, fresh); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(grown[i].Bytes(), got.Bytes()) {
				t.Fatalf("layer %d: a tree that was extended is another one", i)
			}
			lacking := root.PagesFor(i, got)
			if slices.ContainsFunc(lacking, pages.Has) || got.KnowsAll() != (len(lacking) == 0) {
				t.Fatalf("layer %d: it lacks pages %v, and knows all: %t", i, lacking, got.KnowsAll())
			}
			compare(t, img, root, pages, i, got, want)
			if part == 1 && !bytes.Equal(got.Bytes(), want.Bytes()) {
				t.Fatalf("layer %d: with all pages another tree\n got %x\nwant %x", i, got.Bytes(), want.Bytes())
			}
		}
	}
	if !pages.Complete() {
		t.Fatal("pages are missing")
	}
}

// compare checks all that a tree says before its last page is here.
func compare(t *testing.T, img image, root *Root, pages *Pages, layer int, got, want *toc.Tree) {
	t.Helper()
	if got.Len() != want.Len() || got.NumChunks() != want.NumChunks() {
		t.Fatalf("layer %d: %d entries and %d chunks, want %d and %d", layer, got.Len(), got.NumChunks(), want.Len(), want.NumChunks())
	}
	if !slices.Equal(trace.Paths(got), trace.Paths(want)) {
		t.Fatalf("layer %d: other names", layer)
	}
	for e := range uint32(want.Len()) {
		if got.Attr(e) != want.Attr(e) || got.Readlink(e) != want.Readlink(e) || got.Parent(e) != want.Parent(e) ||
			fmt.Sprint(maps.Collect(got.Xattrs(e))) != fmt.Sprint(maps.Collect(want.Xattrs(e))) {
			t.Fatalf("layer %d: entry %d is other", layer, e)
		}
		first, end := root.PagesOf(layer, got, e)
		here := true
		for n := first; n < end; n++ {
			here = here && pages.Has(n)
		}
		if got.Known(e) != here {
			t.Fatalf("layer %d: file %d is known: %t, and its pages are here: %t", layer, e, got.Known(e), here)
		}
		if got.Known(e) && got.ObjectID(e) != want.ObjectID(e) {
			t.Fatalf("layer %d: file %d has another content", layer, e)
		}
	}
	if !got.Agrees(want) {
		t.Fatalf("layer %d: the trees don't agree", layer)
	}
	for c := range uint32(want.NumChunks()) {
		g, w := got.Chunk(c), want.Chunk(c)
		gm, wm := got.Member(g.Member), want.Member(w.Member)
		if g.Offset != w.Offset || g.Size != w.Size || got.ChunkFile(c) != want.ChunkFile(c) {
			t.Fatalf("layer %d: chunk %d is another piece", layer, c)
		}
		if g.ID != (chunk.ID{}) && (g.ID != w.ID || gm.Offset != wm.Offset || g.Inner != w.Inner) {
			t.Fatalf("layer %d: chunk %d is %v in %v, want %v in %v", layer, c, g, gm, w, wm)
		}
	}
	for _, w := range img.wanted {
		if w.Layer == layer && !got.Known(got.ChunkFile(w.Number)) {
			t.Fatalf("layer %d: chunk %d is hot and not known", layer, w.Number)
		}
	}
}

func checkHot(t *testing.T, img image, root *Root) {
	t.Helper()
	if root.Hot() == nil {
		if len(img.wanted) > 0 {
			t.Fatal("no hot set")
		}
		return
	}
	var got []Wanted
	var sizes []uint32
	for _, f := range root.Hot().Frames() {
		raw := 0
		for _, run := range f.Chunks {
			for c := range run.Count {
				raw += int(img.trees[run.Layer].Chunk(run.First + c).Size)
				got = append(got, Wanted{Layer: run.Layer, Number: run.First + c})
			}
		}
		if raw != f.Raw {
			t.Fatalf("a frame of %d bytes says %d", raw, f.Raw)
		}
		sizes = append(sizes, uint32(f.Size))
	}
	if !slices.Equal(sizes, img.frames) || !slices.EqualFunc(got, img.wanted, func(a, b Wanted) bool { return a.Layer == b.Layer && a.Number == b.Number }) {
		t.Fatalf("another hot set: %v in frames %v", got, sizes)
	}
}

func TestOddTablesComeBack(t *testing.T) {
	trees := odd(t)
	for name, tree := range trees {
		for _, part := range []float64{0, 0.3, 1} {
			t.Run(fmt.Sprint(name, part), func(t *testing.T) {
				r := rand.New(rand.NewPCG(1, uint64(part*10)))
				check(t, encode(t, []*toc.Tree{tree}, []trace.Plan{planOf(tree, r, part)}), r)
			})
		}
	}
	t.Run("all as one image", func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 1))
		var list []*toc.Tree
		var plans []trace.Plan
		for _, name := range slices.Sorted(maps.Keys(trees)) {
			list = append(list, trees[name])
			plans = append(plans, planOf(trees[name], r, 0.3))
		}
		check(t, encode(t, list, plans), r)
	})
}

func TestRandomTablesComeBack(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 2))
		var trees []*toc.Tree
		var plans []trace.Plan
		for range 1 + r.IntN(6) {
			tree := random(t, r)
			trees = append(trees, tree)
			plans = append(plans, planOf(tree, r, r.Float64()/2))
		}
		check(t, encode(t, trees, plans), r)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func TestManyPages(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	var trees []*toc.Tree
	var plans []trace.Plan
	for i := range 3 {
		var rows []row
		for k := range 300 {
			rows = append(rows, file(fmt.Sprintf("%d/%d", i, k), int64(k)*1000, slices.Repeat([]int64{100}, 1+r.IntN(4))...)...)
		}
		trees = append(trees, parse(t, rows...))
		plans = append(plans, planOf(trees[i], r, 0.1))
	}
	check(t, encode(t, trees, plans), r)
}

func TestPageOfAnotherImageIsRefused(t *testing.T) {
	trees := []*toc.Tree{odd(t)["pieces"]}
	img := encode(t, trees, make([]trace.Plan, 1))
	root, err := ParseRoot(img.blob[:img.root])
	if err != nil {
		t.Fatal(err)
	}
	pages := root.NewPages()
	page := slices.Clone(img.blob[img.root:])
	page[5] ^= 1
	if err := pages.Add(0, page); !errors.Is(err, ErrMismatch) || pages.Has(0) {
		t.Errorf("a page with a wrong bit: %v", err)
	}
	if err := pages.Add(1, page); !errors.Is(err, ErrInvalid) {
		t.Errorf("a page too many: %v", err)
	}
}

func TestLayerMustHoldItsMembers(t *testing.T) {
	tree := odd(t)["one file"]
	img := encode(t, []*toc.Tree{tree}, []trace.Plan{planOf(tree, rand.New(rand.NewPCG(1, 1)), 1)})
	root, err := ParseRoot(img.blob[:img.root])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := root.Tree(0, payload-1, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("a member behind the end of the layer: %v", err)
	}
	if _, err := root.Tree(1, payload, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("a layer too many: %v", err)
	}
}

func TestRef(t *testing.T) {
	ref := Ref{TOC: BlobOf([]byte("toc and pages")), Root: BlobOf([]byte("toc")), Hot: BlobOf([]byte("hot"))}
	for _, want := range []Ref{ref, {TOC: ref.TOC, Root: ref.Root}} {
		if got, ok := ParseRef(want.Annotations()); !ok || got != want {
			t.Errorf("%+v came back as %+v, %t", want, got, ok)
		}
	}
	for name, value := range map[string]string{
		"io.airstream.artifact.toc":       "sha512:00",
		"io.airstream.artifact.toc-size":  "1", // less than its root
		"io.airstream.artifact.root":      "",
		"io.airstream.artifact.root-size": "99999999999999",
		"io.airstream.artifact.hot":       "sha256:XY",
		"io.airstream.artifact.hot-size":  "-1",
	} {
		a := ref.Annotations()
		a[name] = value
		if _, ok := ParseRef(a); ok {
			t.Errorf("%s=%q was taken", name, value)
		}
	}
	if _, ok := ParseRef(nil); ok {
		t.Error("no annotations were taken")
	}
}
