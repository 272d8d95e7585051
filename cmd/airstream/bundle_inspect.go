package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/airstream-io/airstream/internal/bundle"
	"github.com/airstream-io/airstream/internal/units"
)

// inspected is what airstream bundle inspect prints.
type inspected struct {
	Bundle    string          `json:"bundle"`
	Signer    string          `json:"signer,omitempty"` // ID of the key that it claims
	Encrypted bool            `json:"encrypted"`
	Size      int64           `json:"size"` // bytes of the whole bundle
	Manifest  int64           `json:"manifest"`
	Images    []bundle.Image  `json:"images"`
	Files     []bundle.File   `json:"files,omitempty"`
	Bases     []bundle.Base   `json:"bases,omitempty"`
	Sections  []sectionOfRows `json:"sections"`
}

// sectionOfRows is what records of one kind and priority hold.
type sectionOfRows struct {
	Priority uint8  `json:"priority"`
	Kind     string `json:"kind"`
	Records  int    `json:"records"`
	Size     int64  `json:"size"` // bytes in the bundle
	Raw      int64  `json:"raw"`  // bytes, unpacked
}

func newBundleInspectCommand(std streams) *cobra.Command {
	var f readerFlags
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Show what a bundle holds",
		Long: `Show what a bundle holds: images and the names that they get, plain files, what it
builds upon, and how many bytes of what come in which order. Only the manifest is
read. - is standard input.`,
		Args: cobra.ExactArgs(1),
	}
	v := newVerb(std, cmd, tableJSONYAML...)
	f.register(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		b, err := openBundle(args[0], std.in, &f)
		if err != nil {
			return bundleError(err)
		}
		defer b.Close() //nolint:errcheck // a reader
		i := inspect(b)
		return runtimeError(v.print(i, i.table))
	}
	return cmd
}

func inspect(b *bundleFile) *inspected {
	i := &inspected{
		Bundle: b.ID().String(), Signer: b.Signature().KeyID(), Encrypted: b.Sealed(), Manifest: int64(len(b.Manifest())),
		Images: b.contents.Images, Files: b.contents.Files, Bases: b.contents.Bases,
	}
	i.Size = 2*i.Manifest + b.contents.Bytes()
	for _, e := range b.contents.Records {
		at := slices.IndexFunc(i.Sections, func(s sectionOfRows) bool { return s.Priority == e.Priority && s.Kind == e.Kind.String() })
		if at < 0 {
			at = len(i.Sections)
			i.Sections = append(i.Sections, sectionOfRows{Priority: e.Priority, Kind: e.Kind.String()})
		}
		s := &i.Sections[at]
		s.Records++
		s.Size += e.Len()
		s.Raw += int64(e.Raw)
	}
	slices.SortStableFunc(i.Sections, func(a, b sectionOfRows) int { return cmp.Compare(a.Priority, b.Priority) })
	return i
}

func (i *inspected) table(w io.Writer) error {
	signed := "not signed"
	if i.Signer != "" {
		signed = "signed, it says, by key " + i.Signer
	}
	if i.Encrypted {
		signed += ", encrypted"
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintf(t, "bundle %s, %s, %s\n", i.Bundle, units.Short(i.Size), signed) // the writer keeps its error for Flush
	for _, img := range i.Images {
		var platforms []string
		for _, m := range img.Parts {
			if m.Platform != "" {
				platforms = append(platforms, m.Platform)
			}
		}
		_, _ = fmt.Fprintf(t, "image\t%s\t%s\t%s\n", img.Name, img.Digest, strings.Join(platforms, ","))
	}
	for _, f := range i.Files {
		_, _ = fmt.Fprintf(t, "file\t%s\t%s\t%s\n", f.Path, f.Digest, units.Short(f.Size))
	}
	for _, b := range i.Bases {
		_, _ = fmt.Fprintf(t, "needs\t%s\n", b.Name)
	}
	_, _ = fmt.Fprintln(t, "\nPRIORITY\tKIND\tRECORDS\tSIZE\tUNPACKED")
	for _, s := range i.Sections {
		_, _ = fmt.Fprintf(t, "%d\t%s\t%d\t%s\t%s\n", s.Priority, s.Kind, s.Records, units.Short(s.Size), units.Short(s.Raw))
	}
	return t.Flush()
}
