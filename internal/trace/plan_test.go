package trace_test

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	gocmp "github.com/google/go-cmp/cmp"

	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
)

// payload is the size of the blobs here up to the table of contents, in bytes.
const payload = 1 << 30

func treeOf(tb testing.TB, entries ...*estargz.TOCEntry) *toc.Tree {
	tb.Helper()
	b, err := json.Marshal(estargz.JTOC{Version: 1, Entries: entries})
	if err != nil {
		tb.Fatal(err)
	}
	tree, err := toc.Parse(bytes.NewReader(b), payload)
	if err != nil {
		tb.Fatal(err)
	}
	return tree
}

// file makes a file of chunks of 100 bytes that lie at these offsets of the
// blob.
func file(name string, offsets ...int64) (entries []*estargz.TOCEntry) {
	for i, off := range offsets {
		e := &estargz.TOCEntry{Name: name, Type: "chunk", Offset: off, ChunkOffset: int64(i) * 100, ChunkSize: 100, ChunkDigest: chunk.Sum([]byte(name)).String()}
		if i == 0 {
			e.Type, e.Mode, e.Size = "reg", 0o644, int64(len(offsets))*100
		}
		entries = append(entries, e)
	}
	return entries
}

func reads(layers int, list ...trace.Read) *trace.Trace {
	return &trace.Trace{Version: trace.Version, Layers: layers, Reads: list}
}

// newPlan returns what a trace means for one layer of an image of count layers,
// of which the others are not lazy.
func newPlan(t *trace.Trace, tree *toc.Tree, layer, count int) trace.Plan {
	m := trace.NewMatcher(t)
	layers := make([]*trace.Match, count)
	layers[layer] = m.Match(tree)
	return trace.Plans(count, m.Order(layers))[layer]
}

func TestNewPlan(t *testing.T) {
	entries := slices.Concat(
		file("bin/app", 1000, 1030, 1060, 1090), // chunks of 30 bytes of the blob
		[]*estargz.TOCEntry{{Name: "bin/same", Type: "hardlink", LinkName: "bin/app"}, {Name: "bin/link", Type: "symlink", LinkName: "app"}},
		file("etc/conf", 2000),
		file("etc/empty-next", 2050),
		[]*estargz.TOCEntry{{Name: "etc/none", Type: "reg", Mode: 0o644}},
		file("lib/far", 5000, 5100),
	)
	tree := treeOf(t, entries...)
	at := func(path string, off, size int64) trace.Read {
		return trace.Read{Layer: 1, Path: path, Offset: off, Size: size}
	}
	const second = 800 << 10 // so much content ends a rank
	for name, test := range map[string]struct {
		t    *trace.Trace
		want trace.Plan
	}{
		"nothing":                           {reads(2), nil},
		"one chunk":                         {reads(2, at("bin/app", 100, 100)), trace.Plan{{0, 1030, 30}}},
		"one byte":                          {reads(2, at("bin/app", 199, 1)), trace.Plan{{0, 1030, 30}}},
		"two chunks are one run":            {reads(2, at("bin/app", 199, 2)), trace.Plan{{0, 1030, 60}}},
		"joined in any order":               {reads(2, at("bin/app", 200, 100), at("bin/app", 0, 100), at("bin/app", 100, 100)), trace.Plan{{0, 1000, 90}}},
		"once only":                         {reads(2, at("bin/app", 0, 200), at("bin/same", 0, 400), at("bin/app", 100, 200)), trace.Plan{{0, 1000, 1000}}},
		"files that are neighbours":         {reads(2, at("etc/empty-next", 0, 1), at("etc/conf", 0, 1)), trace.Plan{{0, 2000, 3000}}},
		"order of the blob within a window": {reads(2, at("lib/far", 0, 1), at("etc/conf", 0, 1)), trace.Plan{{0, 2000, 50}, {0, 5000, 100}}},
		"order of need beyond it":           {reads(2, at("lib/far", 0, second), at("etc/conf", 0, 1), at("bin/app", 0, 1)), trace.Plan{{0, 5000, payload - 5000}, {1, 1000, 30}, {1, 2000, 50}}},
		"not joined across ranks":           {reads(2, at("bin/app", 0, 100), at("nowhere", 0, second), at("bin/app", 100, 100)), trace.Plan{{0, 1000, 30}, {2, 1030, 30}}},
		"ranks count other layers":          {reads(2, trace.Read{Layer: 0, Path: "x", Size: second}, at("etc/conf", 0, 1)), trace.Plan{{1, 2000, 50}}},
		"other layer":                       {reads(2, trace.Read{Layer: 0, Path: "etc/conf", Size: 1}), trace.Plan{{0, 2000, 50}}},
		"other number of layers":            {reads(3, trace.Read{Layer: 0, Path: "etc/conf", Size: 1}, trace.Read{Layer: 2, Path: "nowhere", Size: 1}), trace.Plan{{0, 2000, 50}}},
		"leading slash":                     {reads(2, at("/etc/conf", 0, 1)), trace.Plan{{0, 2000, 50}}},
		"behind the end":                    {reads(2, at("etc/conf", 100, 1), at("etc/conf", math.MaxInt64-1, 1)), nil},
		"more than there is":                {reads(2, at("bin/app", 350, math.MaxInt64-350)), trace.Plan{{0, 1090, 910}}},
		"not a file":                        {reads(2, at("bin", 0, 1), at("bin/link", 0, 1), at("etc/none", 0, 1), at("bin/app/x", 0, 1), at("/", 0, 1), at("../etc/conf", 0, 1), at("etc//conf", 0, 1)), nil},
		"never decoded":                     {reads(2, at("etc/conf", -5, 10), at("etc/conf", 0, -1), at("", 0, 1)), nil},
	} {
		got := newPlan(test.t, tree, 1, 2)
		if diff := gocmp.Diff(test.want, got, gocmp.Transformer("", func(p trace.Plan) []trace.Run { return append([]trace.Run{}, p...) })); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		checkRoundTrip(t, got)
	}
}

