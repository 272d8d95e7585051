package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// statusWidth is how wide the table is where no terminal says otherwise.
const statusWidth = 80

func newStatusCommand(std streams) *cobra.Command {
	var (
		watch bool
		every time.Duration
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the link, what crosses it, and which images run without it",
		Long: `Show the link, what crosses it, the cache, and the images: how much of each is here,
and whether a container starts from it when the link is dark. RUNS DARK is "yes"
for a complete image, "hot" if all that a recorded start reads is here, and "no"
with what is missing.`,
		Args: cobra.NoArgs,
	}
	v := newVerb(std, cmd, tableJSONYAML...)
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again and again")
	cmd.Flags().DurationVar(&every, "interval", 2*time.Second, "how often, with --watch")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if every < 100*time.Millisecond {
			return exitWith(exitUsage, fmt.Errorf("--interval %v: want 100ms or more", every))
		}
		if !watch {
			return runtimeError(v.status(cmd.Context(), ""))
		}
		return v.watch(cmd.Context(), every)
	}
	return cmd
}

// status prints the node's status once, behind a prefix.
func (v *verb) status(ctx context.Context, prefix string) error {
	var s nodeStatus
	if err := v.ask(ctx, "GET", "/v1/status", nil, &s); err != nil {
		return err
	}
	if _, err := io.WriteString(v.std.out, prefix); err != nil {
		return err
	}
	return v.print(s, func(w io.Writer) error { return printStatus(w, &s, v.width()) })
}

// clearScreen takes a terminal's cursor to its corner and clears what is there.
const clearScreen = "\x1b[H\x1b[2J"

// watch prints the status until ctx ends, which is no error.
func (v *verb) watch(ctx context.Context, every time.Duration) error {
	prefix, between := "", "\n"
	if v.width() > 0 && v.output == "table" && v.onTerminal() {
		prefix, between = clearScreen, clearScreen
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		err := v.status(ctx, prefix)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return runtimeError(err)
		}
		if prefix = between; v.output == "yaml" {
			prefix = "---\n"
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (v *verb) onTerminal() bool {
	f, ok := v.std.out.(*os.File)
	return ok && canDraw(f)
}

// width is how many columns a table may have.
func (v *verb) width() int {
	if f, ok := v.std.out.(*os.File); ok && v.onTerminal() {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil {
			return max(w, 60)
		}
	}
	return statusWidth
}
