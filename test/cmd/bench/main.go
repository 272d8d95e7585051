// Command bench measures first starts over an emulated link, side by side: a
// full pull as nodes do it today, against Airstream; and bulk transfers, and
// reads beside them. It writes the tables into
// docs/benchmarks.md, between two markers; nothing in that table is written by
// hand.
//
// Each figure is taken on a fresh node, whose caches are empty, behind a link
// that nothing else uses. The trace that the last column needs is recorded in
// a run of its own, over a fast link.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/airstream-io/airstream/test/report"
	"github.com/airstream-io/airstream/test/rig/images"
	"github.com/airstream-io/airstream/test/rig/link"
	"github.com/airstream-io/airstream/test/rig/registry"
	"github.com/airstream-io/airstream/test/rig/site"
	"github.com/airstream-io/airstream/test/rig/tools"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type bench struct {
	profile link.Profile
	limit   time.Duration
	runs    int
	words   io.Writer

	reg    *registry.Registry
	binary string
	dir    string
}

func run(ctx context.Context, args []string, words io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	names := flags.String("images", "redis,nginx,python,node", "images to start; empty: none")
	code := flags.Bool("go", false, "run the benchmarks beside the code, too")
	dark := flags.Bool("dark", false, "measure a node without a link, and what crosses twice, too")
	bulk := flags.Bool("bulk", false, "measure bulk transfers and reads beside them, too")
	profile := flags.String("profile", "geo-vsat", "link, as airlink -list has them")
	limit := flags.Duration("full-limit", 0, "stop the full pull after this and compute its end; 0: never")
	runs := flags.Int("n", 1, "runs of each, of which the median counts")
	out := flags.String("o", "docs/benchmarks.md", "file that the table is written into")
	if err := flags.Parse(args); err != nil {
		return err
	}
	p, ok := link.ProfileNamed(*profile)
	if !ok {
		return fmt.Errorf("no profile %q; see airlink -list", *profile)
	}
	if err := tools.Install(ctx, words, slices.Concat(site.Needs, images.Needs("node"), images.Needs("python"))...); err != nil {
		return err
	}
	b := &bench{profile: p, limit: *limit, runs: *runs, words: words}
	for _, s := range []struct {
		wanted  bool
		name    string
		measure func(context.Context) (string, error)
	}{
		{*names != "", "first-start " + p.Name, b.onShore(func(ctx context.Context) (string, error) {
			return b.firstStarts(ctx, strings.Split(*names, ","))
		})},
		{*dark, "dark", b.onShore(b.dark)},
		{*bulk, "bulk " + p.Name, b.bulk},
		{*code, "go", b.goBenchmarks},
	} {
		if !s.wanted {
			continue
		}
		text, err := s.measure(ctx)
		if err != nil {
			return err
		}
		if err := b.write(*out, s.name, text); err != nil {
			return err
		}
	}
	return nil
}

// write shows a section and puts it into the file.
func (b *bench) write(file, section, text string) error {
	if _, err := io.WriteString(b.words, "\n"+text); err != nil {
		return err
	}
	return report.Section(file, section, text)
}

// onShore returns measure with a registry and a binary to measure.
func (b *bench) onShore(measure func(context.Context) (string, error)) func(context.Context) (string, error) {
	return func(ctx context.Context) (_ string, err error) {
		if b.dir, err = os.MkdirTemp("", "airbench-"); err != nil {
			return "", err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
		built, err := site.Build(ctx)
		if err != nil {
			return "", err
		}
		// What is measured must stay what it is while others build.
		b.binary = filepath.Join(b.dir, "airstream")
		if err := copyFile(b.binary, built); err != nil {
			return "", err
		}
		cache, err := tools.CacheDir("registry")
		if err != nil {
			return "", err
		}
		if b.reg, err = registry.Start(ctx, registry.Options{Dir: cache}); err != nil {
			return "", err
		}
		defer func() { err = errors.Join(err, b.reg.Close()) }()
		return measure(ctx)
	}
}

// firstStarts measures the images and returns the section.
func (b *bench) firstStarts(ctx context.Context, names []string) (string, error) {
	var rows []row
	for _, name := range names {
		r, err := b.image(ctx, name)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		rows = append(rows, r)
	}
	return b.table(rows), nil
}

func copyFile(to, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755) //nolint:gosec // a program
}

