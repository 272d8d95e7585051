package main

import (
	"fmt"
	"html"
	"math"
	"strings"
	"time"
)

// The picture has a row of panels for each link, and in it one for each kind of
// start and each loss. In a panel the workloads are below each other, and of each
// the contenders as bars along a logarithmic axis: from a tenth of a second to
// hours there is no other. All panels of a link have the same axis.
const (
	chartLeft    = 76  // for names of workloads, pixels
	panelWidth   = 250 // of the axis
	panelGap     = 48  // room for the figures at the ends of bars
	barHeight    = 8
	barGap       = 1
	workloadGap  = 9
	panelHead    = 44
	panelFoot    = 24
	chartTop     = 60
	chartPadding = 14
)

// panel is a place where bars are drawn.
type panel struct {
	x, y      float64
	low, high float64 // seconds, powers of ten
}

// at returns where a time is on the axis.
func (p panel) at(seconds float64) float64 {
	share := (math.Log10(max(seconds, p.low)) - math.Log10(p.low)) / (math.Log10(p.high) - math.Log10(p.low))
	return p.x + share*panelWidth
}

// svg collects the elements of a picture.
type svg struct{ strings.Builder }

// add appends an element, or a part of one.
func (s *svg) add(format string, args ...any) {
	fmt.Fprintf(s, format+"\n", args...) //nolint:errcheck // into memory
}

func (s *svg) text(x, y float64, class, text string) {
	s.add(`<text x="%.1f" y="%.1f" class="%s">%s</text>`, x, y, class, html.EscapeString(text))
}

