package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/units"
)

// printStatus writes a node's status for people, in so many columns.
func printStatus(w io.Writer, s *nodeStatus, width int) error {
	b := &strings.Builder{}
	for _, part := range []struct {
		title string
		lines []string
	}{{"LINK", s.Link.lines(s.Now)}, {"PROXY", s.Proxy.lines(s.Now)}, {"QUEUE", s.Queue.lines(s.Now)}, {"CACHE", []string{s.Cache.line()}}, {"NODE", s.lines()}} {
		section(b, part.title, part.lines, width)
	}
	b.WriteByte('\n')
	imageTable(b, s.Images, width)
	_, err := io.WriteString(w, b.String())
	return err
}

// margin is where the text of a section begins.
const margin = 7

// section writes lines behind a title. Those that are too long go on below, at
// a comma if there is one, else at a space.
func section(b *strings.Builder, title string, lines []string, width int) {
	for _, line := range lines {
		for line != "" {
			part := line
			if rest := width - margin; utf8.RuneCountInString(line) > rest {
				part = string([]rune(line)[:rest])
				if i := strings.LastIndex(part, ", "); i > rest/2 {
					part = part[:i+1]
				} else if i := strings.LastIndex(part, " "); i > 0 {
					part = part[:i]
				}
			}
			line = strings.TrimPrefix(line[len(part):], " ")
			fmt.Fprintf(b, "%-*s%s\n", margin, title, part)
			title = ""
		}
	}
}

// facts joins those that there are.
func facts(list ...string) string {
	return strings.Join(slices.DeleteFunc(list, func(s string) bool { return s == "" }), ", ")
}

// lines are none if there is no proxy.
func (p *proxyStatus) lines(now time.Time) []string {
	switch {
	case p == nil:
		return nil
	case p.Up:
		return []string{fmt.Sprintf("%s for %s, as %s", p.Address, units.Span(now.Sub(p.Since)), p.Node)}
	}
	lines := []string{facts(fmt.Sprintf("%s out of reach for %s", p.Address, units.Span(now.Sub(p.Since))), p.Error)}
	if p.Instead {
		lines = append(lines, "registries are asked in its place")
	}
	return lines
}

func (l *linkStatus) lines(now time.Time) []string {
	first := fmt.Sprintf("%s for %s", l.Phase, units.Span(now.Sub(l.Since)))
	if l.Phase != string(uplink.Dark) {
		rate, rtt, loss, cap := "its rate is not known yet", "", "", ""
		if l.Rate > 0 {
			rate = units.ShortRate(l.Rate)
		}
		if l.RTT > 0 {
			rtt = fmt.Sprintf("round trip %.0f ms", 1000*l.RTT)
		}
		if l.Loss >= 0.001 {
			loss = fmt.Sprintf("%.1f%% loss", 100*l.Loss)
		}
		if l.Limit > 0 {
			cap = "limited to " + units.ShortRate(l.Limit)
		}
		first = facts(first, rate, rtt, loss, cap)
	} else {
		first += "; what is here goes on, the rest waits"
	}
	lines := []string{first}
	var today int64
	for _, n := range l.Today {
		today += n
	}
	switch {
	case l.Daily > 0:
		lines = append(lines, fmt.Sprintf("%s of %s used today, %s left", units.Short(l.Daily-max(0, l.BudgetLeft)), units.Short(l.Daily), units.Short(max(0, l.BudgetLeft))))
	case today > 0:
		lines = append(lines, units.Short(today)+" today"+l.classes())
	}
	if l.NextWindow != nil {
		lines = append(lines, fmt.Sprintf("window closed, opens in %s, at %s", units.Span(l.NextWindow.Sub(now)), l.NextWindow.Local().Format("Mon 15:04")))
	}
	return lines
}

// classes says what the day's bytes were for, in the classes' order.
func (l *linkStatus) classes() string {
	var said []string
	for c := range uplink.Class(uplink.NumClasses) {
		if n := l.Today[c.String()]; n > 0 {
			said = append(said, fmt.Sprintf("%s %s", c, units.Short(n)))
		}
	}
	if len(said) < 2 {
		return ""
	}
	return ": " + strings.Join(said, ", ")
}

