package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/airstream-io/airstream/internal/trace"
	"github.com/airstream-io/airstream/test/rig/node"
	"github.com/airstream-io/airstream/test/rig/site"
)

// What convert records in CI is what a pod reads on a node: the same files, the
// same pieces of them, in nearly the same order.
func TestRecordingIsWhatANodeReads(t *testing.T) {
	for _, name := range []string{"redis", "python"} {
		t.Run(name, func(t *testing.T) {
			notShort(t, name)
			img := publish(t, name)
			file := filepath.Join(t.TempDir(), "start.trace")
			_, err := site.Convert(t.Context(), shore.binary, shore.reg, name+":plain", name+":recorded",
				"--record", "", "--ready", img.ReadyLine, "--save-trace", file)
			must(t, err)
			b, err := os.ReadFile(file)
			must(t, err)
			recorded, err := trace.Decode(bytes.NewReader(b))
			must(t, err)

			s := newSite(t, site.Options{Profile: fast(t), Config: "[fetch]\nbackground = false\n"})
			ctx := t.Context()
			ref := s.Ref(name + ":lazy")
			must(t, s.Node.PullTransfer(ctx, ref, lazySnapshotter))
			_, err = s.Node.RunUntil(ctx, node.Run{Ref: ref, Snapshotter: lazySnapshotter, Ready: img.Ready()})
			must(t, err)
			out, err := s.Run(ctx, "trace", ref)
			must(t, err)
			seen, err := trace.Decode(bytes.NewReader([]byte(out)))
			must(t, err)

			a, b2 := filesOf(recorded), filesOf(seen)
			common := 0
			for _, f := range a {
				if slices.Contains(b2, f) {
					common++
				}
			}
			if all := len(a) + len(b2) - common; common*100 < all*95 {
				t.Errorf("%d files were recorded, the node read %d, and %d are both", len(a), len(b2), common)
			}
			if n := unlike(a, b2); n > 0.1 {
				t.Errorf("%.2f of the pairs of files are in another order", n)
			}
			x, y := bytesOf(recorded), bytesOf(seen)
			var both, only int64
			for p, n := range y {
				if x[p] > 0 {
					both += n
				} else {
					only += n
				}
			}
			t.Logf("%d and %d files, %d in both; %.1f MB of what the node read was recorded, %.1f MB was not; %.3f of the pairs are in another order",
				len(a), len(b2), common, float64(both)/1e6, float64(only)/1e6, unlike(a, b2))
			if only*20 > both {
				t.Errorf("of what the node read, %d bytes were recorded and %d were not", both, only)
			}
			compareLookups(t, recorded, seen)
		})
	}
}

// compareLookups checks that a node says of look-ups and chunks what the recorder
// says of them.
func compareLookups(t *testing.T, recorded, seen *trace.Trace) {
	t.Helper()
	places := map[trace.Read]bool{} // what was done, without the chunk
	chunks := map[trace.Read]trace.Hint{}
	lookups := map[trace.Kind]int{}
	for _, r := range recorded.Reads {
		chunk := r.Chunk
		r.Chunk = trace.Hint{}
		places[r], chunks[r] = true, chunk
		lookups[r.Kind]++
	}
	common, others := map[trace.Kind]int{}, map[trace.Kind]int{}
	for _, r := range seen.Reads {
		chunk := r.Chunk
		r.Chunk = trace.Hint{}
		if r.Kind == trace.Content && chunk == (trace.Hint{}) || places[r] && chunk != chunks[r] {
			t.Errorf("the node read chunk %x, and %x was recorded: %+v", chunk, chunks[r], r)
		}
		if places[r] {
			common[r.Kind]++
		} else {
			others[r.Kind]++
		}
	}
	t.Logf("look-ups: %v were recorded; the node made %v of them, and %v others", lookups, common, others)
	for _, k := range []trace.Kind{trace.Found, trace.Absent} {
		if all := lookups[k] + others[k]; lookups[k] == 0 || common[k]*10 < all*9 {
			t.Errorf("look-ups that are %s: %d were recorded, the node made %d of them and %d others", k, lookups[k], common[k], others[k])
		}
	}
}

type layerFile struct {
	layer int
	path  string
}

// filesOf returns what a trace read, in order.
func filesOf(t *trace.Trace) (list []layerFile) {
	seen := map[layerFile]bool{}
	for _, r := range t.Reads {
		if f := (layerFile{r.Layer, r.Path}); r.Kind == trace.Content && !seen[f] {
			seen[f] = true
			list = append(list, f)
		}
	}
	return list
}

// bytesOf returns what a trace read in pieces of a chunk.
func bytesOf(t *trace.Trace) map[[2]any]int64 {
	const chunk = 64 << 10
	pieces := map[[2]any]int64{}
	for _, r := range t.Reads {
		if r.Kind != trace.Content {
			continue
		}
		for at := r.Offset; at < r.Offset+r.Size; at += chunk {
			pieces[[2]any{layerFile{r.Layer, r.Path}, at / chunk}] = min(chunk, r.Offset+r.Size-at)
		}
	}
	return pieces
}

// unlike returns the share of pairs of common elements that two lists have in
// different orders (Kendall's tau distance).
func unlike(a, b []layerFile) float64 {
	var at []int
	for _, f := range a {
		if i := slices.Index(b, f); i >= 0 {
			at = append(at, i)
		}
	}
	pairs, bad := 0, 0
	for i := range at {
		for j := range i {
			pairs++
			if at[j] > at[i] {
				bad++
			}
		}
	}
	return float64(bad) / float64(max(pairs, 1))
}
