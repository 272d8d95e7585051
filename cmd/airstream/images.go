package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/airstream-io/airstream/config"
)

func newImagesCommand(std streams) *cobra.Command {
	var file, output string
	cmd := &cobra.Command{
		Use:   "images",
		Short: "List the images that this node has met, and how much of each is here",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return exitWith(exitUsage, fmt.Errorf("--output %q: use table or json", output))
			}
			cfg, err := config.Load(file, os.Environ())
			if err != nil {
				return exitWith(exitUsage, err)
			}
			var images []imageStatus
			err = newAdminClient(cfg.State).do(cmd.Context(), "GET", "/v1/images", func(r io.Reader) error {
				return json.NewDecoder(r).Decode(&images)
			})
			if err != nil {
				return runtimeError(err)
			}
			if output == "json" {
				enc := json.NewEncoder(std.out)
				enc.SetIndent("", "  ")
				return runtimeError(enc.Encode(images))
			}
			return runtimeError(printImages(std.out, images))
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "the node's TOML file")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

func printImages(w io.Writer, images []imageStatus) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	if _, err := fmt.Fprintln(t, "IMAGE\tPLATFORM\tSIZE\tLAZY\tHERE"); err != nil {
		return err
	}
	for i := range images {
		s := &images[i]
		name := strings.Join(s.Names, ",")
		if name == "" {
			name = s.Manifest
		}
		if _, err := fmt.Fprintf(t, "%s\t%s\t%s\t%d/%d\t%s\n", name, s.Platform, byteCount(s.Size), s.Lazy, s.Layers, s.here()); err != nil {
			return err
		}
	}
	return t.Flush()
}

// here says how much of the image is on the node.
func (s *imageStatus) here() string {
	switch {
	case s.Complete:
		return "complete"
	case s.Tables < s.Lazy:
		return fmt.Sprintf("%d of %d tables", s.Tables, s.Lazy)
	case s.Total == 0:
		return "0%"
	}
	// Below 100 % as long as a byte is missing.
	return fmt.Sprintf("%d%%", min(99, 100*(s.Total-s.Missing)/s.Total))
}

// byteCount writes a size as people read it, with decimal prefixes as network
// rates have them.
func byteCount(n int64) string {
	units := []string{"kB", "MB", "GB", "TB"}
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, u := float64(n)/1000, 0
	for v >= 999.5 && u < len(units)-1 {
		v /= 1000
		u++
	}
	return fmt.Sprintf("%.3g %s", v, units[u])
}
