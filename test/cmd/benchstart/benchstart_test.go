package main

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"

	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
	"github.com/airstream-io/airstream/test/rig/link"
	"github.com/airstream-io/airstream/test/rig/site"
)

func TestCells(t *testing.T) {
	all := whole().cells()
	if want := 4 * 2 * 6 * 2 * len(contenders) * allRuns; len(all) != want {
		t.Errorf("%d cells, want %d", len(all), want)
	}
	seen := map[cell]bool{}
	for _, c := range all {
		seen[c] = true
		p, err := c.profile()
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Validate(); err != nil || p.Loss.Mean != c.Loss || len(p.Outages) > 0 || p.Name != c.Link {
			t.Errorf("%s: %s, %v", c, p, err)
		}
		if older, newer := c.versions(); older == "" || newer == "" {
			t.Errorf("%s has no versions", c)
		}
	}
	if len(seen) != len(all) || all[0].Run != 1 || all[len(all)-1].Run != allRuns {
		t.Errorf("%d different cells of %d, from %s to %s", len(seen), len(all), all[0], all[len(all)-1])
	}
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"-links", "leo", "-images", "go,redis", "-contenders", "airstream", "-loss", "0", "-runs", "2", "-kinds", "update"}, io.Discard)
	if err != nil || len(o.cells()) != 4 || o.cells()[0] != (cell{"leo", 0, "go", update, "airstream", 1}) {
		t.Errorf("%v, %v", o.cells(), err)
	}
	for _, wrong := range [][]string{{"-links", "moon"}, {"-images", "cobol"}, {"-loss", "x"}, {"-loss", "100"}, {"-contenders", "ftp"}, {"-kinds", "last"}} {
		if _, err := parse(wrong, io.Discard); err == nil {
			t.Errorf("%v is taken", wrong)
		}
	}
}

func made(c cell, ready time.Duration, down, up int64) result {
	return result{cell: c, Launch: site.Launch{Ready: ready, Down: down, Up: up}, When: time.Date(2026, 11, 26, 0, 0, 0, 0, time.UTC), Product: "abc", Machine: "Linux"}
}

// What was measured is there after an interruption, whatever it interrupted.
func TestResultsAreKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "results.jsonl")
	r, err := openResults(path)
	if err != nil {
		t.Fatal(err)
	}
	a, b := cell{"leo", 0.01, "go", first, "airstream", 1}, cell{"leo", 0, "go", update, "stargz", 2}
	for _, one := range []result{made(a, time.Second, 1, 2), {cell: b, Failed: "it did"}, made(a, 3*time.Second, 3, 4)} {
		if err := r.add(one); err != nil {
			t.Fatal(err)
		}
	}
	r.close()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.WriteString(`{"link":"leo","lo`)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	if r, err = openResults(path); err != nil {
		t.Fatal(err)
	}
	if got, ok := r.find(a); !ok || got != made(a, 3*time.Second, 3, 4) || len(r.all()) != 2 {
		t.Errorf("%+v of %+v", got, r.all())
	}
	if err := r.add(made(cell{Link: "new"}, 1, 1, 1)); err != nil {
		t.Fatal(err)
	}
	r.close()
	if r, err = openResults(path); err != nil || len(r.all()) != 3 {
		t.Errorf("%v, %v", r, err)
	}
	r.close()
	if err := os.WriteFile(path, []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openResults(path); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("got %v", err)
	}
}

