package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/airstream-io/airstream/internal/units"
)

func newPinCommand(std streams) *cobra.Command {
	return pinCommand(std, &cobra.Command{
		Use:   "pin REF…",
		Short: "Keep images whatever the cache's limit",
		Long: `Keep what is here of images, and what comes of them, whatever the cache's limit.
Pinning fetches nothing: airstream prefetch --pin does both.`,
	}, "/v1/pin", "pinned")
}

func newUnpinCommand(std streams) *cobra.Command {
	return pinCommand(std, &cobra.Command{
		Use:   "unpin REF…",
		Short: "Let the cache drop images again when room is short",
	}, "/v1/unpin", "unpinned")
}

func pinCommand(std streams, cmd *cobra.Command, path, done string) *cobra.Command {
	cmd.Args = cobra.MinimumNArgs(1)
	v := newVerb(std, cmd, tableJSONYAML...)
	cmd.ValidArgsFunction = v.completeRefs
	cmd.RunE = func(cmd *cobra.Command, refs []string) error {
		if err := checkRefs(refs); err != nil {
			return err
		}
		var names []string
		if err := v.ask(cmd.Context(), "POST", path, refsOrder{Refs: refs}, &names); err != nil {
			return runtimeError(err)
		}
		return runtimeError(v.print(names, func(w io.Writer) error {
			for _, n := range names {
				if _, err := fmt.Fprintf(w, "%s %s\n", done, n); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	return cmd
}

func newRemoveCommand(std streams) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rm REF…",
		Short: "Forget images and free what only they needed",
		Long: `Forget images by name or manifest digest, and free what no other image needs.
Images that are pinned or that containers run from are refused unless --force
says otherwise; content that a container has mounted stays in any case. The
images that containerd lists are its own: crictl rmi, ctr image rm.`,
		Args: cobra.MinimumNArgs(1),
	}
	v := newVerb(std, cmd, tableJSONYAML...)
	cmd.ValidArgsFunction = v.completeRefs
	cmd.Flags().BoolVar(&force, "force", false, "also what is pinned or runs")
	cmd.RunE = func(cmd *cobra.Command, refs []string) error {
		if err := checkRefs(refs); err != nil {
			return err
		}
		var done removed
		if err := v.ask(cmd.Context(), "POST", "/v1/remove", removeOrder{Refs: refs, Force: force}, &done); err != nil {
			return runtimeError(err)
		}
		return runtimeError(v.print(done, func(w io.Writer) error {
			for _, n := range done.Names {
				if _, err := fmt.Fprintf(w, "removed %s\n", n); err != nil {
					return err
				}
			}
			_, err := fmt.Fprintf(w, "freed %s\n", units.Short(done.Freed))
			return err
		}))
	}
	return cmd
}
