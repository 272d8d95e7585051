package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/convert"
	"github.com/airstream-io/airstream/convert/layer"
	"github.com/airstream-io/airstream/convert/location"
	"github.com/airstream-io/airstream/internal/chunk"
)

const convertLong = `Convert an image so that a node can start it before it is all there.

SRC and DST are places of an image:

  registry.example/app:1.0    a registry
  oci:DIR or oci:DIR:TAG      an OCI image layout (SRC also oci:DIR@sha256:...)
  docker-archive:FILE         what docker save writes (SRC only)

All platforms of an image are converted unless --platform says which. The
digests change; -o json prints which became which. Attestations of the source
(provenance, SBOM) are copied and go on naming the digests of the source;
signatures have to be made anew.

An image can say what its start reads, so that nodes fetch that before anybody
asks. --record runs the converted image in a container, without network, until
it is ready (Linux, root, /dev/fuse and runc are needed); --trace takes what was
recorded elsewhere, several times if need be; --trace-from takes it from an
earlier version. Together they are merged.

What was converted before is not built or sent again. DST gets its name when
everything is in place and not before. Credentials come from docker's config
and its helpers. Every flag can be set in the environment: --work-dir as
AIRSTREAM_WORK_DIR.

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 interrupted, run again; 4 the
registry can't be reached; 5 what was read is not what its digest promises;
7 no space.`

// convertFlags are the flags of one invocation.
type convertFlags struct {
	platforms  []string
	chunkSize  string
	groupSize  string
	workDir    string
	traces     []string
	traceFrom  string
	saveTrace  string
	prioritize bool
	record     recordFlags
	jobs       int
	rebuild    bool
	artifact   bool
	plainHTTP  bool
	noProgress bool
	output     string
}

func newConvertCommand(std streams) *cobra.Command {
	var f convertFlags
	c := &cobra.Command{
		Use:   "convert SRC DST",
		Short: "Convert an image for lazy starts",
		Long:  convertLong,
		Example: `  airstream convert registry.example/app:1.0 registry.example/app:1.0-lazy
  docker save app:1.0 -o app.tar && airstream convert docker-archive:app.tar oci:app
  airstream convert --platform linux/arm64 oci:app registry.example/app:arm -o json
  airstream convert --record '' --ready 'listening on' oci:app registry.example/app:1.0
  airstream convert --trace-from registry.example/app:1.0 oci:app registry.example/app:1.1`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return exitWith(exitUsage, fmt.Errorf("convert: got %d arguments, want SRC and DST; see airstream convert --help", len(args)))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if err := flagsFromEnv(c.Flags(), os.LookupEnv); err != nil {
				return exitWith(exitUsage, fmt.Errorf("convert: %w", err))
			}
			f.record.wanted = c.Flags().Changed("record")
			return runConvert(c.Context(), std, f, args[0], args[1])
		},
	}
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return exitWith(exitUsage, fmt.Errorf("convert: %w; see airstream convert --help", err))
	})
	fs := c.Flags()
	fs.StringSliceVar(&f.platforms, "platform", nil, "convert `OS/ARCH[/VARIANT]` only; one gives an image and no index")
	fs.StringVar(&f.chunkSize, "chunk-size", formatSize(chunk.DefaultSize), "cut files every `SIZE` bytes, like 64KiB")
	fs.StringVar(&f.groupSize, "group-size", "0", "let small files share up to `SIZE` bytes: smaller image, larger misses, and estargz's own verifier refuses it")
	fs.StringVar(&f.workDir, "work-dir", "", "`DIR` for scratch files, a few times the largest layer (default $TMPDIR or airstream/work in the user's cache)")
	fs.StringArrayVar(&f.traces, "trace", nil, "say in the image what a start reads: a `FILE` from airstream trace; may be given several times")
	fs.StringVar(&f.traceFrom, "trace-from", "", "say in the image what a start of an earlier version reads: a converted image at `PLACE`")
	fs.StringVar(&f.saveTrace, "save-trace", "", "write what was recorded, given and taken over to `FILE`")
	fs.BoolVar(&f.prioritize, "prioritize", false, "put the files that a start reads first in their layers: fewer requests, also from stargz nodes, but layers of their own for each trace")
	f.record.register(fs)
	fs.IntVar(&f.jobs, "jobs", 3, "work on `N` layers at once")
	fs.BoolVar(&f.rebuild, "rebuild", false, "build every layer, even if it was converted before")
	fs.BoolVar(&f.artifact, "artifact", true, "publish one table of contents for all layers, and what a start reads, beside the image: fewer requests and bytes before the first start")
	fs.BoolVar(&f.plainHTTP, "plain-http", false, "allow HTTP for registries without TLS")
	fs.BoolVar(&f.noProgress, "no-progress", false, "don't show progress")
	fs.StringVarP(&f.output, "output", "o", "table", "print the result as `table`, json or yaml")
	return c
}