// Small files can share a member, and a run holds it once.
func TestNewPlanOfGroups(t *testing.T) {
	a, b := file("a", 500), file("b", 500)
	b[0].InnerOffset = 700
	tree := treeOf(t, append(append(a, b...), file("c", 900)...)...)
	got := newPlan(reads(1, trace.Read{Path: "b", Size: 1}, trace.Read{Path: "a", Size: 1}), tree, 0, 1)
	if diff := gocmp.Diff(trace.Plan{{0, 500, 400}}, got); diff != "" {
		t.Error(diff)
	}
}

func checkRoundTrip(t *testing.T, p trace.Plan) {
	t.Helper()
	s := p.String()
	got, err := trace.ParsePlan(s, payload)
	if err != nil {
		t.Fatalf("%v is written as %q: %v", []trace.Run(p), s, err)
	}
	if !slices.Equal(p, got) {
		t.Errorf("%v is written as %q and read as %v", []trace.Run(p), s, []trace.Run(got))
	}
	sorted := slices.IsSortedFunc(p, func(a, b trace.Run) int { return cmp.Or(cmp.Compare(a.Rank, b.Rank), cmp.Compare(a.Offset, b.Offset)) })
	byOffset := slices.SortedFunc(slices.Values(p), func(a, b trace.Run) int { return cmp.Compare(a.Offset, b.Offset) })
	for i := 1; i < len(p); i++ {
		if byOffset[i-1].Offset+byOffset[i-1].Size > byOffset[i].Offset {
			t.Errorf("runs overlap: %v", []trace.Run(p))
		}
	}
	if !sorted {
		t.Errorf("not sorted: %v", []trace.Run(p))
	}
}

// A hostile trace reads a large file over and over. That takes no longer than
// reading it once, and what comes of it fits into an annotation.
func TestNewPlanIsBounded(t *testing.T) {
	const n = 50_000
	offsets := make([]int64, n)
	for i := range offsets {
		offsets[i] = int64(i) * 100
	}
	tree := treeOf(t, file("big", offsets...)...)
	tr := reads(1)
	for range n { // n² steps would take minutes
		tr.Reads = append(tr.Reads, trace.Read{Path: "big", Size: n * 100})
	}
	checkRoundTrip(t, newPlan(tr, tree, 0, 1))

	tr = reads(1)
	for i := range n / 2 { // every other chunk, none of them neighbours
		tr.Reads = append(tr.Reads, trace.Read{Path: "big", Offset: int64(n/2-1-i) * 200, Size: 100})
	}
	p := newPlan(tr, tree, 0, 1)
	if s := p.String(); len(p) < 1000 || len(s) > 300_000 {
		t.Errorf("%d runs in %d bytes", len(p), len(s))
	}
	// What is left out is what is needed last.
	if last := p[len(p)-1].Offset; p[0].Offset < last {
		t.Errorf("first %d, last %d", p[0].Offset, last)
	}
	checkRoundTrip(t, p)
}

// plan encodes numbers as the annotation has them: rank and size unsigned,
// the offset signed.
func plan(numbers ...int64) string {
	var b []byte
	for i, n := range numbers {
		if i%3 == 1 {
			b = binary.AppendVarint(b, n)
		} else {
			b = binary.AppendUvarint(b, uint64(n))
		}
	}
	return "1." + base64.RawURLEncoding.EncodeToString(b)
}

// The format is written down, and a plan of today is read by later versions.
func TestPlanFormat(t *testing.T) {
	p := trace.Plan{{0, 1000, 30}, {0, 2000, 50}, {7, 64, 300}}
	const golden = "1.ANAPHgCUDzIHgx-sAg"
	if got, want := p.String(), plan(0, 1000, 30, 0, 970, 50, 7, 64-2050, 300); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := p.String(); got != golden {
		t.Errorf("got %s, want %s", got, golden)
	}
	if got, err := trace.ParsePlan(golden, 2050); err != nil || !slices.Equal(got, p) {
		t.Errorf("%s is read as %v, %v", golden, []trace.Run(got), err)
	}
}

