package trace_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/trace"
)

// readsOf makes reads of one layer like "a:0+100" (content), "dir?" (found),
// "no!" (absent), "dir/" (listed).
func readsOf(t *testing.T, list string) *trace.Trace {
	t.Helper()
	tr := &trace.Trace{Version: trace.Version, Image: "app:1", Layers: 1}
	for s := range strings.FieldsSeq(list) {
		r := trace.Read{Path: s[:len(s)-1]}
		switch s[len(s)-1] {
		case '?':
			r.Kind = trace.Found
		case '!':
			r.Kind = trace.Absent
		case '/':
			r.Kind = trace.List
		default:
			var at string
			r.Path, at, _ = strings.Cut(s, ":")
			if _, err := fmt.Sscanf(at, "%d+%d", &r.Offset, &r.Size); err != nil {
				t.Fatal(s, err)
			}
		}
		tr.Reads = append(tr.Reads, r)
	}
	return tr
}

func listOf(tr *trace.Trace) string {
	var all []string
	for _, r := range tr.Reads {
		switch r.Kind {
		case trace.Found:
			all = append(all, r.Path+"?")
		case trace.Absent:
			all = append(all, r.Path+"!")
		case trace.List:
			all = append(all, r.Path+"/")
		case trace.Content:
			all = append(all, fmt.Sprintf("%s:%d+%d", r.Path, r.Offset, r.Size))
		}
	}
	return strings.Join(all, " ")
}

func TestMerge(t *testing.T) {
	for name, test := range map[string]struct {
		in    string // traces, separated by |
		least int
		want  string
	}{
		"one":                            {"b:0+5 a? a:0+5", 1, "b:0+5 a? a:0+5"},
		"one that reads things twice":    {"a:0+5 b:0+5 a:0+5 b:0+5 a:3+5", 1, "a:0+5 b:0+5 a:5+3"},
		"equal ones":                     {"b:0+5 a/ a!|b:0+5 a/ a!", 1, "b:0+5 a/ a!"},
		"two of three agree":             {"a:0+1 b:0+1 c:0+1|c:0+1 a:0+1 b:0+1|a:0+1 b:0+1 c:0+1", 1, "a:0+1 b:0+1 c:0+1"},
		"one outlier moves nothing far":  {"a:0+1 b:0+1 c:0+1 d:0+1|a:0+1 b:0+1 c:0+1 d:0+1|d:0+1 c:0+1 b:0+1 a:0+1", 1, "a:0+1 b:0+1 c:0+1 d:0+1"},
		"of two the lower median":        {"a:0+1 b:0+1 c:0+1|c:0+1 b:0+1 a:0+1", 1, "a:0+1 c:0+1 b:0+1"},
		"what the majority lacks, last":  {"z:0+1 a:0+1 b:0+1|a:0+1 b:0+1|a:0+1 b:0+1", 1, "a:0+1 b:0+1 z:0+1"},
		"of those, the frequent first":   {"y:0+1 z:0+1 a:0+1|z:0+1 a:0+1|a:0+1|a:0+1|a:0+1", 1, "a:0+1 z:0+1 y:0+1"},
		"left out":                       {"y:0+1 z:0+1 a:0+1|z:0+1 a:0+1|a:0+1", 2, "a:0+1 z:0+1"},
		"in half of them is no minority": {"a:0+1 b:0+1|b:0+1", 1, "b:0+1 a:0+1"},
		"pieces of a read":               {"a:0+100 b:0+1|a:50+100 b:0+1", 1, "a:50+50 a:0+50 a:100+50 b:0+1"},
		"pieces that were one again":     {"a:0+50 a:50+50|a:0+100", 1, "a:0+100"},
		"look-ups are not content":       {"a? a! a/ a:0+1|a:0+1 a/ a! a?", 1, "a:0+1 a? a! a/"},
		"nothing":                        {"|", 1, ""},
	} {
		var traces []*trace.Trace
		for s := range strings.SplitSeq(test.in, "|") {
			traces = append(traces, readsOf(t, s))
		}
		got, err := trace.Merge(test.least, traces...)
		if err != nil {
			t.Fatal(name, err)
		}
		if listOf(got) != test.want {
			t.Errorf("%s: %s\n got %s\nwant %s", name, test.in, listOf(got), test.want)
		}
		slices.Reverse(traces)
		again, err := trace.Merge(test.least, traces...)
		if err != nil {
			t.Fatal(name, err)
		}
		if diff := cmp.Diff(got, again); diff != "" {
			t.Errorf("%s: the order of the traces matters: %s", name, diff)
		}
	}
}