func TestSummarise(t *testing.T) {
	s := func(n int64) time.Duration { return time.Duration(n) * time.Second }
	for name, test := range map[string]struct {
		ready []int64 // seconds; 0: failed
		want  spread
	}{
		"one":             {[]int64{4}, spread{runs: 1, ready: s(4), low: s(4), high: s(4), down: 400, up: 4}},
		"five":            {[]int64{5, 1, 9, 2, 3}, spread{runs: 5, ready: s(3), low: s(1), high: s(9), down: 300, up: 3}},
		"an even number":  {[]int64{4, 1, 2, 9}, spread{runs: 4, ready: s(3), low: s(1), high: s(9), down: 300, up: 3}},
		"some failed":     {[]int64{0, 7, 0}, spread{runs: 1, failed: 2, why: "why", ready: s(7), low: s(7), high: s(7), down: 700, up: 7}},
		"all failed":      {[]int64{0, 0}, spread{failed: 2, why: "why"}},
		"nothing at all":  {nil, spread{}},
		"some unfinished": {[]int64{-8, 8, 8}, spread{runs: 3, computed: true, ready: s(8), low: s(8), high: s(8), down: 800, up: 8}},
	} {
		var list []result
		for _, n := range test.ready {
			r := result{Failed: "why"}
			if n != 0 {
				computed := n < 0
				n = max(n, -n)
				r = result{Launch: site.Launch{Ready: s(n), Down: 100 * n, Up: n, Computed: computed}}
			}
			list = append(list, r)
		}
		if got := summarise(list); got != test.want {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
}

func TestIdeal(t *testing.T) {
	p := link.Profile{RTT: 600 * time.Millisecond, Down: 2 * link.Mbit}
	if got := ideal(p, 1_000_000); got != 4600*time.Millisecond {
		t.Errorf("%v", got)
	}
	p.RTTMax = 800 * time.Millisecond
	if got := ideal(p, 0); got != 700*time.Millisecond {
		t.Errorf("%v", got)
	}
}

// An update has to bring what the start reads and the node does not have.
func TestHotBytes(t *testing.T) {
	member := func(name, content string, offset int64) *estargz.TOCEntry {
		return &estargz.TOCEntry{Name: name, Type: "reg", Mode: 0o644, Size: 5, Offset: offset, ChunkDigest: chunk.Sum([]byte(content)).String()}
	}
	treeOf := func(entries ...*estargz.TOCEntry) *toc.Tree {
		b, err := json.Marshal(estargz.JTOC{Version: 1, Entries: entries})
		if err != nil {
			t.Fatal(err)
		}
		tree, err := toc.Parse(strings.NewReader(string(b)), 1000)
		if err != nil {
			t.Fatal(err)
		}
		return tree
	}
	older := treeOf(member("a", "same", 100), member("b", "old", 200), member("cold", "cold", 300))
	newer := treeOf(member("a", "same", 100), member("b", "new", 150), member("cold", "cold", 400), member("d", "new", 600))
	known := map[chunk.ID]bool{}
	if n := hotBytes(older, trace.Plan{{Offset: 100, Size: 200}}, known); n != 200 {
		t.Errorf("%d bytes of the older, want 200", n)
	}
	// b's content is new and there twice; cold was never read before.
	if n := hotBytes(newer, trace.Plan{{Offset: 100, Size: 900}}, known); n != 250+200 {
		t.Errorf("%d bytes of the newer, want 450", n)
	}
}

func sample() []result {
	at := func(who, kind string, run int) cell { return cell{"geo-vsat", 0, "redis", kind, who, run} }
	full := made(at("overlayfs", first, 1), 300*time.Second, 36_500_000, 400_000)
	full.Computed = true
	get := made(at(oneGet, first, 1), 12*time.Second, 3_100_000, 50_000)
	get.Hot = 3_000_000
	return []result{
		full, get, made(at("airstream", first, 1), 20*time.Second, 5_400_000, 100_000), made(at("airstream", first, 2), 40*time.Second, 5_600_000, 100_000),
		{cell: at("stargz", first, 1), Failed: `mount <"&">`, When: full.When},
		made(at("proxy", first, 1), 15*time.Second, 3_200_000, 60_000),
		made(at("airstream", update, 1), 1500*time.Millisecond, 90_000, 9_000),
		made(cell{"of-another-version", 0, "redis", first, "airstream", 1}, time.Second, 1, 1),
	}
}

func TestTable(t *testing.T) {
	all := sample()
	got := text(all, newGrid(all))
	for _, want := range []string{
		"**A part of it: 7 of 2400 starts are measured so far**", "median of 1 to 2 runs", "### geo-vsat, 0% loss",
		"| redis | first | ≈ 300 s<br>↓ 36.5 MB ↑ 0.40 MB | failed | 30.0 s (20.0–40.0)<br>↓ 5.50 MB ↑ 0.10 MB<br>**10.0 ×** | 15.0 s<br>↓ 3.20 MB ↑ 0.06 MB<br>**20.0 ×** | 12.0 s<br>↓ 3.10 MB ↑ 0.05 MB | 12.6 s<br>3.00 MB |",
		"| redis | update |  |  | 1.5 s<br>↓ 0.09 MB ↑ 0.01 MB |  |  |  |",
		`- geo-vsat 0% redis first stargz: mount <"&">`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "nginx |") || strings.Contains(got, "leo, ") {
		t.Errorf("rows of what was not measured in\n%s", got)
	}
}

// The picture is XML, shows what was measured, and nothing lies outside.
func TestPicture(t *testing.T) {
	picture := draw(newGrid(sample()))
	type shape struct {
		X, Y, Width, Height float64
	}
	num := func(e xml.StartElement, name string) (f float64) {
		for _, a := range e.Attr {
			if a.Name.Local == name {
				if err := json.Unmarshal([]byte(a.Value), &f); err != nil {
					t.Errorf("%s of %s is %q", name, e.Name.Local, a.Value)
				}
			}
		}
		return f
	}
	var frame shape
	bars := 0
	dec := xml.NewDecoder(strings.NewReader(picture))
	for {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		e, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		s := shape{num(e, "x"), num(e, "y"), num(e, "width"), num(e, "height")}
		switch e.Name.Local {
		case "svg":
			frame = s
		case "rect":
			if s.Height == barHeight && s.X >= chartLeft {
				bars++
			}
			if s.X+s.Width > frame.Width || s.Y+s.Height > frame.Height {
				t.Errorf("%+v lies outside of %+v", s, frame)
			}
		case "line":
			if max(num(e, "x1"), num(e, "x2")) > frame.Width || max(num(e, "y1"), num(e, "y2")) > frame.Height {
				t.Errorf("a line lies outside of %+v", frame)
			}
		}
	}
	if bars != 4 || !strings.Contains(picture, ">failed<") {
		t.Errorf("%d bars, want 4, in\n%s", bars, picture)
	}
	if low, high := newGrid(sample()).range10("geo-vsat"); low != 1 || high != 1000 {
		t.Errorf("from %g to %g", low, high)
	}
	if draw(grid{}) == "" {
		t.Error("no picture of nothing")
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	if err := write(dir, nil); err == nil {
		t.Error("a report of nothing")
	}
	if err := write(dir, sample()); err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(filepath.Join(dir, "benchmarks.md"))
	if err != nil || !strings.Contains(string(doc), "]("+picture+")") {
		t.Errorf("%s, %v", doc, err)
	}
}
