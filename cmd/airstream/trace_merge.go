package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/airstream-io/airstream/internal/trace"
)

func newTraceMergeCommand(std streams) *cobra.Command {
	var out string
	var least int
	cmd := &cobra.Command{
		Use:   "merge FILE…",
		Short: "Make one trace of several starts",
		Long: `Make one trace of several starts of an image.

What was read is ordered by the median of its places in the traces, a trace that
lacks it counting as last; what most of them lack comes behind the rest. The
result is the same in whatever order the files are given. It needs no node.`,
		Example: `  airstream trace merge monday.trace tuesday.trace -o app.trace`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if least < 1 || least > len(args) {
				return exitWith(exitUsage, fmt.Errorf("trace merge: --least %d of %d files", least, len(args)))
			}
			return exitWith(exitFailure, mergeTraces(std, args, least, out))
		},
	}
	cmd.Flags().StringVarP(&out, "output", "o", "", "`FILE` to write it to (default: standard output)")
	cmd.Flags().IntVar(&least, "least", 1, "leave out what fewer than `N` of the traces have")
	return cmd
}

func mergeTraces(std streams, files []string, least int, out string) error {
	traces := make([]*trace.Trace, 0, len(files))
	for _, name := range files {
		t, err := readTrace(name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		traces = append(traces, t)
	}
	t, err := trace.Merge(least, traces...)
	if errors.Is(err, trace.ErrDifferent) {
		return nextStep(err, "Give them to airstream convert, one --trace each: it finds what each means for the image.")
	}
	if err != nil {
		return err
	}
	if out == "" {
		return t.Encode(std.out)
	}
	return writeTraceFile(out, t)
}
