package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/airstream-io/airstream/test/report"
)

// picture is the file of the picture, beside the table.
const picture = "benchmarks-start.svg"

// write writes table and picture.
func write(docs string, all []result) error {
	if len(all) == 0 {
		return errors.New("nothing has been measured yet")
	}
	g := newGrid(all)
	if err := os.MkdirAll(docs, 0o755); err != nil { //nolint:gosec // documents
		return err
	}
	if err := os.WriteFile(filepath.Join(docs, picture), []byte(draw(g)), 0o644); err != nil { //nolint:gosec // a document
		return err
	}
	return report.Section(filepath.Join(docs, "benchmarks.md"), "start", text(all, g))
}

// text is the section of the document.
func text(all []result, g grid) string {
	var t strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&t, format+"\n", args...) }
	say("## From pull to ready, side by side")
	say("")
	preface(say, all, g)
	for _, p := range links() {
		for _, loss := range g.losses() {
			if !g.has(p.Name, loss, "") {
				continue
			}
			c := cell{Link: p.Name, Loss: loss}
			profile, err := c.profile()
			if err != nil {
				continue // a link that this version knows nothing of
			}
			say("")
			say("### %s, %g%% loss", p.Name, 100*loss)
			say("")
			say("`%s`", profile)
			say("")
			rows(say, g, c)
		}
	}
	notes(say, g)
	return t.String()
}

// preface says what was measured, and how.
func preface(say func(string, ...any), all []result, g grid) {
	planned, measured := map[cell]bool{}, 0
	for _, c := range whole().cells() {
		planned[c] = true
	}
	var days, products, machines []string
	seen := map[int]bool{}
	for _, r := range all {
		if planned[r.cell] {
			measured++
		}
		days = append(days, r.When.Format(time.DateOnly))
		products, machines = append(products, r.Product), append(machines, r.Machine)
	}
	for _, s := range g {
		seen[s.runs+s.failed] = true
	}
	var runs []int
	for n := range seen {
		runs = append(runs, n)
	}
	slices.Sort(runs)
	if measured < len(planned) {
		say("**A part of it: %d of %d starts are measured so far**; `make bench-start` goes on with the others.", measured, len(planned))
	}
	say("%s %s; %s; Airstream %s.", span(runs), joined([]string{slices.Min(days), slices.Max(days)}), joined(machines), joined(products))
	say("")
	say("Times are from the beginning of the pull to the container's ready line; bytes are IP packets that arrived on the")
	say("node (↓) and on shore (↑) until then. *first* is the start of a workload's newer version on a node that has")
	say("nothing; *update* the same on a node on which the older version was started before, over a fast link. The newer")
	say("version has a few changed files of its own and Debian's security updates, or newer packages, or is another release.")
	say("Links have the loss of the heading, each way, in bursts as the link has them, and no outages. The registry speaks")
	say("HTTP, and its sender uses cubic. Nothing is fetched in the background. A burst is counted in packets, not in time:")
	say("a connection that is alone on the link and repeats one packet, at growing intervals, may take minutes to get out of")
	say("a long one, and one that gives up meanwhile has failed.")
	say("")
	say("- *full pull*: containerd with overlayfs. \"≈\": stopped after some minutes, and the end computed from the bytes")
	say("  left and the rate until then.")
	say("- *stargz-snapshotter*: v0.19.1, with layers of its own `estargz` package in which the files that the start reads")
	say("  come first, and with generous limits of time: an hour for a request (default: 30 s), a prefetch (10 s) and a read")
	say("  (5 min). With the defaults it gives up on most of these links.")
	say("- *Airstream*: an image that was converted with a plan of what the start reads. *With proxy*: the same image,")
	say("  read by a proxy on shore that has seen nothing of it, over a session that is up before the pull.")
	say("- *one GET*: one request for as many bytes as the start reads of the layers, compressed, that the node lacks, over")
	say("  one TCP connection. *round trip + bytes ÷ rate*: what the link allows for them. Neither starts anything.")
	say("")
	say("What a start reads was recorded in a run of its own, by `airstream convert --record`, and is the same for all of them.")
	say("In bold: how many times faster than the full pull.")
	say("")
	say("![Times from pull to ready, on a logarithmic scale](%s)", picture)
}

