package main

import (
	"fmt"
	"io"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/airstream-io/airstream/receive"
)

func newBundleWaitingCommand(std streams) *cobra.Command {
	var forget []string
	cmd := &cobra.Command{
		Use:   "waiting",
		Short: "List the bundles that wait for something on this node",
		Long: `List the bundles that wait for something on this node: for the rest of themselves, or
for images that they build upon. --forget gives one up and frees what it keeps.`,
		Args: cobra.NoArgs,
	}
	v := newVerb(std, cmd, tableJSONYAML...)
	cmd.Flags().StringArrayVar(&forget, "forget", nil, "give up the bundle with this `ID`; may be given several times")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if len(forget) > 0 {
			var done []string
			if err := v.ask(cmd.Context(), http.MethodPost, "/v1/bundles/forget", refsOrder{Refs: forget}, &done); err != nil {
				return runtimeError(err)
			}
		}
		var all []receive.Result
		if err := v.ask(cmd.Context(), http.MethodGet, "/v1/bundles", nil, &all); err != nil {
			return runtimeError(err)
		}
		return runtimeError(v.print(all, func(w io.Writer) error {
			for i := range all {
				if _, err := fmt.Fprintf(w, "bundle %s\n", all[i].Bundle); err != nil {
					return err
				}
				for _, b := range all[i].Bases {
					if _, err := fmt.Fprintf(w, "needs %s\n", b.Name); err != nil {
						return err
					}
				}
				if err := printApplied(w, &all[i]); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	return cmd
}
