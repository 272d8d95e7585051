package trace_test

import (
	"slices"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	gocmp "github.com/google/go-cmp/cmp"

	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
)

// holding makes a file of one chunk with this content, at an offset of the blob.
func holding(name, content string, offset int64) []*estargz.TOCEntry {
	return []*estargz.TOCEntry{{Name: name, Type: "reg", Mode: 0o644, Size: 100, Offset: offset, ChunkDigest: chunk.Sum([]byte(content)).String()}}
}

func entry(name, kind string) []*estargz.TOCEntry {
	return []*estargz.TOCEntry{{Name: name, Type: kind, Mode: 0o755, LinkName: map[string]string{"symlink": "x"}[kind]}}
}

// plansOf returns what traces mean for an image of these layers, nil for one
// that is not lazy.
func plansOf(layers []*toc.Tree, traces ...*trace.Trace) [][]trace.Run {
	var orders []trace.Order
	for _, tr := range traces {
		m := trace.NewMatcher(tr)
		matches := make([]*trace.Match, len(layers))
		for i, tree := range layers {
			if tree != nil {
				matches[i] = m.Match(tree)
			}
		}
		orders = append(orders, m.Order(matches))
	}
	out := [][]trace.Run{}
	for _, p := range trace.Plans(len(layers), orders...) {
		out = append(out, append([]trace.Run{}, p...))
	}
	return out
}

