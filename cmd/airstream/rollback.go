package main

import (
	"fmt"
	"io"
	"net/http"

	"github.com/spf13/cobra"
)

func newRollbackCommand(std streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rollback REF…",
		Short: "Let a name mean what it meant before a bundle changed it",
		Long: `Let a name mean what it meant before a bundle changed it, and hold it there: no
registry is asked what it means until another bundle is activated or the name is
prefetched. A second rollback takes the first one back. Containers that run are not
touched.

Exit codes: 0 done; 1 failed, or nothing is known that it meant before; 2 wrong usage;
3 what it meant before is not here whole.`,
		Args: cobra.MinimumNArgs(1),
	}
	v := newVerb(std, cmd, tableJSONYAML...)
	cmd.ValidArgsFunction = v.completeRefs
	cmd.RunE = func(cmd *cobra.Command, refs []string) error {
		if err := checkRefs(refs); err != nil {
			return err
		}
		var done []rolledBack
		if err := v.ask(cmd.Context(), http.MethodPost, "/v1/rollback", refsOrder{Refs: refs}, &done); err != nil {
			return runtimeError(err)
		}
		return runtimeError(v.print(done, func(w io.Writer) error {
			for _, d := range done {
				if _, err := fmt.Fprintf(w, "%s means %s again, and not %s\n", d.Name, d.After, d.Before); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	return cmd
}
