package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/airstream-io/airstream/internal/bundle"
	"github.com/airstream-io/airstream/internal/units"
)

func newBundleSplitCommand(std streams) *cobra.Command {
	var size, out string
	var f readerFlags
	cmd := &cobra.Command{
		Use:   "split --size SIZE FILE",
		Short: "Cut a bundle into pieces that can each be applied",
		Long: `Cut a bundle into pieces FILE.001, FILE.002 and so on. Each begins with the bundle's
manifest: pieces can be applied one by one, in any order, and airstream bundle join
makes the bundle of them again.`,
		Example: `  airstream bundle split --size 650MB ship.bundle`,
		Args:    cobra.ExactArgs(1),
	}
	v := newVerb(std, cmd)
	cmd.Flags().StringVar(&size, "size", "", "how many bytes a piece may have, like 4GB")
	cmd.Flags().StringVarP(&out, "output", "o", "", "write the pieces to `FILE`.001 and so on (default: the bundle's name)")
	f.register(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		limit, err := parseSize(size)
		if err != nil || limit <= 0 {
			return exitWith(exitUsage, errors.Join(errors.New("--size: want a size like 650MB"), err))
		}
		prefix := cmp.Or(out, args[0])
		if prefix == "-" {
			return exitWith(exitUsage, errors.New("say where the pieces go with -o FILE"))
		}
		b, err := openBundle(args[0], std.in, &f)
		if err != nil {
			return bundleError(err)
		}
		defer b.Close() //nolint:errcheck // a reader
		n, err := bundle.Split(b.Reader, limit, func(n int) (io.WriteCloser, error) { return os.Create(fmt.Sprintf("%s.%03d", prefix, n)) })
		if err != nil {
			return bundleError(err)
		}
		return runtimeError(v.say("%s of at most %s: %s.001 to .%03d", count(n, "piece"), units.Short(limit), prefix, n))
	}
	return cmd
}

func newBundleJoinCommand(std streams) *cobra.Command {
	var out string
	var f readerFlags
	cmd := &cobra.Command{
		Use:   "join -o FILE PIECE…",
		Short: "Make a bundle of its pieces, or one sound copy of several damaged ones",
		Long: `Make a bundle of its pieces, in any order. Damaged copies of a bundle are pieces, too:
what is sound in any of them is taken.

Exit codes: 0 it is whole; 2 wrong usage; 3 records are missing; 5 the pieces are of
different bundles.`,
		Args: cobra.MinimumNArgs(1),
	}
	v := newVerb(std, cmd)
	cmd.Flags().StringVarP(&out, "output", "o", "", "write the bundle to `FILE`")
	f.register(cmd)
	cmd.RunE = func(_ *cobra.Command, pieces []string) error {
		if out == "" {
			return exitWith(exitUsage, errors.New("say where to write it with -o FILE"))
		}
		n, missing, err := joinBundle(out, pieces, &f)
		if err != nil {
			return bundleError(err)
		}
		if missing > 0 {
			return exitWith(exitIncomplete, fmt.Errorf("%d of %d records are missing; %s has what there is, and can be joined with more pieces", missing, n, out))
		}
		return runtimeError(v.say("%s, all here", count(n, "record")))
	}
	return cmd
}

// joinBundle writes what pieces hold of a bundle.
func joinBundle(out string, pieces []string, f *readerFlags) (records, missing int, err error) {
	work, err := os.CreateTemp(filepath.Dir(out), ".airstream-bundle-")
	if err != nil {
		return 0, 0, err
	}
	defer func() {
		if err = errors.Join(err, work.Close()); err != nil {
			err = errors.Join(err, os.Remove(work.Name()))
		}
	}()
	var have []bool
	var id bundle.ID
	for _, name := range pieces {
		b, err := openBundle(name, nil, f)
		if err != nil {
			return 0, 0, err
		}
		if have == nil {
			have, id = make([]bool, len(b.contents.Records)), b.ID()
		}
		if b.ID() != id {
			err = fmt.Errorf("%s: %w: it is of bundle %s, and the others of %s", name, bundle.ErrDamaged, b.ID(), id)
		} else {
			err = bundle.Join(b.Reader, work, have)
		}
		if err = errors.Join(err, b.Close()); err != nil {
			return 0, 0, err
		}
	}
	for _, ok := range have {
		if !ok {
			missing++
		}
	}
	err = errors.Join(work.Chmod(0o644), work.Sync())
	if err == nil {
		err = os.Rename(work.Name(), out)
	}
	return len(have), missing, err
}
