package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/airstream-io/airstream/test/rig/images"
	"github.com/airstream-io/airstream/test/rig/link"
)

// Kinds of start: of the newer version of a workload on a node that has nothing,
// and on one that has started the older.
const (
	first  = "first"
	update = "update"
)

// allRuns is how often each start is measured for the whole table.
const allRuns = 5

// cell names one start.
type cell struct {
	Link      string  `json:"link"`
	Loss      float64 `json:"loss"` // 0 to 1, each way
	Workload  string  `json:"workload"`
	Kind      string  `json:"kind"`
	Contender string  `json:"contender"`
	Run       int     `json:"run"` // from 1; losses differ from run to run, and are the same for all contenders
}

func (c cell) String() string {
	return fmt.Sprintf("%s %g%% %s %s %s, run %d", c.Link, 100*c.Loss, c.Workload, c.Kind, c.Contender, c.Run)
}

// choice is what of it all is meant.
type choice struct {
	Links, Workloads, Kinds, Contenders []string
	Losses                              []float64
	Runs                                int
}

// whole is the table that the command is for.
func whole() choice {
	return choice{linkNames(), workloadNames(), []string{first, update}, contenderNames(), []float64{0, 0.01}, allRuns}
}

// cells returns what was chosen, in the order in which it is measured: all of it
// once before anything twice, so that an interruption leaves a whole; what is
// quick first.
func (c choice) cells() (list []cell) {
	for run := range c.Runs {
		for _, l := range c.Links {
			for _, loss := range c.Losses {
				for _, w := range c.Workloads {
					for _, k := range c.Kinds {
						for _, who := range c.Contenders {
							list = append(list, cell{l, loss, w, k, who, run + 1})
						}
					}
				}
			}
		}
	}
	return list
}

func percents(list string) (out []float64, err error) {
	for s := range strings.SplitSeq(list, ",") {
		f, err := strconv.ParseFloat(s, 64)
		if err != nil || f < 0 || f >= 100 {
			return nil, fmt.Errorf("loss %q: want percents, as in 0,1", s)
		}
		out = append(out, f/100)
	}
	return out, nil
}

// links are those that are measured, the quickest first.
func links() []link.Profile {
	var list []link.Profile
	for _, name := range []string{"leo", "geo-vsat", "l-band"} {
		if p, ok := link.ProfileNamed(name); ok {
			list = append(list, p)
		}
	}
	return append(list, link.Profile{Name: "256k", RTT: 600 * time.Millisecond, Down: 256 * link.Kbit, Up: 256 * link.Kbit, MTU: link.DefaultMTU, Loss: link.Loss{Mean: 0.01, Burst: 3}})
}

func linkNames() (names []string) {
	for _, p := range links() {
		names = append(names, p.Name)
	}
	return names
}

// profile returns the link of a cell: with its loss instead of the link's own, in
// bursts as the link has them, and without outages, which a start meets or not.
func (c cell) profile() (link.Profile, error) {
	i := slices.Index(linkNames(), c.Link)
	if i < 0 {
		return link.Profile{}, errors.New("no such link")
	}
	own := links()[i]
	p := own.Lossless()
	p.Name = own.Name
	if c.Loss > 0 {
		p.Loss = link.Loss{Mean: c.Loss, Burst: own.Loss.Burst}
	}
	return p, nil
}

func workloadNames() (names []string) {
	for _, w := range images.Workloads() {
		names = append(names, w.Name)
	}
	return names
}

// versions returns the names of a workload's images, the older first.
func (c cell) versions() (older, newer string) {
	for _, w := range images.Workloads() {
		if w.Name == c.Workload {
			return w.Versions[0], w.Versions[1]
		}
	}
	return "", ""
}
