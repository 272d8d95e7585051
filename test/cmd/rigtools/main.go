// Command rigtools installs the programs that the test rig runs, and says what
// the machine lacks. See package test/rig/tools.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/airstream-io/airstream/test/rig/tools"
)

const usage = `usage: rigtools install [NAME…]   get what is missing (no name: all that the rig needs)
       rigtools check [NAME…]     say what is missing, a line each
       rigtools path NAME         print where a program is
       rigtools list              print the table of programs
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run returns 0 when all is there, 1 when something is missing, 2 for a usage
// error.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		_, _ = fmt.Fprint(stderr, usage)
		return 2
	}
	verb, names := args[0], args[1:]
	switch {
	case verb == "install":
		if err := tools.Install(ctx, stderr, names...); err != nil {
			_, _ = fmt.Fprintln(stderr, err)
			return 1
		}
	case verb == "check":
		gaps := tools.Check(ctx, names...)
		for _, m := range gaps {
			_, _ = fmt.Fprintln(stdout, m.Error())
		}
		if len(gaps) > 0 {
			return 1
		}
	case verb == "path" && len(names) == 1:
		path, err := tools.Path(names[0])
		if err != nil {
			_, _ = fmt.Fprintln(stderr, err)
			return 1
		}
		_, _ = fmt.Fprintln(stdout, path)
	case verb == "list" && len(names) == 0:
		for _, p := range tools.Programs() {
			if p.Debian != "" {
				_, _ = fmt.Fprintf(stdout, "%-24s Debian package %s\n", p.Name, p.Debian)
			} else {
				_, _ = fmt.Fprintf(stdout, "%-24s %s/%s %s\n", p.Name, p.Module, p.Package, p.Version)
			}
		}
	default:
		_, _ = fmt.Fprint(stderr, usage)
		return 2
	}
	return 0
}
