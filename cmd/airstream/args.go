package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

// explainArgs has commands that got too few arguments say which they want, where
// they don't do so themselves.
func explainArgs(cmds ...*cobra.Command) {
	for _, cmd := range cmds {
		explainArgs(cmd.Commands()...)
		count := cmd.Args
		if count == nil {
			continue
		}
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			err := count(cmd, args)
			if _, known := errors.AsType[*exitError](err); known || err == nil || count(cmd, nil) == nil {
				return err // of a command that needs none: what the one too many is
			}
			plural := "s"
			if len(args) == 1 {
				plural = ""
			}
			return exitWith(exitUsage, fmt.Errorf("got %d argument%s, want: %s", len(args), plural, cmd.UseLine()))
		}
	}
}
