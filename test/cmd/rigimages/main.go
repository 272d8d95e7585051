// Command rigimages lists and builds the images of the test rig. See package
// test/rig/images.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"

	"github.com/airstream-io/airstream/test/rig/images"
	"github.com/airstream-io/airstream/test/rig/tools"
)

const usage = `usage: rigimages list            say what images there are
       rigimages build [NAME…]   build what the cache doesn't have, and say where it is (no name: all)
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, errUsage):
		_, _ = fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	case err != nil:
		_, _ = fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage")

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	switch {
	case len(args) == 1 && args[0] == "list":
		return list(stdout)
	case len(args) > 0 && args[0] == "build":
		return build(ctx, args[1:], stdout, stderr)
	default:
		return errUsage
	}
}

func list(stdout io.Writer) error {
	w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	for _, name := range images.Names() {
		about, err := images.About(name)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\n", name, about)
	}
	return w.Flush()
}

func build(ctx context.Context, names []string, stdout, stderr io.Writer) error {
	dir, err := tools.CacheDir("images")
	if err != nil {
		return err
	}
	if len(names) == 0 {
		names = images.Names()
	}
	b := &images.Builder{Dir: dir, Log: stderr}
	w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "image\tlayers\tcompressed\tunpacked\tfolder")
	for _, name := range names {
		img, err := b.Build(ctx, name)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(w, "%s\t%d\t%.1f MB\t%.1f MB\t%s\n", img.Name, img.Layers, float64(img.Compressed)/1e6, float64(img.Uncompressed)/1e6, img.Dir)
	}
	return w.Flush()
}
