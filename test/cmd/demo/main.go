// Command demo shows in a few minutes what Airstream is for. It puts a shore, a
// satellite link and a far node on this machine, starts one container in the
// ways that there are, and prints what happened as a timeline for people who
// have never heard of any of it.
//
// Nothing in it is staged: containerd, runc, the registry and Airstream's own
// binary are those that users run, and every figure is measured in this run.
// Only the link is emulated. What it needs it installs by itself, and it takes
// everything away again, also after Ctrl-C; the last thing it does is to look
// whether that is true.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/airstream-io/airstream/test/rig/images"
	"github.com/airstream-io/airstream/test/rig/site"
	"github.com/airstream-io/airstream/test/rig/tools"
)

// Exit codes, those of airstream.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitInterrupted = 3
)

// imageName is the image of the demo: a web application in Python, about 72 MB,
// with the many small files that make such images slow to bring.
const imageName = "python"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// From the first Ctrl-C on a second one ends at once; the next run of any
	// part of the rig then takes away what this one has left.
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args[1:], os.Stdout)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, words io.Writer) int {
	t := newTimeline(words)
	if len(args) > 0 {
		t.raw("usage: demo")
		return exitUsage
	}
	if gaps := lacks(ctx, t); len(gaps) > 0 {
		t.raw("The demo can't run here: the machine lacks " + strings.Join(gaps, "; "))
		return exitFailure
	}
	d := &demo{t: t}
	err := d.play(ctx)
	ctx = context.WithoutCancel(ctx)
	err = errors.Join(err, d.close(ctx), d.reportLeftovers())
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, context.Canceled):
		t.say("Interrupted. Run it again whenever you like.")
		return exitInterrupted
	}
	t.say("The demo failed:")
	t.raw(err.Error())
	return exitFailure
}

// lacks installs what is missing and returns a line for each thing that is
// still not there.
func lacks(ctx context.Context, t *timeline) []string {
	needs := slices.Concat(site.Needs, images.Needs(imageName))
	gaps := tools.Check(ctx, needs...)
	if len(gaps) == 0 {
		return nil
	}
	if gaps[0].Name == tools.Root {
		return []string{gaps[0].Error()} // the rest mostly follows from it
	}
	t.say("Installing what the demo needs; this happens once and takes a few minutes.")
	if err := tools.Install(ctx, t.w, needs...); err != nil {
		return strings.Split(err.Error(), "\n")
	}
	return nil
}

// reportLeftovers looks for what the demo should have taken away, and says so
// either way.
func (d *demo) reportLeftovers() error {
	left, err := d.leftovers()
	if err != nil {
		return fmt.Errorf("looking for leftovers: %w", err)
	}
	if len(left) > 0 {
		return fmt.Errorf("left behind: %s", strings.Join(left, ", "))
	}
	d.t.say("Everything was taken away again: no process, mount or network namespace is left.")
	d.t.more("Programs, images and the registry's content stay in %s, for the next run.", d.cache)
	return nil
}
