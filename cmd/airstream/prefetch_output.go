package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/airstream-io/airstream/internal/units"
)

// printPrefetch writes what came of a prefetch, or what a dry run found; rate is
// in bytes per second, 0 for the link's.
func printPrefetch(w io.Writer, e *prefetchEvent, rate float64, dry bool) error {
	r := e.result(rate)
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	// The writer keeps its error for Flush.
	line := func(name string, wire, left int64, state string) {
		size, takes := units.Short(left), "-"
		if left > 0 && r.Rate == 0 {
			takes = "?"
		} else if left > 0 {
			takes = units.Span(units.Transfer(left, r.Rate))
		}
		if !dry {
			size = units.Short(wire-left) + "\t" + size
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", name, size, takes, state)
	}
	head := "TO FETCH"
	if !dry {
		head = "FETCHED\tLEFT"
	}
	at := "TIME"
	if r.Rate > 0 {
		at = "AT " + units.ShortRate(r.Rate)
	}
	_, _ = fmt.Fprintf(t, "IMAGE\t%s\t%s\tSTATE\n", head, at)
	for i := range r.Images {
		img := &r.Images[i]
		state := img.State
		if img.State == stateReady && img.Left == 0 {
			state = stateComplete
		}
		if img.Hot && state != stateFailed {
			state += " (hot set)"
		}
		if img.Cached {
			state += ", tag not asked for"
		}
		line(img.Ref, img.Wire, img.Left, state)
	}
	if len(r.Images) > 1 {
		line("all of them", r.Wire, r.Left, "")
	}
	return t.Flush()
}