func (q *queueStatus) lines(now time.Time) []string {
	waiting := "nobody waits"
	switch {
	case q.Waiting == 1:
		waiting = fmt.Sprintf("1 read waits, for %s", units.Span(seconds(q.Oldest)))
	case q.Waiting > 1:
		waiting = fmt.Sprintf("%d reads wait, the first for %s", q.Waiting, units.Span(seconds(q.Oldest)))
	}
	var active, queued []string
	for c := range uplink.Class(uplink.NumClasses) {
		if n := q.Active[c.String()]; n > 0 {
			active = append(active, fmt.Sprintf("%d %s", n, c))
		}
		if n := q.Queued[c.String()]; n > 0 {
			queued = append(queued, fmt.Sprintf("%s %s", units.Short(n), c))
		}
	}
	lines := []string{facts(waiting, label("requests: ", active)), label("to come: ", queued)}
	for _, why := range slices.Compact(slices.Sorted(maps.Values(q.Held))) {
		var held []string
		for c := range uplink.Class(uplink.NumClasses) {
			if q.Held[c.String()] == why {
				held = append(held, c.String())
			}
		}
		lines = append(lines, strings.Join(held, ", ")+" held: "+why)
	}
	for _, p := range q.Paused {
		when := "is being tried"
		if wait := p.Until.Sub(now); wait > 0 {
			when = "is tried again in " + units.Span(wait)
		}
		lines = append(lines, fmt.Sprintf("%s %s", p.Host, when), "  "+shorten(p.Error, statusWidth-margin-2))
	}
	if q.Full {
		lines = append(lines, "the disk is full: what arrives can't be kept")
	}
	return lines
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func label(text string, list []string) string {
	if len(list) == 0 {
		return ""
	}
	return text + strings.Join(list, ", ")
}

func (c *cacheStatus) line() string {
	limit := ""
	if c.Limit > 0 {
		limit = " of " + units.Short(c.Limit)
	}
	return fmt.Sprintf("%s%s used, %s of disk free", units.Short(c.Bytes), limit, units.Short(c.Free))
}

func (s *nodeStatus) lines() []string {
	keeper := "containers on lazy layers don't survive a restart: see airstream doctor"
	if s.Keeper != "" {
		keeper = "containers survive a restart (" + s.Keeper + ")"
	}
	lines := []string{facts("up for "+units.Span(s.Now.Sub(s.Started)), units.Short(s.Memory)+" of memory", shortVersion(s.Version)), keeper}
	for _, p := range s.Health.Problems {
		lines = append(lines, "PROBLEM: "+p)
	}
	return lines
}

// shortVersion is a version with no more of a revision than people read.
func shortVersion(v string) string {
	release, revision, ok := strings.Cut(v, " ")
	if !ok {
		return release
	}
	return release + " " + revision[:min(12, len(revision))]
}

// imageTable writes a line for each image. Names that are too long lose their
// beginning: hosts are alike, tags are not.
func imageTable(b *strings.Builder, images []imageStatus, width int) {
	if len(images) == 0 {
		b.WriteString("No image was pulled through this node yet.\n")
		return
	}
	const columns = "  %8s  %4s  %4s  %-3s  %s\n"
	const rest = 2 + 8 + 2 + 4 + 2 + 4 + 2 + 3 + 2
	reason := len("RUNS DARK")
	name := len("IMAGE")
	for i := range images {
		reason = max(reason, len(images[i].dark()))
		for _, n := range images[i].titles() {
			name = max(name, utf8.RuneCountInString(n))
		}
	}
	name = max(20, min(name, width-rest-reason))
	fmt.Fprintf(b, "%-*s"+columns, name, "IMAGE", "SIZE", "HOT", "HERE", "PIN", "RUNS DARK")
	for i := range images {
		s := &images[i]
		titles := s.titles()
		pin := ""
		if s.Pinned {
			pin = "yes"
		}
		fmt.Fprintf(b, "%-*s"+columns, name, shorten(titles[0], name), units.Short(s.Size), s.hotHere(), s.hereShort(), pin, s.dark())
		for _, t := range titles[1:] {
			fmt.Fprintf(b, "%s\n", shorten(t, name))
		}
	}
}

// titles are the names of the image that still mean it; if there are none, one
// that did, or its digest.
func (s *imageStatus) titles() []string {
	var now []string
	for _, n := range s.Names {
		if !slices.Contains(s.Former, n) {
			now = append(now, n)
		}
	}
	switch {
	case len(now) > 0:
		return now
	case s.Coming != "":
		return []string{s.Coming + " (coming)"}
	case len(s.Names) > 0:
		return []string{s.Names[0] + " (before)"}
	}
	return []string{s.Manifest[:min(len(s.Manifest), len("sha256:")+12)]}
}

// shorten takes away the beginning of what is too long.
func shorten(s string, width int) string {
	r := []rune(s)
	if len(r) <= width {
		return s
	}
	return "…" + string(r[len(r)-width+1:])
}

// hereShort is how much of the image's files is here.
func (s *imageStatus) hereShort() string {
	switch {
	case s.Complete:
		return "100%"
	case s.Total == 0:
		return "0%"
	}
	return percent(min(s.Total-s.Missing, s.Total-1), s.Total)
}

// dark says whether it runs without a link, in few words.
func (s *imageStatus) dark() string {
	if s.Why != "" {
		return s.Dark + ": " + s.Why
	}
	return s.Dark
}
