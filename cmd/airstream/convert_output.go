package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/airstream-io/airstream/convert"
)

// convertReport is what -o json prints. digests maps every old digest to the
// new one: index, manifests and layers alike.
type convertReport struct {
	Source      string            `json:"source"`
	Destination string            `json:"destination"`
	Digests     map[string]string `json:"digests"`
	*convert.Result
}

func printConvert(w io.Writer, format, from, to string, r *convert.Result) error {
	report := convertReport{from, to, map[string]string{r.Old.String(): r.New.String()}, r}
	for _, m := range r.Manifests {
		report.Digests[m.Old.String()] = m.New.String()
		for _, l := range m.Layers {
			report.Digests[l.Old.String()] = l.New.String()
		}
	}
	var err error
	if format == "table" {
		err = printConvertTable(w, to, r)
	} else {
		err = printData(w, format, report)
	}
	if err != nil {
		return fmt.Errorf("convert: print the result: %w", err)
	}
	return nil
}

func printConvertTable(w io.Writer, to string, r *convert.Result) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(tw, "WHAT\tOLD\tNEW\tSIZE\t") // the writer keeps its error for Flush
	for _, m := range r.Manifests {
		name := "image " + m.Platform
		if m.Unchanged {
			name += " (unchanged)"
		}
		hot := ""
		if m.Hot > 0 {
			hot = formatBytes(m.Hot) + " hot"
		}
		_, _ = fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t\n", name, shortDigest(m.Old), shortDigest(m.New), hot)
		for i, l := range m.Layers {
			_, _ = fmt.Fprintf(tw, "  layer %d\t%s\t%s\t%s → %s\t%s\n", i+1, shortDigest(l.Old), shortDigest(l.New), formatBytes(l.OldSize), formatBytes(l.NewSize), l.How)
		}
		if a := m.Artifact; a != nil {
			size := formatBytes(a.Root) + " before the first start"
			if a.Hot > 0 {
				size += ", " + formatBytes(a.Hot) + " hot"
			}
			_, _ = fmt.Fprintf(tw, "  artifact\t\t%s\t%s\t\n", shortDigest(a.Digest), size)
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%s@%s\n", to, r.New)
	return err
}

func shortDigest(h v1.Hash) string { return h.Algorithm + ":" + h.Hex[:min(12, len(h.Hex))] }

// formatBytes writes a size for people, in powers of ten.
func formatBytes(n int64) string {
	f := float64(n)
	for _, unit := range []string{"B", "kB", "MB"} {
		if f < 1000 {
			if unit == "B" {
				return fmt.Sprintf("%d B", n)
			}
			return fmt.Sprintf("%.1f %s", f, unit)
		}
		f /= 1000
	}
	return fmt.Sprintf("%.2f GB", f)
}

// formatSize writes a size as parseSize reads it, exactly.
func formatSize(n int64) string {
	for _, u := range []struct {
		name string
		size int64
	}{{"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n != 0 && n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// parseSize reads a number of bytes with an optional unit: KiB, MiB, GiB are
// powers of two, kB, MB, GB powers of ten.
func parseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "BGKMik")
	unit, ok := map[string]int64{
		"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9,
	}[strings.TrimSpace(s[len(digits):])]
	n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
	if err != nil || !ok || n < 0 || n > (1<<62)/unit {
		return 0, fmt.Errorf("want a number of bytes with KiB, MiB, GiB, kB, MB or GB, like 64KiB")
	}
	return n * unit, nil
}
