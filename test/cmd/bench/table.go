package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/airstream-io/airstream/test/report"
	"github.com/airstream-io/airstream/test/rig/site"
)

// table writes the rows as Markdown, with the conditions they hold under.
func (b *bench) table(rows []row) string {
	var t strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&t, format+"\n", args...) }
	say("## First start over %s", b.profile.Name)
	say("")
	say("Link: `%s`. From the beginning of the pull to the container's ready line, on a node", b.profile)
	say("with empty caches; bytes are IP packets that arrived on the node until then. The registry's sender uses cubic.")
	say("%s", b.conditions())
	say("")
	say("| image | MB | full pull, overlayfs | Airstream | | Airstream, with a trace | |")
	say("|---|--:|--:|--:|--:|--:|--:|")
	for _, r := range rows {
		say("| %s | %.1f | %s | %s | **%.1f ×** | %s | **%.1f ×** |", r.img.Name, float64(r.img.Compressed)/1e6,
			cell(r.full), cell(r.lazy), faster(r.full, r.lazy), cell(r.warm), faster(r.full, r.warm))
	}
	say("")
	if b.limit > 0 {
		say("Full pulls were stopped after %v, and their ends computed from the rate until then: \"≈\".", b.limit)
	}
	var twice int64
	for _, r := range rows {
		twice += r.lazy.Twice + r.warm.Twice
	}
	say("Bytes fetched twice, in all lazy starts together: %d.", twice)
	say("× is how many times faster than the full pull Airstream is.")
	say("A trace is what a start in another run, over a fast link, has read; `airstream convert --trace`")
	say("puts it into the image.")
	return t.String()
}

func cell(l site.Launch) string {
	about := ""
	if l.Computed {
		about = "≈ "
	}
	return fmt.Sprintf("%s%.1f s, %.1f MB", about, l.Ready.Seconds(), float64(l.Down)/1e6)
}

func faster(slow, quick site.Launch) float64 { return slow.Ready.Seconds() / quick.Ready.Seconds() }

// conditions says on what and when.
func (b *bench) conditions() string {
	runs := "One run"
	if b.runs > 1 {
		runs = fmt.Sprintf("Median of %d runs", b.runs)
	}
	return fmt.Sprintf("%s, %s, %s.", runs, time.Now().UTC().Format("2006-01-02"), report.Machine())
}
