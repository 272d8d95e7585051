package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/airstream-io/airstream/internal/units"
)

func newGCCommand(std streams) *cobra.Command {
	var (
		o     gcOrder
		limit string
	)
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Free cached content: what nobody needs, and the images used longest ago",
		Long: `Free what no image needs, and then, until the cache is within its limit, content of
the images that were used longest ago. What is pinned or mounted by a container
stays. The node does this by itself when room is short.`,
		Example: `  airstream gc --dry-run --limit 20GB
  airstream gc --all`,
		Args: cobra.NoArgs,
	}
	v := newVerb(std, cmd, tableJSONYAML...)
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "say what would be freed, and leave it")
	cmd.Flags().StringVar(&limit, "limit", "", "free until the cache takes no more than `SIZE`, like 20GB")
	cmd.Flags().BoolVar(&o.All, "all", false, "free everything that is neither pinned nor mounted")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := flagText(cmd.Flags().Changed("limit"), "limit", limit, &o.Limit); err != nil {
			return exitWith(exitUsage, err)
		}
		var done gcResult
		if err := v.ask(cmd.Context(), "POST", "/v1/gc", o, &done); err != nil {
			return runtimeError(err)
		}
		return runtimeError(v.print(done, func(w io.Writer) error { return printGC(w, &done) }))
	}
	return cmd
}

func printGC(w io.Writer, done *gcResult) error {
	freed := "freed"
	if done.DryRun {
		freed = "would free"
	}
	for _, image := range done.Images {
		if _, err := fmt.Fprintf(w, "%s content of %s\n", freed, image); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "%s %s in %s, %s, %s; %s\n", freed, units.Short(done.Freed), count(done.Objects, "file"), count(done.Blobs, "blob"), count(done.Trees, "table"), done.Cache.text())
	return err
}

// text says what the cache takes, in one line.
func (c *cacheStatus) text() string {
	limit := "no limit"
	if c.Limit > 0 {
		limit = "limit " + units.Short(c.Limit)
	}
	return fmt.Sprintf("the cache takes %s (%s), %s of disk free", units.Short(c.Bytes), limit, units.Short(c.Free))
}
