package convert_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/airstream-io/airstream/convert"
	"github.com/airstream-io/airstream/convert/layer"
	"github.com/airstream-io/airstream/convert/location"
	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/trace"
)

// traceOf makes a trace of reads like "0:dir1/file1", of an image of n layers.
func traceOf(t *testing.T, n int, reads ...string) *trace.Trace {
	t.Helper()
	tr := &trace.Trace{Version: trace.Version, Image: "app:1", Layers: n}
	for _, s := range reads {
		r := trace.Read{Size: 100}
		if _, err := fmt.Sscanf(s, "%d:%s", &r.Layer, &r.Path); err != nil {
			t.Fatal(err)
		}
		tr.Reads = append(tr.Reads, r)
	}
	return tr
}

// hotOf returns the plans in a manifest's layers.
func hotOf(t *testing.T, m *memory, h v1.Hash) []trace.Plan {
	t.Helper()
	mf, _ := manifestOf(t, m, h)
	all := make([]trace.Plan, len(mf.Layers))
	for i, l := range mf.Layers {
		s, ok := l.Annotations[annotation.Hot]
		if !ok {
			continue
		}
		var err error
		if all[i], err = trace.ParsePlan(s, l.Size); err != nil || len(all[i]) == 0 {
			t.Fatalf("layer %d: %q: %v, %v", i, s, all[i], err)
		}
	}
	return all
}

func layersOf(r *convert.Result) (digests, how string) {
	for _, m := range r.Manifests {
		for _, l := range m.Layers {
			digests += l.New.String() + " "
			how += l.How + " "
		}
	}
	return digests, how
}

func TestTraceBecomesAnnotations(t *testing.T) {
	src, dst := newMemory(), newMemory()
	addPlain(t, src)
	cold := run(t, src, newMemory(), convert.Options{})
	hot := run(t, src, dst, convert.Options{Traces: []*trace.Trace{traceOf(t, 2, "1:dir2/file5", "1:dir0/file0", "1:nowhere")}})
	a, _ := layersOf(cold)
	b, _ := layersOf(hot)
	if a != b || cold.New == hot.New {
		t.Errorf("with a trace: layers %s, manifest %s; without: %s, %s", b, hot.New, a, cold.New)
	}
	checkImage(t, dst, hot.New)
	plans := hotOf(t, dst, hot.New)
	// Both are read within one window, so the order is that of the blob.
	if len(plans[0]) != 0 || len(plans[1]) != 2 || plans[1][0].Offset >= plans[1][1].Offset {
		t.Fatalf("plans %v", plans)
	}
	m := hot.Manifests[0]
	if m.Hot != plans[1].Size() || m.Layers[0].Hot != 0 || m.Layers[1].Hot != m.Hot || cold.Manifests[0].Hot != 0 {
		t.Errorf("reported %+v, want %d bytes", m, plans[1].Size())
	}
	// The runs are members, and hold what was read.
	mf, _ := manifestOf(t, dst, hot.New)
	blob := dst.blobs[mf.Layers[1].Digest]
	for i, want := range []string{"6.0 ", "6.5 "} {
		r := plans[1][i]
		if raw := gunzip(t, blob[r.Offset:r.Offset+r.Size]); !bytes.HasPrefix(raw, []byte(want)) {
			t.Errorf("run %d holds %.20q, want %q", i, raw, want)
		}
	}
}

