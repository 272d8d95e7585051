// Command airstream gets container images across constrained links.
//
// One static binary holds everything; a file here is a verb. This package
// joins the stations: it maps the configuration to their options, starts and
// stops them, turns errors into exit codes and prints. Nothing else prints.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

// streams are where a command reads and writes: data goes to out, words to err.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code := run(ctx, os.Args[1:], streams{os.Stdin, os.Stdout, os.Stderr})
	stop()
	os.Exit(code)
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, std streams) int {
	root := newRootCommand(std) //nolint:contextcheck // cobra hands ctx to the commands
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	var known *exitError
	if !errors.As(err, &known) {
		known = &exitError{code: exitUsage, err: fmt.Errorf("%w (airstream help says how)", err)}
	}
	if _, werr := fmt.Fprintln(std.err, "airstream: "+known.Error()); werr != nil {
		return exitFailure
	}
	return known.code
}

func newRootCommand(std streams) *cobra.Command {
	root := &cobra.Command{
		Use:   "airstream",
		Short: "Container images across slow, far, lossy and absent links",
		Long: `Airstream gets container images across constrained links.

In CI, "airstream convert" makes an image that can start before it has arrived.
On the node, "airstream node" serves it to containerd: it fetches what is read,
keeps it, and serves everything that is on site when the link is gone.`,
		Version:       version(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return runtimeError(cmd.Help()) },
	}
	root.SetIn(std.in)
	root.SetOut(std.out)
	root.SetErr(std.err)
	root.AddCommand(
		newConvertCommand(std),
		newNodeCommand(std),
		newSuperviseCommand(std),
		newStatusCommand(std),
		newImagesCommand(std),
		newPrefetchCommand(std),
		newBundleCommand(std),
		newInventoryCommand(std),
		newRollbackCommand(std),
		newPinCommand(std),
		newUnpinCommand(std),
		newRemoveCommand(std),
		newGCCommand(std),
		newVerifyCommand(std),
		newLimitCommand(std),
		newReloadCommand(std),
		newConfigCommand(std),
		newDoctorCommand(std),
		newProxyCommand(std),
		newEnrolCommand(std),
		newTraceCommand(std),
		newRecordWorkerCommand(std),
	)
	explainArgs(root.Commands()...)
	return root
}

// version returns the module's version and the revision that it was built of.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return info.Main.Version + " " + s.Value
		}
	}
	return info.Main.Version
}
