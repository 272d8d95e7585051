// Command benchstart measures how long real workloads take from the beginning of
// the pull until they are ready, and what crosses meanwhile, over the emulated
// links that Airstream is made for: first starts and updates, of Airstream and
// of what else there is, side by side.
//
// All of it is some 2,000 starts and takes days, most of them waiting for slow
// links. So each start that was measured is a line of a file, and a start that
// is in the file is not measured again: the command can be interrupted and goes
// on where it was, and flags choose what to measure now. The table and the
// picture in docs/ are written from all that is in the file, and say how much of
// the whole that is.
//
// Each start is that of a fresh node, behind a link that nothing else uses. What
// a start reads was recorded in a run of its own, before.
//
//	go run ./test/cmd/benchstart -links leo,geo-vsat -images go,redis -loss 0 -runs 1
//	go run ./test/cmd/benchstart -report
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/airstream-io/airstream/test/report"
	"github.com/airstream-io/airstream/test/rig/images"
	"github.com/airstream-io/airstream/test/rig/site"
	"github.com/airstream-io/airstream/test/rig/tools"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchstart:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	choice
	dir       string // of results and traces
	docs      string // folder that table and picture go into
	limit     time.Duration
	patience  time.Duration
	note      string
	again     bool
	reportNow bool
}

func parse(args []string, words io.Writer) (o options, err error) {
	dir, err := tools.CacheDir("starts")
	if err != nil {
		return o, err
	}
	flags := flag.NewFlagSet("benchstart", flag.ContinueOnError)
	flags.SetOutput(words)
	list := func(name string, all []string, about string) *string {
		return flags.String(name, strings.Join(all, ","), about)
	}
	links := list("links", linkNames(), "links")
	workloads := list("images", workloadNames(), "workloads")
	contenders := list("contenders", contenderNames(), "contenders and lower bounds")
	kinds := list("kinds", []string{first, update}, "first start, update, or both")
	losses := flags.String("loss", "0,1", "packets lost each way, in percent")
	flags.IntVar(&o.Runs, "runs", allRuns, "runs of each")
	flags.StringVar(&o.dir, "dir", dir, "folder of results and traces")
	flags.StringVar(&o.docs, "docs", "docs", "folder that table and picture are written into")
	flags.DurationVar(&o.limit, "full-limit", 5*time.Minute, "stop full pulls after this and compute their end; 0: never")
	flags.DurationVar(&o.patience, "patience", time.Hour, "a start that takes longer has failed")
	flags.StringVar(&o.note, "note", "", "what else is to be known of the machine, as in: shared with other work")
	flags.BoolVar(&o.again, "again", false, "measure again what is in the results")
	flags.BoolVar(&o.reportNow, "report", false, "only write table and picture from the results")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if o.Losses, err = percents(*losses); err != nil {
		return o, err
	}
	for _, c := range []struct {
		to   *[]string
		what string
		got  string
		all  []string
	}{
		{&o.Links, "link", *links, linkNames()},
		{&o.Workloads, "image", *workloads, workloadNames()},
		{&o.Contenders, "contender", *contenders, contenderNames()},
		{&o.Kinds, "kind", *kinds, []string{first, update}},
	} {
		*c.to = strings.Split(c.got, ",")
		for _, name := range *c.to {
			if !slices.Contains(c.all, name) {
				return o, fmt.Errorf("no %s %q; there are %s", c.what, name, strings.Join(c.all, ", "))
			}
		}
	}
	return o, nil
}

func run(ctx context.Context, args []string, words io.Writer) error {
	o, err := parse(args, words)
	if err != nil {
		return err
	}
	results, err := openResults(filepath.Join(o.dir, "results.jsonl"))
	if err != nil {
		return err
	}
	defer results.close()
	if !o.reportNow {
		err = measureAll(ctx, o, results, words)
	}
	// What was measured until an interruption was measured.
	return errors.Join(err, write(o.docs, results.all()))
}

// measureAll measures what was chosen and isn't there.
func measureAll(ctx context.Context, o options, results *results, words io.Writer) error {
	var todo []cell
	for _, c := range o.cells() {
		if _, ok := results.find(c); !ok || o.again {
			todo = append(todo, c)
		}
	}
	fmt.Fprintf(words, "%d starts were chosen, %d of them are to be measured; results are in %s\n", len(o.cells()), len(todo), o.dir) //nolint:errcheck // progress only
	if len(todo) == 0 {
		return nil
	}
	if err := tools.Install(ctx, words, slices.Concat(site.Needs, images.Needs("node-1"))...); err != nil {
		return err
	}
	b, err := openBench(ctx, o, words)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	product, machine := version(ctx), report.Machine()
	if o.note != "" {
		machine += ", " + o.note
	}
	for i, c := range todo {
		r, err := b.measure(ctx, c)
		if err != nil {
			return fmt.Errorf("%s: %w", c, err)
		}
		r.When, r.Product, r.Machine = time.Now().UTC().Truncate(time.Second), product, machine
		if err := results.add(r); err != nil {
			return err
		}
		fmt.Fprintf(words, "%d/%d %s: %s\n", i+1, len(todo), c, r) //nolint:errcheck // progress only
	}
	return nil
}

// version says what was measured: the last change of the product, whatever has
// become of tests and documents since.
func version(ctx context.Context) string {
	product := []string{"--", ".", ":!docs", ":!test", ":!*.md", ":!Makefile"}
	git := func(args ...string) ([]byte, error) {
		return exec.CommandContext(ctx, "git", append(args, product...)...).Output()
	}
	out, err := git("log", "-1", "--format=%h")
	if err != nil {
		return "unknown"
	}
	v := strings.TrimSpace(string(out))
	if changed, err := git("status", "--porcelain"); err != nil || len(changed) > 0 {
		v += " and changes"
	}
	return v
}
