// Command rigtree says in what two directory trees differ. See package
// test/rig/tree.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/airstream-io/airstream/test/rig/tree"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run returns 0 for equal trees, 1 for different ones, 2 for trouble: as diff
// does.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var opt tree.Options
	set := flag.NewFlagSet("rigtree", flag.ContinueOnError)
	set.SetOutput(stderr)
	set.DurationVar(&opt.MTimeWithin, "mtime", 0, "`how far` apart modification times may be")
	set.BoolVar(&opt.Root, "root", false, "compare the attributes of the roots too")
	limit := set.Int("limit", 100, "print at most `so many` differences")
	if err := set.Parse(args); err != nil {
		return 2
	}
	if set.NArg() != 2 {
		_, _ = fmt.Fprintln(stderr, "usage: rigtree [flags] A B")
		return 2
	}
	diffs, err := tree.Compare(ctx, set.Arg(0), set.Arg(1), opt)
	if err != nil {
		_, _ = fmt.Fprintln(stderr, err)
		return 2
	}
	_, _ = fmt.Fprint(stdout, tree.Lines(diffs, *limit))
	if len(diffs) > 0 {
		return 1
	}
	return 0
}
