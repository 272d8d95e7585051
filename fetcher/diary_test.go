package fetcher

import (
	"fmt"
	"strings"
	"testing"

	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
)

// A node's trace has look-ups and reads in the order in which they came, each
// once, and names the chunks.
func TestTraceOfANode(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	tree, err := b.Tree(t.Context(), slot)
	if err != nil {
		t.Fatal(err)
	}
	small, ok := tree.Lookup(toc.Root, "small")
	if !ok {
		t.Fatal("no small")
	}
	for range 2 {
		b.Diary().Lookup(slot, toc.Root, "nothing", false)
		b.Diary().Lookup(slot, toc.Root, "small", true)
		b.Diary().Lookup(slot, small, "99999", false)
		s.want(t, b.open(t, "small/30"), "small/30", 0, 10)
		b.Diary().List(slot, small)
		b.Diary().List(slot, toc.Root)
		s.want(t, b.open(t, "big"), "big", 0, 10)
		s.want(t, b.open(t, "big"), "big", 100_000, 10)
	}
	b.Diary().Lookup(slot+1, toc.Root, "of no layer", true)
	b.Diary().List(slot, 1<<30)
	tr, err := b.Trace(t.Context(), []uint32{0, slot, slot})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range tr.Reads {
		if r.Layer != 2 || (r.Kind == trace.Content) != (r.Chunk != trace.Hint{}) {
			t.Errorf("%+v", r)
		}
		got = append(got, strings.TrimPrefix(string(r.Kind)+":"+r.Path, ":"))
	}
	const want = "absent:nothing found:small absent:small/99999 small/30 list:small list:. big big"
	if s := strings.Join(got, " "); s != want {
		t.Errorf("trace:\n%s\nwant:\n%s", s, want)
	}
	var file strings.Builder
	if err := tr.Encode(&file); err != nil {
		t.Fatal(err)
	}
	if _, err := trace.Decode(strings.NewReader(file.String())); err != nil {
		t.Error(err)
	}
}

// A daemon runs for months, and programs look for names that are new each time.
func TestDiaryIsBounded(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	tree, err := b.Tree(t.Context(), slot)
	if err != nil {
		t.Fatal(err)
	}
	var d Diary
	d.begin(1, tree)
	for i := range 100_000 {
		d.Lookup(1, toc.Root, fmt.Sprint("random", i), false)
	}
	if p := d.layers[1]; p.size > absentRoom || p.size < absentRoom/2 || p.ended {
		t.Errorf("%d bytes of names that are not there", p.size)
	}
	for i := range uint32(100_000) {
		d.read(1, i)
	}
	if p := d.layers[1]; p.size > pagesRoom || p.size < pagesRoom/2 || !p.ended || d.size != p.size {
		t.Errorf("%d bytes of one layer, %d of all", p.size, d.size)
	}
	d.Lookup(1, toc.Root, "small", true) // nothing happens
	for l := range uint32(100) {
		d.begin(2+l, tree)
		for i := range uint32(100_000) {
			d.read(2+l, i)
		}
	}
	sum := 0
	for l := range uint32(102) {
		if p := d.layers[l]; p != nil {
			sum += p.size
			if kept := p.size > 0; kept != (l > 102-diaryRoom/pagesRoom-1) {
				t.Errorf("layer %d of 101: kept is %t", l, kept)
			}
		}
	}
	if sum != d.size || sum > diaryRoom {
		t.Errorf("%d bytes, and %d are counted", sum, d.size)
	}
	for l := range uint32(102) {
		d.forget(l)
	}
	if d.size != 0 || len(d.layers) != 0 {
		t.Errorf("%d bytes of %d layers that were forgotten", d.size, len(d.layers))
	}
}

// Whoever opens a file waits for this.
func BenchmarkDiaryKnown(b *testing.B) {
	tree, err := toc.Parse(strings.NewReader(`{"version":1,"entries":[{"name":"small","type":"dir"}]}`), 1000)
	if err != nil {
		b.Fatal(err)
	}
	var d Diary
	d.begin(1, tree)
	for b.Loop() {
		d.Lookup(1, toc.Root, "small", true)
	}
}