// A trace of one version means the same for the next, as far as that has the
// same paths or chunks.
func TestTraceIsCarried(t *testing.T) {
	hint := func(s string) trace.Hint { return trace.HintOf(chunk.Sum([]byte(s))) }
	old := func(layers int, list ...trace.Read) *trace.Trace {
		for i := range list {
			list[i].Size = 100
		}
		return reads(layers, list...)
	}
	app := trace.Read{Layer: 1, Path: "opt/app", Chunk: hint("app")}
	for name, test := range map[string]struct {
		layers [][]*estargz.TOCEntry
		t      *trace.Trace
		want   [][]trace.Run
	}{
		"the same":                     {[][]*estargz.TOCEntry{nil, holding("opt/app", "app", 1000)}, old(2, app), [][]trace.Run{{}, {{0, 1000, payload - 1000}}}},
		"changed":                      {[][]*estargz.TOCEntry{nil, holding("opt/app", "new", 1000)}, old(2, app), [][]trace.Run{{}, {{0, 1000, payload - 1000}}}},
		"in another layer":             {[][]*estargz.TOCEntry{holding("opt/app", "app", 1000), nil}, old(2, app), [][]trace.Run{{{0, 1000, payload - 1000}}, {}}},
		"a layer more":                 {[][]*estargz.TOCEntry{holding("opt/app", "app", 1000), nil, nil}, old(2, app), [][]trace.Run{{{0, 1000, payload - 1000}}, {}, {}}},
		"the highest counts":           {[][]*estargz.TOCEntry{holding("opt/app", "app", 1), holding("opt/app", "app", 2), nil}, old(2, app), [][]trace.Run{{}, {{0, 2, payload - 2}}, {}}},
		"the recorded one before that": {[][]*estargz.TOCEntry{nil, holding("opt/app", "a", 1), holding("opt/app", "app", 2)}, old(3, app), [][]trace.Run{{}, {{0, 1, payload - 1}}, {}}},
		"hidden by a whiteout":         {[][]*estargz.TOCEntry{holding("opt/app", "a", 1), entry("opt/.wh.app", "reg"), nil}, old(2, app), [][]trace.Run{{}, {}, {}}},
		"hidden with its directory":    {[][]*estargz.TOCEntry{holding("opt/app", "a", 1), entry("opt/.wh..wh..opq", "reg"), nil}, old(2, app), [][]trace.Run{{}, {}, {}}},
		"hidden by a symlink":          {[][]*estargz.TOCEntry{holding("opt/app", "a", 1), entry("opt", "symlink"), nil}, old(2, app), [][]trace.Run{{}, {}, {}}},
		"not hidden":                   {[][]*estargz.TOCEntry{holding("opt/app", "a", 1), entry("opt", "dir"), entry("opt/.wh.other", "reg")}, old(2, app), [][]trace.Run{{{0, 1, payload - 1}}, {}, {}}},
		"renamed":                      {[][]*estargz.TOCEntry{nil, slices.Concat(holding("opt/one", "one", 1), holding("opt/app-2", "app", 50))}, old(2, app), [][]trace.Run{{}, {{0, 50, payload - 50}}}},
		"moved to another layer":       {[][]*estargz.TOCEntry{slices.Concat(holding("srv/app", "app", 1), holding("zz", "z", 70)), nil}, old(2, app), [][]trace.Run{{{0, 1, 69}}, {}}},
		"there twice":                  {[][]*estargz.TOCEntry{slices.Concat(holding("a", "app", 1), holding("b", "app", 70)), holding("c", "app", 5)}, old(2, app), [][]trace.Run{{{0, 1, 69}}, {}}},
		"hidden, but elsewhere":        {[][]*estargz.TOCEntry{slices.Concat(holding("new/app", "app", 1), holding("opt/app", "a", 9)), entry("opt/.wh.app", "reg"), nil}, old(2, app), [][]trace.Run{{{0, 1, 8}}, {}, {}}},
		"renamed, and nothing said":    {[][]*estargz.TOCEntry{nil, holding("opt/app-2", "app", 50)}, old(2, trace.Read{Layer: 1, Path: "opt/app"}), [][]trace.Run{{}, {}}},
		"gone":                         {[][]*estargz.TOCEntry{nil, holding("opt/other", "other", 50)}, old(2, app), [][]trace.Run{{}, {}}},
		"look-ups mean no bytes":       {[][]*estargz.TOCEntry{nil, holding("opt/app", "app", 50)}, reads(2, trace.Read{Layer: 1, Path: "opt/app", Kind: trace.Found}), [][]trace.Run{{}, {}}},
	} {
		var trees []*toc.Tree
		for _, l := range test.layers {
			if l == nil {
				trees = append(trees, nil)
				continue
			}
			trees = append(trees, treeOf(t, l...))
		}
		if diff := gocmp.Diff(test.want, plansOf(trees, test.t)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// Several traces, of whatever versions, are merged in terms of the image.
func TestPlansOfSeveralTraces(t *testing.T) {
	trees := []*toc.Tree{treeOf(t, slices.Concat(file("a", 0), file("b", 400_000), file("c", 800_000), file("d", 1_200_000))...)}
	at := func(layers int, paths ...string) *trace.Trace {
		tr := reads(layers)
		for _, p := range paths {
			tr.Reads = append(tr.Reads, trace.Read{Path: p, Size: 100})
		}
		return tr
	}
	got := plansOf(trees, at(1, "c", "b"), at(2, "c", "a", "b"), at(1, "b", "c"))
	want := [][]trace.Run{{{0, 800_000, 400_000}, {1, 400_000, 400_000}, {2, 0, 400_000}}}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A plan that is turned back into a trace gives the same plan for the same
// image, and says enough to find its chunks in another.
func TestRecall(t *testing.T) {
	layers := [][]*estargz.TOCEntry{
		slices.Concat(file("bin/app", 1000, 1030, 1060, 1090), file("etc/conf", 2000), file("lib/far", 5000, 5100)),
		slices.Concat(holding("srv/one", "one", 10), holding("srv/two", "two", 300_000), holding("srv/three", "three", 700_000)),
	}
	trees := []*toc.Tree{treeOf(t, layers[0]...), treeOf(t, layers[1]...)}
	const second = 800 << 10
	first := reads(2, trace.Read{Layer: 1, Path: "srv/two", Size: second}, trace.Read{Path: "bin/app", Offset: 100, Size: 200},
		trace.Read{Path: "lib/far", Size: 50}, trace.Read{Layer: 1, Path: "srv/one", Size: 1})
	want := plansOf(trees, first)
	var r trace.Recall
	for i, tree := range trees {
		r.Add(i, tree, want[i])
	}
	again := r.Trace("app:1", "sha256:ab", 2)
	paths := ""
	for _, read := range again.Reads {
		paths += read.Path + " "
		if read.Chunk == (trace.Hint{}) {
			t.Errorf("%+v has no hint", read)
		}
	}
	if paths != "srv/two bin/app bin/app lib/far srv/one " || again.Layers != 2 || again.Manifest != "sha256:ab" {
		t.Errorf("recalled %s: %+v", paths, again)
	}
	// Ranks are of another order of reads now, and runs of one rank are joined.
	for i, got := range plansOf(trees, again) {
		if trace.Plan(got).Size() != trace.Plan(want[i]).Size() || len(got) > len(want[i]) {
			t.Errorf("for the same image: %v, want %v", got, want[i])
		}
	}
	// The next version has renamed a directory, and one layer more.
	next := []*toc.Tree{trees[0], nil, treeOf(t, slices.Concat(holding("app/one", "one", 0), holding("app/new", "new", 5), holding("app/two", "two", 10), holding("zz", "z", 30))...)}
	if got := plansOf(next, again); len(got[0]) == 0 || len(got[2]) != 2 {
		t.Errorf("for the next version: %v", got)
	}
}

func TestFiles(t *testing.T) {
	two := reads(2, trace.Read{Layer: 1, Path: "b", Size: 1}, trace.Read{Layer: 0, Path: "x", Size: 1}, trace.Read{Layer: 1, Path: "c", Kind: trace.Found},
		trace.Read{Layer: 1, Path: "a", Size: 1}, trace.Read{Layer: 1, Path: "b", Offset: 1, Size: 1})
	if got := trace.Files(1, 2, two); !slices.Equal(got, []string{"b", "a"}) {
		t.Errorf("of the layer: %v", got)
	}
	if got := trace.Files(0, 3, two); !slices.Equal(got, []string{"b", "x", "a"}) {
		t.Errorf("of another number of layers: %v", got)
	}
	if got := trace.Files(1, 2, two, reads(2, trace.Read{Layer: 1, Path: "a", Size: 1}), reads(2, trace.Read{Layer: 1, Path: "a", Size: 1})); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("of three: %v", got)
	}
	if got := trace.Files(1, 2); len(got) != 0 {
		t.Errorf("of none: %v", got)
	}
}
