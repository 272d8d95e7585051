package main

import (
	"slices"
	"time"
)

// spread is what the runs of one start say together.
type spread struct {
	runs     int // that got ready
	failed   int
	why      string // one of those that failed did
	computed bool   // some were stopped before their end
	ready    time.Duration
	low      time.Duration // of ready
	high     time.Duration
	down, up int64 // bytes
	hot      int64 // of the lower bound
}

// summarise returns the medians of some runs, each figure for itself, and
// between what the times lie.
func summarise(list []result) (s spread) {
	var ready []time.Duration
	var down, up []int64
	for _, r := range list {
		s.hot = max(s.hot, r.Hot)
		if r.Failed != "" {
			s.failed++
			s.why = r.Failed
			continue
		}
		s.runs++
		s.computed = s.computed || r.Computed
		ready, down, up = append(ready, r.Ready), append(down, r.Down), append(up, r.Up)
	}
	if s.runs == 0 {
		return s
	}
	s.ready, s.down, s.up = median(ready), median(down), median(up)
	s.low, s.high = slices.Min(ready), slices.Max(ready)
	return s
}

// median sorts the list; of two in the middle it returns the mean.
func median[T ~int64](list []T) T {
	slices.Sort(list)
	n := len(list)
	return (list[(n-1)/2] + list[n/2]) / 2
}

// grid is all that was measured, by start; Run is 0.
type grid map[cell]spread

func newGrid(all []result) grid {
	by := map[cell][]result{}
	for _, r := range all {
		c := r.cell
		c.Run = 0
		by[c] = append(by[c], r)
	}
	g := grid{}
	for c, list := range by {
		g[c] = summarise(list)
	}
	return g
}

// has tells whether anything was measured of a link, a loss and perhaps a
// workload.
func (g grid) has(link string, loss float64, workload string) bool {
	for c := range g {
		if c.Link == link && c.Loss == loss && (workload == "" || c.Workload == workload) {
			return true
		}
	}
	return false
}

// losses returns those that were measured, the least first.
func (g grid) losses() (list []float64) {
	for c := range g {
		if !slices.Contains(list, c.Loss) {
			list = append(list, c.Loss)
		}
	}
	slices.Sort(list)
	return list
}
