package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/airstream-io/airstream/internal/units"
)

func newImagesCommand(std streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "images",
		Short: "List the images that this node has met, and how much of each is here",
		Args:  cobra.NoArgs,
	}
	v := newVerb(std, cmd, tableJSONYAML...)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var images []imageStatus
		if err := v.ask(cmd.Context(), "GET", "/v1/images", nil, &images); err != nil {
			return runtimeError(err)
		}
		return runtimeError(v.print(images, func(w io.Writer) error { return printImages(w, images) }))
	}
	return cmd
}

func printImages(w io.Writer, images []imageStatus) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "IMAGE\tPLATFORM\tSIZE\tLAZY\tHOT\tHERE\tPINNED") // the writer keeps its error for Flush
	for i := range images {
		s := &images[i]
		name := strings.Join(s.titles(), ",")
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%d/%d\t%s\t%s\t%s\n", name, s.Platform, units.Short(s.Size), s.Lazy, s.Layers, s.hotHere(), s.here(), yesNo(s.Pinned))
	}
	return t.Flush()
}

// here says how much of the image is on the node.
func (s *imageStatus) here() string {
	switch {
	case s.Complete:
		return "complete"
	case s.Tables < s.Lazy:
		return fmt.Sprintf("%d of %s", s.Tables, count(s.Lazy, "table"))
	case s.Total == 0:
		return "0%"
	}
	// Below 100 % as long as a byte is missing.
	return percent(min(s.Total-s.Missing, s.Total-1), s.Total)
}

// hotHere says how much of the hot set is on the node.
func (s *imageStatus) hotHere() string {
	if s.HotTotal == 0 {
		return "-"
	}
	return percent(s.HotTotal-s.HotMissing, s.HotTotal)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