func TestParsePlanRefuses(t *testing.T) {
	const blob = 1000
	many := make([]int64, 0, 3*20_001)
	for range 20_001 {
		many = append(many, 0, 0, 1)
	}
	for name, test := range map[string]struct{ in, say string }{
		"nothing":             {"", "unknown version"},
		"other version":       {"2.AAAB", "unknown version"},
		"not base64":          {"1.A*AB", "illegal base64"},
		"cut in a rank":       {"1.gA", "run 0 is cut short"},
		"cut before the size": {"1.AAA", "run 0 is cut short"},
		"number of 11 bytes":  {"1." + base64.RawURLEncoding.EncodeToString(bytes.Repeat([]byte{0xff}, 11)), "run 0 is cut short"},
		"before the blob":     {plan(0, -1, 1), "run 0 lies outside"},
		"behind the blob":     {plan(0, 1000, 1), "run 0 lies outside"},
		"far behind it":       {plan(0, math.MaxInt64, 1), "run 0 lies outside"},
		"over its end":        {plan(0, 999, 2), "run 0 lies outside"},
		"empty run":           {plan(0, 5, 0), "run 0 lies outside"},
		"size that wraps":     {plan(0, 5, -1), "run 0 lies outside"},
		"offset that wraps":   {plan(0, 5, 10, 0, math.MaxInt64, 1), "run 1 lies outside"},
		"back too far":        {plan(0, 5, 10, 0, math.MinInt64, 1), "run 1 lies outside"},
		"rank that wraps":     {plan(1, 5, 10, math.MaxUint32, 0, 1), "run 1 has a rank above"},
		"rank of 64 bits":     {plan(-1, 5, 10), "run 0 has a rank above"},
		"all of it twice":     {plan(0, 0, 1000, 0, -1000, 1), "longer than the blob"},
		"endless":             {"1." + strings.Repeat("A", 1<<20), "1048578 bytes"},
	} {
		if p, err := trace.ParsePlan(test.in, blob); !errors.Is(err, trace.ErrInvalid) || !strings.Contains(err.Error(), test.say) {
			t.Errorf("%s: got %v, %v, want ErrInvalid that says %q", name, p, err, test.say)
		}
	}
	if _, err := trace.ParsePlan(plan(many...), 1<<20); !errors.Is(err, trace.ErrInvalid) || !strings.Contains(err.Error(), "more than") {
		t.Errorf("too many runs: %v", err)
	}
	for _, size := range []int64{0, -1, math.MinInt64} {
		if _, err := trace.ParsePlan(plan(0, 0, 1), size); !errors.Is(err, trace.ErrInvalid) {
			t.Errorf("blob of %d bytes: %v", size, err)
		}
	}
	if p, err := trace.ParsePlan("1.", 0); err != nil || len(p) != 0 {
		t.Errorf("the empty plan: %v, %v", p, err)
	}
	// Overlaps are odd and harmless.
	if p, err := trace.ParsePlan(plan(0, 10, 20, math.MaxUint32, -20, 20), blob); err != nil || len(p) != 2 || p[1] != (trace.Run{Rank: math.MaxUint32, Offset: 10, Size: 20}) || p.Size() != 40 {
		t.Errorf("got %v, %v", p, err)
	}
}

func FuzzParsePlan(f *testing.F) {
	f.Add(plan(), int64(0))
	f.Add(plan(0, 1000, 30, 0, 970, 50, 7, 64-2050, 300), int64(4000))
	f.Add(plan(0, 0, 10, 0, -10, 10), int64(20))
	f.Add(plan(0, math.MaxInt64, 1, 0, 0, -1), int64(math.MaxInt64))
	f.Add(plan(-1, math.MinInt64, 1), int64(-1))
	f.Add("1.\n", int64(5))
	f.Add("2.", int64(5))
	f.Fuzz(func(t *testing.T, s string, size int64) {
		p, err := trace.ParsePlan(s, size)
		if err != nil {
			if !errors.Is(err, trace.ErrInvalid) {
				t.Fatalf("got %v, want ErrInvalid", err)
			}
			return
		}
		left, rank := size, uint32(0)
		for i, r := range p {
			if r.Offset < 0 || r.Size < 1 || r.Offset > size || r.Size > size-r.Offset || r.Rank < rank || r.Size > left {
				t.Fatalf("run %d of %v in a blob of %d bytes", i, []trace.Run(p), size)
			}
			left, rank = left-r.Size, r.Rank
		}
		if again, err := trace.ParsePlan(p.String(), size); err != nil || !slices.Equal(again, p) {
			t.Fatalf("%v is written as %s and read as %v, %v", []trace.Run(p), p, []trace.Run(again), err)
		}
	})
}