// flagsFromEnv sets the flags that weren't given from AIRSTREAM_… variables.
func flagsFromEnv(fs *pflag.FlagSet, lookup func(string) (string, bool)) error {
	var errs []error
	fs.VisitAll(func(f *pflag.Flag) { errs = append(errs, flagFromEnv(f, fs, lookup)) })
	return errors.Join(errs...)
}

// flagFromEnv does that for one flag.
func flagFromEnv(f *pflag.Flag, fs *pflag.FlagSet, lookup func(string) (string, bool)) error {
	if f.Changed || f.Name == "help" {
		return nil
	}
	name := "AIRSTREAM_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
	if v, ok := lookup(name); ok && v != "" {
		if err := fs.Set(f.Name, v); err != nil {
			return fmt.Errorf("%s=%s: %w", name, v, err)
		}
	}
	return nil
}

func runConvert(ctx context.Context, std streams, f convertFlags, from, to string) error {
	o, err := f.options()
	if err != nil {
		return exitWith(exitUsage, fmt.Errorf("convert: %w", err))
	}
	lo := location.Options{PlainHTTP: f.plainHTTP, Jobs: f.jobs}
	src, err := location.Parse(from, lo)
	if err != nil {
		return exitWith(exitUsage, fmt.Errorf("convert: %w", err))
	}
	dst, err := location.Parse(to, lo)
	if err != nil {
		return exitWith(exitUsage, fmt.Errorf("convert: %w", err))
	}
	if f.workDir == "" {
		if o.WorkDir, err = defaultWorkDir(); err != nil {
			return exitWith(exitFailure, fmt.Errorf("convert: %w; say where with --work-dir", err))
		}
	}
	o.Log = slog.New(slog.NewTextHandler(std.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	c := conversion{std: std, flags: f, src: src, dst: dst, places: lo, o: o}
	r, err := c.run(ctx)
	if err != nil {
		return explainConvert(ctx, err, src, dst, o.WorkDir)
	}
	return exitWith(exitFailure, printConvert(std.out, f.output, from, to, r))
}

// conversion is one invocation under way.
type conversion struct {
	std      streams
	flags    convertFlags
	src, dst location.Location
	places   location.Options
	o        convert.Options
}

// run converts the image, and records it before if that was asked for.
func (c *conversion) run(ctx context.Context) (r *convert.Result, err error) {
	if c.flags.record.wanted {
		rec, err := c.record(ctx)
		if rec != nil {
			defer func() { err = errors.Join(err, rec.Close()) }()
		}
		if err != nil {
			return nil, err
		}
		c.o.Traces = append(c.o.Traces, rec.traces...)
		c.o.AtHand = rec.image
	}
	if r, err = c.convert(ctx, c.dst, c.o); err != nil {
		return nil, err
	}
	return r, c.saveTrace(r.Traces)
}

// convert converts the image to a place, and shows how far it is.
func (c *conversion) convert(ctx context.Context, to location.Location, o convert.Options) (*convert.Result, error) {
	if !c.flags.noProgress {
		var finish func()
		o.Progress, finish = newConvertProgress(c.std.err)
		defer finish() // before anything else is written to the terminal
	}
	if c.flags.traceFrom == "" {
		return convertImage(ctx, c.src, to, c.places, o)
	}
	place, err := location.Parse(c.flags.traceFrom, c.places)
	if err != nil {
		return nil, err
	}
	from, err := place.OpenSource(ctx, c.places, o.WorkDir)
	if err != nil {
		return nil, err
	}
	defer from.Close() //nolint:errcheck // only read from
	o.TraceFrom = from
	return convertImage(ctx, c.src, to, c.places, o)
}

// convertImage opens both ends, and leaves the destination as it was unless
// all went well.
func convertImage(ctx context.Context, from, to location.Location, lo location.Options, o convert.Options) (r *convert.Result, err error) {
	src, err := from.OpenSource(ctx, lo, o.WorkDir)
	if err != nil {
		return nil, err
	}
	defer src.Close() //nolint:errcheck // only read from
	dst, err := to.OpenDestination(lo, from)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	previous, err := to.OpenSource(ctx, lo, o.WorkDir)
	if err != nil {
		return nil, err
	}
	defer previous.Close() //nolint:errcheck // only read from
	return convert.Run(ctx, src, dst, previous, o)
}

func (f convertFlags) options() (convert.Options, error) {
	o := convert.Options{WorkDir: f.workDir, Jobs: f.jobs, Rebuild: f.rebuild, Prioritize: f.prioritize, WithoutArtifact: !f.artifact}
	if !slices.Contains([]string{"table", "json", "yaml"}, f.output) {
		return o, fmt.Errorf("--output %s: want table, json or yaml", f.output)
	}
	if f.jobs < 1 {
		return o, fmt.Errorf("--jobs %d: want 1 or more", f.jobs)
	}
	var err error
	if o.Layer.ChunkSize, err = parseSize(f.chunkSize); err != nil {
		return o, fmt.Errorf("--chunk-size %s: %w", f.chunkSize, err)
	}
	if o.Layer.GroupSize, err = parseSize(f.groupSize); err != nil {
		return o, fmt.Errorf("--group-size %s: %w", f.groupSize, err)
	}
	if o.Layer.ChunkSize == 0 {
		return o, errors.New("--chunk-size 0: want a size, like 64KiB")
	}
	if err := o.Layer.Validate(); err != nil {
		return o, err
	}
	for _, name := range f.traces {
		t, err := readTrace(name)
		if err != nil {
			return o, fmt.Errorf("--trace %s: %w", name, err)
		}
		o.Traces = append(o.Traces, t)
	}
	if err := f.checkTraces(); err != nil {
		return o, err
	}
	for _, s := range f.platforms {
		if s == "all" && len(f.platforms) == 1 {
			break
		}
		p, err := v1.ParsePlatform(s)
		if err != nil || p.OS == "" || p.Architecture == "" {
			return o, fmt.Errorf("--platform %s: want OS/ARCH or OS/ARCH/VARIANT, like linux/arm64", s)
		}
		o.Platforms = append(o.Platforms, *p)
	}
	if cache, err := os.UserCacheDir(); err == nil {
		o.Records = filepath.Join(cache, "airstream", "converted")
	}
	return o, nil
}

// defaultWorkDir prefers the cache to /tmp, which on many systems is memory.
func defaultWorkDir() (string, error) {
	if dir := os.Getenv("TMPDIR"); dir != "" {
		return dir, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return os.TempDir(), nil //nolint:nilerr // there is no home; /tmp is better than nothing
	}
	dir := filepath.Join(cache, "airstream", "work")
	return dir, os.MkdirAll(dir, 0o700)
}

// nextStep says below an error what to do.
func nextStep(err error, format string, args ...any) error {
	return fmt.Errorf("%w\n  "+format, append([]any{err}, args...)...)
}

// explainConvert gives an error its exit code and the next step.
func explainConvert(ctx context.Context, err error, src, dst location.Location, workDir string) error {
	step := func(code int, format string, args ...any) error {
		return exitWith(code, nextStep(err, format, args...))
	}
	host := src.Host()
	if strings.Contains(err.Error(), "write ") && dst.Host() != "" || host == "" {
		host = dst.Host()
	}
	if known, ok := errors.AsType[*exitError](err); ok && ctx.Err() == nil {
		return known
	}
	switch {
	case ctx.Err() != nil:
		err = fmt.Errorf("convert: interrupted: %w", context.Cause(ctx))
		return step(exitIncomplete, "%s was not changed. Run the same command again; layers that were sent are not sent again.", dst)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		return step(exitSpace, "A disk is full. Scratch files are in %s; another place can be given with --work-dir.", workDir)
	case errors.Is(err, location.ErrSyntax), errors.Is(err, location.ErrReadOnly):
		return step(exitUsage, "See airstream convert --help for the places that an image can go to.")
	case errors.Is(err, convert.ErrVerify):
		return step(exitVerify, "What was read is not what its digest promises: it is damaged at its source or was changed on the way. Push or save the image again.")
	case errors.Is(err, layer.ErrInvalid):
		return step(exitVerify, "The layer is damaged, or no runtime could unpack it either. Build or push the image again.")
	case errors.Is(err, convert.ErrIncomplete):
		return step(exitFailure, "Part of the image is missing where it was read. Push or save it again.")
	case errors.Is(err, location.ErrDenied):
		return step(exitFailure, "Log in with: docker login %s (a registry may also say this of an image that it doesn't have).", host)
	case errors.Is(err, location.ErrUnreachable):
		return step(exitLink, "Check the address and the network, then run the same command again; layers that were sent are not sent again.")
	case errors.Is(err, location.ErrNotFound):
		return step(exitFailure, "Check the name, the tag and the platform.")
	case errors.Is(err, location.ErrNotImage):
		return step(exitFailure, "Give a container image: a registry reference, oci:DIR, or docker-archive:FILE.")
	case errors.Is(err, convert.ErrUnsupported):
		return step(exitFailure, "Nothing was written to %s.", dst)
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return step(exitFailure, "The registry speaks HTTP without TLS. If that is meant to be so, add --plain-http.")
	case strings.Contains(err.Error(), "x509: "):
		return step(exitFailure, "The registry's certificate is not trusted here. Give its authority in SSL_CERT_FILE.")
	}
	return exitWith(exitFailure, err)
}