func TestTraceGivesTheSameDigestWhateverIsKnown(t *testing.T) {
	src, dst, records := newMemory(), newMemory(), t.TempDir()
	addIndex(t, src)
	tr := traceOf(t, 2, "0:dir2/file2", "1:dir0/file3") // arm64 has three, where paths count
	cold := run(t, src, dst, convert.Options{Records: records})
	want := run(t, src, newMemory(), convert.Options{Traces: []*trace.Trace{tr}})
	if want.New == cold.New {
		t.Fatal("the trace changed nothing")
	}
	for _, test := range []struct {
		name, how string
		o         convert.Options
	}{
		{"converted without a trace", "known known known known known ", convert.Options{}},
		{"converted with this one", "known known known known known ", convert.Options{}},
		{"records", "known known known known known ", convert.Options{Records: records}},
		{"rebuild", "built built built built built ", convert.Options{Rebuild: true}},
	} {
		test.o.Traces = []*trace.Trace{tr}
		r := run(t, src, dst, test.o)
		if _, how := layersOf(r); r.New != want.New || how != test.how {
			t.Errorf("%s: %s, %s; want %s, %s", test.name, r.New, how, want.New, test.how)
		}
	}
	// What can't be read back is built again: by who has nowhere to read from,
	// and where what is there is something else.
	r, err := convert.Run(t.Context(), src, dst, nil, convert.Options{Traces: []*trace.Trace{tr}, Records: records, WorkDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if r.New != want.New {
		t.Errorf("nowhere to read from: %s, want %s", r.New, want.New)
	}
	damaged := dst.clone()
	for _, m := range r.Manifests {
		for _, l := range m.Layers {
			b := bytes.Clone(damaged.blobs[l.New])
			for i := len(b) / 2; i < len(b); i++ {
				b[i] ^= 0x55
			}
			damaged.blobs[l.New] = b
		}
	}
	r, err = convert.Run(t.Context(), src, dst, damaged, convert.Options{Traces: []*trace.Trace{tr}, WorkDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if _, how := layersOf(r); r.New != want.New || !strings.Contains(how, "built") {
		t.Errorf("damaged: %s, %s; want %s", r.New, how, want.New)
	}
	// And without a trace nothing of it is left.
	for _, o := range []convert.Options{{}, {Records: records}, {Rebuild: true}} {
		if r := run(t, src, dst, o); r.New != cold.New {
			t.Errorf("without a trace again: %s, want %s", r.New, cold.New)
		}
	}
}

// A converted image as the source keeps its layers and not its trace.
func TestTraceOfTheSourceIsReplaced(t *testing.T) {
	src := newMemory()
	addPlain(t, src)
	one, other := traceOf(t, 2, "0:dir1/file1", "1:dir1/file1"), traceOf(t, 2, "0:dir2/file2")
	cold, second := newMemory(), newMemory()
	wantCold := run(t, src, cold, convert.Options{})
	wantSecond := run(t, src, second, convert.Options{Traces: []*trace.Trace{other}})
	hot := newMemory()
	first := run(t, src, hot, convert.Options{Traces: []*trace.Trace{one}})
	for name, test := range map[string]struct {
		src  *memory
		o    convert.Options
		want v1.Hash
	}{
		"no trace":                     {hot, convert.Options{}, wantCold.New},
		"another":                      {hot, convert.Options{Traces: []*trace.Trace{other}}, wantSecond.New},
		"the same":                     {hot, convert.Options{Traces: []*trace.Trace{one}}, first.New},
		"one for an image without":     {cold, convert.Options{Traces: []*trace.Trace{one}}, first.New},
		"nothing for an image with":    {hot, convert.Options{Traces: []*trace.Trace{traceOf(t, 2)}}, wantCold.New},
		"none, and the image has none": {cold, convert.Options{}, wantCold.New},
	} {
		dst := newMemory()
		r := run(t, test.src, dst, test.o)
		if _, how := layersOf(r); r.New != test.want || how != "kept kept " {
			t.Errorf("%s: %s, %s; want %s", name, r.New, how, test.want)
		}
		checkImage(t, dst, r.New)
	}
	dst := newMemory()
	r := run(t, hot, dst, convert.Options{Rebuild: true})
	if plans := hotOf(t, dst, r.New); len(plans[0])+len(plans[1]) > 0 {
		t.Errorf("rebuilt without a trace, and it has %v", plans)
	}
}

func TestGroupSizeOfTheSourceIsReplaced(t *testing.T) {
	src, grouped, dst := newMemory(), newMemory(), newMemory()
	addPlain(t, src)
	run(t, src, grouped, convert.Options{Layer: layer.Options{GroupSize: 16 << 10}})
	r := run(t, grouped, dst, convert.Options{Rebuild: true})
	mf, _ := manifestOf(t, dst, r.New)
	if s, ok := mf.Layers[0].Annotations[annotation.GroupSize]; ok {
		t.Errorf("a layer without groups says %q", s)
	}
}

// One blob can stand in an image twice, and reads are of one of the two.
func TestTraceOfALayerThatIsThereTwice(t *testing.T) {
	src, dst := newMemory(), newMemory()
	addPlain(t, src)
	mf, c := manifestOf(t, src, src.root.Digest)
	mf.Layers = append(mf.Layers, mf.Layers[0])
	c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, c.RootFS.DiffIDs[0])
	mf.Config = src.add(types.OCIConfigJSON, marshal(t, c))
	mf.Config.MediaType = types.OCIConfigJSON
	d := src.add(types.OCIManifestSchema1, marshal(t, mf))
	src.root = &d
	tr := traceOf(t, 3, "2:dir0/file0")
	for _, how := range []string{"built built built ", "known known known "} {
		r := run(t, src, dst, convert.Options{Traces: []*trace.Trace{tr}})
		plans := hotOf(t, dst, r.New)
		if _, got := layersOf(r); len(plans[0]) != 0 || len(plans[1]) != 0 || len(plans[2]) != 1 || got != how {
			t.Errorf("plans %v, %s; want one run in the last, %s", plans, got, how)
		}
	}
}

func TestTraceOfAnotherImage(t *testing.T) {
	src := newMemory()
	addPlain(t, src)
	cold := run(t, src, newMemory(), convert.Options{})
	for name, test := range map[string]struct {
		tr   []*trace.Trace
		warn bool
	}{
		"other files":      {[]*trace.Trace{traceOf(t, 2, "0:usr/bin/python3", "1:etc/passwd")}, true},
		"no reads":         {[]*trace.Trace{traceOf(t, 2)}, true},
		"none":             {nil, false},
		"more layers":      {[]*trace.Trace{traceOf(t, 7, "6:dir0/file0")}, false},
		"it is this image": {[]*trace.Trace{traceOf(t, 2, "0:dir0/file0")}, false},
	} {
		var log bytes.Buffer
		r := run(t, src, newMemory(), convert.Options{Traces: test.tr, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if got := strings.Contains(log.String(), "the trace has no effect"); got != test.warn {
			t.Errorf("%s: warned %v, want %v: %s", name, got, test.warn, log.String())
		}
		if test.warn && r.New != cold.New {
			t.Errorf("%s: %s, want %s as without a trace", name, r.New, cold.New)
		}
	}
}

func gunzip(t *testing.T, b []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// Several traces are one: what only one of them has is in the plan, too.
func TestSeveralTraces(t *testing.T) {
	src, dst := newMemory(), newMemory()
	addPlain(t, src)
	r := run(t, src, dst, convert.Options{Traces: []*trace.Trace{traceOf(t, 2, "0:dir0/file0"), traceOf(t, 7, "6:dir2/file5"), traceOf(t, 2, "1:nowhere")}})
	plans := hotOf(t, dst, r.New)
	if len(plans[0]) != 1 || len(plans[1]) != 1 {
		t.Errorf("plans %v, want one run in each layer", plans)
	}
	if len(r.Traces) != 3 {
		t.Errorf("%d traces in the result", len(r.Traces))
	}
}

// The plan of a version is that of the next, if that is asked for.
func TestTraceFromAnEarlierVersion(t *testing.T) {
	src, old := newMemory(), newMemory()
	addIndex(t, src)
	first := run(t, src, old, convert.Options{Traces: []*trace.Trace{traceOf(t, 2, "1:dir2/file5", "0:dir0/file3", "1:dir0/file0")}})
	for name, o := range map[string]convert.Options{
		"built":      {},
		"prioritize": {Prioritize: true},
	} {
		dst := newMemory()
		o.TraceFrom = old
		r := run(t, src, dst, o)
		for i, m := range r.Manifests {
			// In another order other headers follow the content.
			if want := first.Manifests[i].Hot; m.Hot != want && !o.Prioritize || (m.Hot == 0) != (want == 0) {
				t.Errorf("%s: %s has %d hot bytes, the earlier version %d", name, m.Platform, m.Hot, want)
			}
		}
		if len(r.Traces) == 0 {
			t.Errorf("%s: no traces in the result", name)
		}
		for _, m := range r.Manifests {
			if !m.Unchanged {
				checkImage(t, dst, m.New)
			}
		}
		// The same again is the same, and a plan comes from nowhere else.
		if again := run(t, src, newMemory(), o); again.New != r.New {
			t.Errorf("%s: %s the second time, %s before", name, again.New, r.New)
		}
	}
	// An earlier version without plans is worth a warning.
	cold := newMemory()
	run(t, src, cold, convert.Options{})
	var log bytes.Buffer
	r := run(t, src, newMemory(), convert.Options{TraceFrom: cold, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if r.New != cold.root.Digest || !strings.Contains(log.String(), "says nothing of what its start reads") {
		t.Errorf("from one without plans: %s, want %s; %s", r.New, cold.root.Digest, log.String())
	}
	if _, err := convert.Run(t.Context(), src, newMemory(), nil, convert.Options{TraceFrom: newMemory(), WorkDir: t.TempDir()}); !errors.Is(err, location.ErrNotFound) {
		t.Errorf("from nowhere: %v", err)
	}
	// A table that was changed is not believed.
	damaged := old.clone()
	for h, b := range damaged.blobs {
		if b = bytes.Clone(b); len(b) > 2000 && b[0] == 0x1f {
			b[len(b)-200] ^= 1
			damaged.blobs[h] = b
		}
	}
	if _, err := convert.Run(t.Context(), src, newMemory(), nil, convert.Options{TraceFrom: damaged, WorkDir: t.TempDir()}); err == nil {
		t.Error("a damaged earlier version gave a trace")
	}
}

// Prioritized layers are others, are known again by the same trace only, and
// their plans need fewer runs.
func TestPrioritize(t *testing.T) {
	src, dst, records := newMemory(), newMemory(), t.TempDir()
	addPlain(t, src)
	tr := traceOf(t, 2, "1:dir2/file5", "1:dir0/file0", "1:dir1/file7")
	plain := run(t, src, newMemory(), convert.Options{Traces: []*trace.Trace{tr}})
	o := convert.Options{Traces: []*trace.Trace{tr}, Prioritize: true, Records: records}
	r := run(t, src, dst, o)
	checkImage(t, dst, r.New)
	a, b := plain.Manifests[0], r.Manifests[0]
	if a.Layers[0].New != b.Layers[0].New || a.Layers[1].New == b.Layers[1].New {
		t.Errorf("layers %+v without, %+v with", a.Layers, b.Layers)
	}
	if a.Layers[1].HotRuns < 3 || b.Layers[1].HotRuns != 1 || b.Hot == 0 {
		t.Errorf("%d runs without, %d with", a.Layers[1].HotRuns, b.Layers[1].HotRuns)
	}
	mf, _ := manifestOf(t, dst, r.New)
	if mf.Layers[0].Annotations[annotation.Prioritized] != "" || mf.Layers[1].Annotations[annotation.Prioritized] == "" {
		t.Errorf("annotations %v", mf.Layers)
	}
	other := convert.Options{Traces: []*trace.Trace{traceOf(t, 2, "1:dir0/file0")}, Prioritize: true, Records: records}
	for _, test := range []struct {
		name string
		src  *memory
		o    convert.Options
		how  string
		want v1.Hash
	}{
		{"again", src, o, "known known ", r.New},
		{"again, from the destination", src, convert.Options{Traces: o.Traces, Prioritize: true}, "known known ", r.New},
		{"rebuilt", src, convert.Options{Traces: o.Traces, Prioritize: true, Rebuild: true}, "built built ", r.New},
		{"converted again", dst.clone(), o, "kept kept ", r.New},
		{"not prioritized any more", src, convert.Options{Traces: o.Traces}, "known built ", plain.New},
		{"by another trace", src, other, "known built ", run(t, src, newMemory(), other).New},
	} {
		to := dst.clone()
		got := run(t, test.src, to, test.o)
		if _, how := layersOf(got); how != test.how || got.New != test.want {
			t.Errorf("%s: %s, %s; want %s, %s", test.name, how, got.New, test.how, test.want)
		}
		checkImage(t, to, got.New)
	}
	// Nothing to move is no reason for another layer.
	got := run(t, src, newMemory(), convert.Options{Traces: []*trace.Trace{traceOf(t, 9, "8:nowhere")}, Prioritize: true})
	if _, how := layersOf(got); got.New != run(t, src, newMemory(), convert.Options{}).New || how != "built built " {
		t.Errorf("nothing to prioritize: %s, %s", got.New, how)
	}
}

// What a first Run has built, a second one takes instead of building it again.
func TestLayersAtHand(t *testing.T) {
	src, hand, dst := newMemory(), newMemory(), newMemory()
	addPlain(t, src)
	run(t, src, hand, convert.Options{})
	want := run(t, src, newMemory(), convert.Options{Traces: []*trace.Trace{traceOf(t, 2, "1:dir0/file0")}})
	opens := src.opens
	r := run(t, src, dst, convert.Options{Traces: []*trace.Trace{traceOf(t, 2, "1:dir0/file0")}, AtHand: hand})
	if _, how := layersOf(r); r.New != want.New || how != "built built " {
		t.Errorf("%s, %s; want %s", r.New, how, want.New)
	}
	if src.opens-opens != 1 {
		t.Errorf("%d blobs were read from the source, want the config alone", src.opens-opens)
	}
	checkImage(t, dst, r.New)
}