// span says of how many runs the figures are.
func span(runs []int) string {
	low, high := runs[0], runs[len(runs)-1]
	if high == 1 {
		return "Each figure is of one run."
	}
	of := fmt.Sprintf("%d runs", high)
	if low != high {
		of = fmt.Sprintf("%d to %d runs", low, high)
	}
	return "Each figure is the median of " + of + "; in parentheses are the quickest and the slowest."
}

func joined(list []string) string {
	slices.Sort(list)
	return strings.Join(slices.Compact(list), ", ")
}

// rows writes the table of one link with one loss.
func rows(say func(string, ...any), g grid, of cell) {
	head, line := "| | |", "|---|---|"
	for _, c := range contenders {
		head, line = head+" "+c.title+" |", line+"--:|"
	}
	say("%s round trip + bytes ÷ rate |", head)
	say("%s--:|", line)
	for _, w := range workloadNames() {
		for _, k := range []string{first, update} {
			of.Workload, of.Kind = w, k
			row, any := fmt.Sprintf("| %s | %s |", w, k), false
			of.Contender = contenders[0].name
			full := g[of]
			for _, c := range contenders {
				of.Contender = c.name
				s, ok := g[of]
				any = any || ok
				row += " " + s.text(full, c) + " |"
			}
			of.Contender = oneGet
			least := ""
			if s := g[of]; s.hot > 0 {
				if p, err := of.profile(); err == nil {
					least = fmt.Sprintf("%s<br>%s", seconds(ideal(p, s.hot)), megabytes(s.hot))
				}
			}
			if any {
				say("%s %s |", row, least)
			}
		}
	}
}

// text is a field of the table; empty if nothing was measured.
func (s spread) text(full spread, c contender) string {
	switch {
	case s.runs == 0 && s.failed == 0:
		return ""
	case s.runs == 0:
		return "failed"
	}
	about := ""
	if s.computed {
		about = "≈ "
	}
	out := about + seconds(s.ready)
	if s.runs > 1 {
		out += fmt.Sprintf(" (%s–%s)", number(s.low.Seconds()), number(s.high.Seconds()))
	}
	if s.failed > 0 {
		out += fmt.Sprintf(", %d of %d failed", s.failed, s.runs+s.failed)
	}
	out += fmt.Sprintf("<br>↓ %s ↑ %s", megabytes(s.down), megabytes(s.up))
	if c.name != contenders[0].name && !c.bound && full.runs > 0 {
		out += fmt.Sprintf("<br>**%.1f ×**", full.ready.Seconds()/s.ready.Seconds())
	}
	return out
}

// notes say why what failed did.
func notes(say func(string, ...any), g grid) {
	why := map[string]string{}
	for c, s := range g {
		if s.failed > 0 {
			why[c.String()] = s.why
		}
	}
	var list []string
	for at, reason := range why {
		at, _, _ = strings.Cut(at, ",")
		list = append(list, fmt.Sprintf("- %s: %s", at, reason))
	}
	if slices.Sort(list); len(list) > 0 {
		say("")
		say("Of those that failed:")
		say("")
		for _, l := range list {
			say("%s", l)
		}
	}
}

func seconds(d time.Duration) string { return number(d.Seconds()) + " s" }

// number has three digits that say something, at most one of them behind the
// point.
func number(f float64) string {
	if f >= 100 {
		return fmt.Sprintf("%.0f", f)
	}
	return fmt.Sprintf("%.1f", f)
}

func megabytes(n int64) string {
	if n < 10_000_000 {
		return fmt.Sprintf("%.2f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f MB", float64(n)/1e6)
}