// row is what was measured of one image.
type row struct {
	img              *images.Image
	full, lazy, warm site.Launch
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.words, format+"\n", args...) //nolint:errcheck // progress only
}

func (b *bench) image(ctx context.Context, name string) (row, error) {
	img, err := images.Build(ctx, name)
	if err != nil {
		return row{}, err
	}
	if err := b.publish(ctx, name, img); err != nil {
		return row{}, err
	}
	r := row{img: img}
	for _, m := range []struct {
		what  string
		to    *site.Launch
		start func(ctx context.Context, s *site.Site) (site.Launch, error)
	}{
		{"full pull, overlayfs", &r.full, func(ctx context.Context, s *site.Site) (site.Launch, error) {
			return s.FullPull(ctx, name+":plain", img, b.limit)
		}},
		{"Airstream, no trace", &r.lazy, func(ctx context.Context, s *site.Site) (site.Launch, error) {
			return s.LazyStart(ctx, name+":lazy", img)
		}},
		{"Airstream, with trace", &r.warm, func(ctx context.Context, s *site.Site) (site.Launch, error) {
			return s.LazyStart(ctx, name+":traced", img)
		}},
	} {
		if *m.to, err = b.median(ctx, m.start); err != nil {
			return r, fmt.Errorf("%s: %w", m.what, err)
		}
		b.say("%-8s %-22s %s", name, m.what, *m.to)
	}
	return r, nil
}

// publish puts an image on shore: as it is, converted, and converted with a
// trace of a start over a fast link.
func (b *bench) publish(ctx context.Context, name string, img *images.Image) error {
	oci, err := img.OCI()
	if err != nil {
		return err
	}
	if _, err := b.reg.Push(ctx, name+":plain", oci); err != nil {
		return err
	}
	if _, err := site.Convert(ctx, b.binary, b.reg, name+":plain", name+":lazy"); err != nil {
		return err
	}
	file := filepath.Join(b.dir, name+".trace")
	err = b.onSite(ctx, link.Direct(), 0, func(s *site.Site) error {
		if _, err := s.LazyStart(ctx, name+":lazy", img); err != nil {
			return err
		}
		_, err := s.Run(ctx, "trace", s.Ref(name+":lazy"), "-o", file)
		return err
	})
	if err != nil {
		return fmt.Errorf("recording a trace: %w", err)
	}
	_, err = site.Convert(ctx, b.binary, b.reg, name+":plain", name+":traced", "--trace", file)
	return err
}

// onSite runs f on a fresh site.
func (b *bench) onSite(ctx context.Context, p link.Profile, seed uint64, f func(s *site.Site) error) error {
	s, err := site.Start(ctx, site.Options{Profile: p, Seed: seed, Registry: b.reg, Airstream: b.binary, Config: "[fetch]\nbackground = false\n"})
	if err != nil {
		return err
	}
	err = f(s)
	if err != nil {
		if log, lerr := s.Log(); lerr == nil {
			err = fmt.Errorf("%w\nthe daemon's log:\n%s", err, log)
		}
	}
	return errors.Join(err, s.Close(context.WithoutCancel(ctx)))
}

// median runs one measurement on as many fresh sites as were asked for, each
// with losses of its own, and returns the one in the middle.
func (b *bench) median(ctx context.Context, start func(ctx context.Context, s *site.Site) (site.Launch, error)) (site.Launch, error) {
	all := make([]site.Launch, 0, b.runs)
	for i := range b.runs {
		err := b.onSite(ctx, b.profile, uint64(i+1), func(s *site.Site) error {
			l, err := start(ctx, s)
			all = append(all, l)
			return err
		})
		if err != nil {
			return site.Launch{}, err
		}
	}
	slices.SortFunc(all, func(x, y site.Launch) int { return int(x.Ready - y.Ready) })
	return all[len(all)/2], nil
}