func TestMergeNamesWhatItIsOf(t *testing.T) {
	a, b := readsOf(t, "a:0+1"), readsOf(t, "a:0+1")
	a.Manifest, b.Manifest = "sha256:1", "sha256:1"
	got, err := trace.Merge(1, a, b)
	if err != nil || got.Image != "app:1" || got.Manifest != "sha256:1" || got.Layers != 1 {
		t.Errorf("of one image: %+v, %v", got, err)
	}
	b.Image, b.Manifest = "app:2", "sha256:2"
	got, err = trace.Merge(1, b, a)
	if err != nil || got.Image != "app:1, app:2" || got.Manifest != "" {
		t.Errorf("of two: %+v, %v", got, err)
	}
	b.Layers = 2
	if _, err = trace.Merge(1, a, b); !errors.Is(err, trace.ErrDifferent) || !strings.Contains(err.Error(), "app:1 has 1 layers, app:2 has 2") {
		t.Errorf("of images with different layers: %v", err)
	}
}

// A hint says what a whole chunk is, and not what a part of it is.
func TestMergeKeepsHintsOfWholeChunks(t *testing.T) {
	hint := trace.HintOf(chunk.Sum([]byte("x")))
	recorded := readsOf(t, "a:0+100 a:100+100 b:0+100")
	for i := range recorded.Reads {
		recorded.Reads[i].Chunk = hint
	}
	got, err := trace.Merge(1, recorded, readsOf(t, "a:0+200 b:0+50"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range got.Reads {
		if want := r.Path == "a"; (r.Chunk == hint) != want {
			t.Errorf("%+v: a hint %v, want %v", r, !want, want)
		}
	}
	if len(got.Reads) != 3 {
		t.Errorf("%s", listOf(got))
	}
}

// Reading a large file over and over takes no longer than reading it once.
func TestMergeIsBounded(t *testing.T) {
	const n = 30_000
	fine, coarse := readsOf(t, ""), readsOf(t, "")
	for i := range int64(n) { // n² steps would take minutes
		fine.Reads = append(fine.Reads, trace.Read{Path: "big", Offset: i * 10, Size: 10})
		coarse.Reads = append(coarse.Reads, trace.Read{Path: "big", Size: n * 10})
	}
	got, err := trace.Merge(1, fine, coarse, coarse)
	if err != nil {
		t.Fatal(err)
	}
	if listOf(got) != fmt.Sprintf("big:0+%d", n*10) {
		t.Errorf("%d reads", len(got.Reads))
	}
}

// Whatever is merged, the result has each byte and look-up of the traces once,
// and merging it with itself changes nothing.
func TestMergeLosesNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		type at struct {
			path string
			kind trace.Kind
			off  int64
		}
		want := map[at]bool{}
		var traces []*trace.Trace
		for range 1 + r.IntN(4) {
			tr := readsOf(t, "")
			for range r.IntN(20) {
				read := trace.Read{Path: string(rune('a' + r.IntN(3))), Offset: int64(r.IntN(20)), Size: 1 + int64(r.IntN(10))}
				if r.IntN(4) == 0 {
					read = trace.Read{Path: read.Path, Kind: trace.Found}
					want[at{read.Path, read.Kind, 0}] = true
				}
				for i := range read.Size {
					want[at{read.Path, read.Kind, read.Offset + i}] = true
				}
				tr.Reads = append(tr.Reads, read)
			}
			traces = append(traces, tr)
		}
		got, err := trace.Merge(1, traces...)
		if err != nil {
			t.Fatal(err)
		}
		have := map[at]bool{}
		for _, read := range got.Reads {
			for i := range max(read.Size, 1) {
				k := at{read.Path, read.Kind, read.Offset + i}
				if have[k] {
					t.Fatalf("%v twice in %s", k, listOf(got))
				}
				have[k] = true
			}
		}
		if diff := cmp.Diff(want, have); diff != "" {
			t.Fatal(diff)
		}
		again, err := trace.Merge(1, got, got, got)
		if err != nil {
			t.Fatal(err)
		}
		if listOf(again) != listOf(got) {
			t.Fatalf("merged with itself:\n%s\n%s", listOf(got), listOf(again))
		}
	}
}

func TestLookupsAndChunksRoundTrip(t *testing.T) {
	want := readsOf(t, "bin? bin/app? bin/app:0+100 lib/ lib/no! lib/so:7+3")
	want.Reads[2].Chunk = trace.HintOf(chunk.Sum([]byte("x")))
	var b bytes.Buffer
	if err := want.Encode(&b); err != nil {
		t.Fatal(err)
	}
	const line = `{"layer":0,"path":"bin/app","offset":0,"size":100,"chunk":"2d711642b726b044"},`
	if !strings.Contains(b.String(), "\n  "+line+"\n") || !strings.Contains(b.String(), "\n  "+`{"layer":0,"path":"lib/no","lookup":"absent"},`+"\n") {
		t.Errorf("written as:\n%s", b.String())
	}
	got, err := trace.Decode(&b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if n, files := want.Bytes(); n != 103 || files != 2 {
		t.Errorf("%d bytes of %d files", n, files)
	}
}
