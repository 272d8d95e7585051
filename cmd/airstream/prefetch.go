package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/airstream-io/airstream/internal/units"
)

// prefetchFlags are the flags of one invocation.
type prefetchFlags struct {
	order      prefetchOrder
	file       string
	rate       string
	noProgress bool
}

func newPrefetchCommand(std streams) *cobra.Command {
	var f prefetchFlags
	cmd := &cobra.Command{
		Use:   "prefetch {REF… | -f FILE}",
		Short: "Make images complete on this node, before it goes dark",
		Long: `Make images complete on this node, and wait until they are. The node need not have
met them. What is here does not cross again; what has arrived stays if it is
interrupted, and the same command goes on from there. A tag means what it meant
before until all of its new image is here.

What somebody waits for goes first, and the node's limits hold: airstream limit.
Without --wait, the command ends when the link is dark for a minute or may not be
used now.

Exit codes: 0 complete; 1 failed; 2 wrong usage; 3 interrupted, run it again; 4 the
link or the registry can't be reached; 5 what arrives is not what the image says;
7 no space, or the budget is used up.`,
		Example: `  airstream prefetch registry.example/app:1.0
  airstream prefetch --dry-run --rate 256kbit -f images.txt
  airstream prefetch --wait --pin -f images.txt`,
	}
	v := newVerb(std, cmd, tableJSONYAML...)
	fs := cmd.Flags()
	fs.StringVarP(&f.file, "file", "f", "", "read references from `FILE`, one a line, # begins a comment; - is standard input")
	fs.BoolVar(&f.order.Hot, "hot", false, "only what a recorded start reads")
	fs.BoolVar(&f.order.DryRun, "dry-run", false, "say how many bytes would cross and how long that takes; manifests and tables of contents do cross")
	fs.StringVar(&f.rate, "rate", "", "reckon with `RATE`, like 256kbit, for --dry-run (default: what the link brings)")
	fs.BoolVar(&f.order.Wait, "wait", false, "wait for the link, for a window and for tomorrow's budget")
	fs.BoolVar(&f.order.Pin, "pin", false, "pin the images when they are complete")
	fs.StringVar(&f.order.Platform, "platform", "", "`OS/ARCH[/VARIANT]` to choose of images for several (default: this machine's)")
	fs.BoolVar(&f.noProgress, "no-progress", false, "don't show progress")
	cmd.ValidArgsFunction = v.completeRefs
	cmd.RunE = func(cmd *cobra.Command, refs []string) error { return runPrefetch(cmd.Context(), v, f, refs) }
	return cmd
}

func runPrefetch(ctx context.Context, v *verb, f prefetchFlags, refs []string) error {
	var rate units.BitRate
	if f.rate != "" {
		var err error
		if rate, err = units.ParseBitRate(f.rate); err != nil || rate == 0 || !f.order.DryRun {
			return exitWith(exitUsage, errors.Join(errors.New("--rate is for --dry-run, and above 0; airstream limit changes the link's"), err))
		}
	}
	if n := strings.Count(f.order.Platform, "/"); f.order.Platform != "" && (n < 1 || n > 2) {
		return exitWith(exitUsage, fmt.Errorf("--platform %s: want OS/ARCH or OS/ARCH/VARIANT, like linux/arm64", f.order.Platform))
	}
	if f.file != "" {
		listed, err := readRefs(f.file, v.std.in)
		if err != nil {
			return exitWith(exitUsage, err)
		}
		refs = append(refs, listed...)
	}
	if len(refs) == 0 {
		return exitWith(exitUsage, errors.New("name images, or a file of them with -f"))
	}
	for _, ref := range refs {
		if _, _, err := parseRef(ref); err != nil {
			return err
		}
	}
	f.order.Refs = refs
	last, err := followPrefetch(ctx, v, f)
	if last != nil {
		perr := v.print(last.result(float64(rate.BytesPerSecond())), func(w io.Writer) error { return printPrefetch(w, last, float64(rate.BytesPerSecond()), f.order.DryRun) })
		err = errors.Join(err, perr)
	}
	return runtimeError(err)
}

// readRefs reads a list of references.
func readRefs(file string, in io.Reader) (refs []string, err error) {
	return readLines(file, in, func(ref string) error {
		_, _, err := parseRef(ref)
		return err
	})
}

// followPrefetch asks the node and shows how far it comes. The event is the last
// one, nil if there was none.
func followPrefetch(ctx context.Context, v *verb, f prefetchFlags) (last *prefetchEvent, err error) {
	client, err := v.client()
	if err != nil {
		return nil, err
	}
	bar := newByteProgress(v.std.err, "prefetch", f.noProgress)
	defer bar.finish()
	err = client.do(ctx, http.MethodPost, "/v1/prefetch", f.order, func(r io.Reader) error {
		var pace pace
		dec := json.NewDecoder(r)
		for {
			e := &prefetchEvent{}
			if err := dec.Decode(e); err != nil {
				return exitWith(exitIncomplete, fmt.Errorf("the node stopped; run the same command again to go on: %w", err))
			}
			last = e
			if e.Done {
				return eventError(e.Error, e.Code)
			}
			bar.hold(e.doing())
			bar.update(e.Wire-e.Left, e.Wire, pace.rate(time.Now(), e.Wire-e.Left, e.Link.Rate))
		}
	})
	if ctx.Err() != nil {
		err = exitWith(exitIncomplete, errors.New("interrupted; what has arrived stays, and the same command goes on from there"))
	}
	return last, err
}

// doing says what happens while nothing of the images crosses; empty: they do.
func (e *prefetchEvent) doing() string {
	if e.Held != "" {
		return e.Held
	}
	for i := range e.Images {
		if e.Images[i].State == stateResolving {
			return "asking for manifests and tables of contents"
		}
	}
	return ""
}

// pace is how fast something comes forth.
type pace struct {
	at    time.Time
	done  int64
	value float64 // bytes/s
}

// paceWeight is how much of a new sample counts: a minute or so is remembered.
const paceWeight = 0.05

// rate returns bytes per second as of late, and guess before anything is known.
func (p *pace) rate(now time.Time, done int64, guess float64) float64 {
	if p.at.IsZero() {
		p.at, p.done, p.value = now, done, guess
		return guess
	}
	took := now.Sub(p.at).Seconds()
	if took < 0.2 {
		return p.value
	}
	sample := max(0, float64(done-p.done)/took)
	if p.value == 0 { // there was no guess
		p.value = sample
	}
	p.value += min(1, paceWeight*took) * (sample - p.value)
	p.at, p.done = now, done
	return p.value
}

// prefetchResult is what airstream prefetch prints.
type prefetchResult struct {
	Images []prefetchImage `json:"images"`
	Wire   int64           `json:"wire"`    // bytes that were to cross, compressed
	Left   int64           `json:"left"`    // of these
	Rate   float64         `json:"rate"`    // bytes/s that Seconds reckons with; 0: nothing is known of the link yet
	Time   float64         `json:"seconds"` // that Left takes
}

// result sums up an event; rate is in bytes per second, 0 for the link's.
func (e *prefetchEvent) result(rate float64) prefetchResult {
	if rate == 0 {
		if rate = e.Link.Rate; rate == 0 {
			rate = e.Link.Peak
		}
		if e.Link.Limit > 0 {
			rate = min(rate, e.Link.Limit)
		}
	}
	r := prefetchResult{Images: e.Images, Wire: e.Wire, Left: e.Left, Rate: rate}
	if rate > 0 {
		r.Time = units.Transfer(r.Left, rate).Seconds()
	}
	return r
}