func (s *svg) line(x1, y1, x2, y2 float64, color string, width float64) {
	s.add(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="%.1f"/>`, x1, y1, x2, y2, color, width)
}

func (s *svg) bar(x, y, width, height float64, color, title string, hatched bool) {
	extra := ""
	if hatched {
		extra = ` fill-opacity="0.45"`
	}
	s.add(`<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"%s><title>%s</title></rect>`, x, y, max(width, 1), height, color, extra, html.EscapeString(title))
}

// draw returns the picture as SVG.
func draw(g grid) string {
	type column struct {
		kind string
		loss float64
	}
	var columns []column
	for _, k := range []string{first, update} {
		for _, l := range g.losses() {
			columns = append(columns, column{k, l})
		}
	}
	body := &svg{}
	y := float64(chartTop)
	for _, p := range links() {
		names := g.workloadsOf(p.Name)
		if len(names) == 0 {
			continue
		}
		low, high := g.range10(p.Name)
		height := float64(len(names)) * workloadHeight()
		body.text(chartPadding, y+15, "link", p.Name)
		for i, col := range columns {
			at := panel{x: chartLeft + float64(i)*(panelWidth+panelGap), y: y + panelHead, low: low, high: high}
			body.text(at.x, y+34, "head", fmt.Sprintf("%s, %g%% loss", map[string]string{first: "first start", update: "update"}[col.kind], 100*col.loss))
			axis(body, at, height)
			for n, name := range names {
				top := at.y + float64(n)*workloadHeight() + workloadGap/2
				if i == 0 {
					body.text(chartLeft-6, top+workloadHeight()/2, "name", name)
				}
				bars(body, g, at, top, cell{Link: p.Name, Loss: col.loss, Workload: name, Kind: col.kind})
			}
		}
		y += panelHead + height + panelFoot
	}
	width := chartLeft + float64(len(columns))*(panelWidth+panelGap) + chartPadding
	return frame(width, y+chartPadding, body.String())
}

func workloadHeight() float64 {
	drawn := 0
	for _, c := range contenders {
		if !c.bound {
			drawn++
		}
	}
	return float64(drawn*(barHeight+barGap) + workloadGap)
}

// frame puts background, styles and legend around what was drawn.
func frame(width, height float64, body string) string {
	s := &svg{}
	width = max(width, 880) // the legend's
	s.add(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f">`, width, height, width, height)
	s.WriteString(`<style>text{font-family:"DejaVu Sans",Arial,sans-serif;font-size:11px;fill:#222}` +
		`.title{font-size:15px;font-weight:bold}.link{font-size:13px;font-weight:bold}.head{fill:#444}.name{text-anchor:end;dominant-baseline:middle}` +
		`.tick{fill:#666;text-anchor:middle;font-size:10px}.value{fill:#444;font-size:8px}.fail{fill:#a02020;text-anchor:start}</style>` + "\n")
	s.add(`<rect width="%.0f" height="%.0f" fill="#ffffff"/>`, width, height)
	s.text(chartPadding, 22, "title", "From pull to ready (shorter is better, logarithmic scale)")
	x := float64(chartPadding)
	for _, c := range contenders {
		if c.bound {
			s.line(x+5, 34, x+5, 47, c.color, 2)
		} else {
			s.bar(x, 36, 10, 10, c.color, c.title, false)
		}
		s.text(x+15, 45, "", c.title)
		x += 30 + 6.4*float64(len(c.title))
	}
	s.bar(x, 36, 10, 10, contenders[0].color, "stopped", true)
	s.text(x+15, 45, "", "pale: stopped, and computed")
	s.WriteString(body)
	s.WriteString("</svg>\n")
	return s.String()
}

// axis draws the scale of a panel.
func axis(s *svg, p panel, height float64) {
	for t := p.low; t <= p.high*1.001; t *= 10 {
		x := p.at(t)
		s.line(x, p.y, x, p.y+height, "#d0d0d0", 1)
		s.text(x, p.y+height+13, "tick", tick(t))
		for _, k := range []float64{2, 5} {
			if t*k < p.high {
				s.line(p.at(t*k), p.y, p.at(t*k), p.y+height, "#eeeeee", 1)
			}
		}
	}
}

func tick(seconds float64) string {
	return fmt.Sprintf("%g s", math.Round(seconds*1000)/1000)
}

// bars draws one workload: medians as bars, spreads as whiskers, the lower bound
// as a line across all of them.
func bars(s *svg, g grid, p panel, top float64, of cell) {
	y := top
	for _, c := range contenders {
		of.Contender = c.name
		sp := g[of]
		switch {
		case c.bound:
			if sp.runs > 0 {
				x := p.at(sp.ready.Seconds())
				s.line(x, top-2, x, top+workloadHeight()-workloadGap+1, c.color, 1.5)
			}
			continue
		case sp.runs > 0:
			end := p.at(sp.ready.Seconds())
			s.bar(p.x, y, end-p.x, barHeight, c.color, fmt.Sprintf("%s, %s: %s", of.Workload, c.title, sp.ready.Round(100*time.Millisecond)), sp.computed)
			if sp.runs > 1 {
				mid := y + barHeight/2.0
				s.line(p.at(sp.low.Seconds()), mid, p.at(sp.high.Seconds()), mid, "#000000", 1)
			}
			s.text(max(end, p.at(sp.high.Seconds()))+3, y+barHeight-1, "value", number(sp.ready.Seconds()))
		case sp.failed > 0:
			s.text(p.x+3, y+barHeight, "tick fail", "failed")
		}
		y += barHeight + barGap
	}
}

// workloadsOf returns those of which something was measured over a link.
func (g grid) workloadsOf(link string) (names []string) {
	for _, w := range workloadNames() {
		for _, l := range g.losses() {
			if g.has(link, l, w) {
				names = append(names, w)
				break
			}
		}
	}
	return names
}

// range10 returns the powers of ten between which all times over a link are.
func (g grid) range10(link string) (low, high float64) {
	least, most := math.Inf(1), math.Inf(-1)
	for c, s := range g {
		if c.Link == link && s.runs > 0 {
			least, most = min(least, s.low.Seconds()), max(most, s.high.Seconds())
		}
	}
	if math.IsInf(least, 1) {
		return 1, 10
	}
	low, high = math.Pow(10, math.Floor(math.Log10(least))), math.Pow(10, math.Ceil(math.Log10(most)))
	if low == high {
		high *= 10
	}
	return low, high
}
