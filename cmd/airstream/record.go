package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/pflag"

	"github.com/airstream-io/airstream/convert/location"
	"github.com/airstream-io/airstream/internal/trace"
	"github.com/airstream-io/airstream/record"
)

// recordFlags say whether and how convert records a start.
type recordFlags struct {
	wanted  bool
	command string
	ready   record.Ready
	runs    int
}

const maxRuns = 100

func (f *recordFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.command, "record", "", "run the image in a container and record what it reads: a `COMMAND`, in quotes, or '' for what the image says")
	fs.StringVar(&f.ready.Line, "ready", "", "with --record: it is ready when it writes a line that matches `REGEX`")
	fs.IntVar(&f.ready.TCP, "ready-tcp", 0, "with --record: it is ready when `PORT` takes connections")
	fs.DurationVar(&f.ready.For, "for", 0, "with --record: how long to record, or to wait until it is ready, like 20s (default 20s, or 10m for --ready and --ready-tcp)")
	fs.IntVar(&f.runs, "runs", 1, "with --record: record `N` starts and merge them")
}

func (f *recordFlags) check() error {
	if !f.wanted {
		if f.ready != (record.Ready{}) || f.runs != 1 {
			return errors.New("--ready, --ready-tcp, --for and --runs go with --record")
		}
		return nil
	}
	switch {
	case strings.HasPrefix(f.command, "-"):
		return fmt.Errorf("--record %s: want a command; '' runs what the image says", f.command)
	case f.ready.Line != "" && f.ready.TCP != 0:
		return errors.New("--ready and --ready-tcp don't go together")
	case f.ready.TCP < 0 || f.ready.TCP > 65535:
		return fmt.Errorf("--ready-tcp %d: want a port", f.ready.TCP)
	case f.ready.For < 0:
		return fmt.Errorf("--for %v: want a duration, like 20s", f.ready.For)
	case f.runs < 1 || f.runs > maxRuns:
		return fmt.Errorf("--runs %d: want 1 to %d", f.runs, maxRuns)
	}
	if _, err := regexp.Compile(f.ready.Line); err != nil {
		return fmt.Errorf("--ready: %w", err)
	}
	if _, err := splitWords(f.command); err != nil {
		return fmt.Errorf("--record %s: %w", f.command, err)
	}
	return nil
}

// recording is what comes of --record: the traces, and the image that was
// converted for them.
type recording struct {
	traces  []*trace.Trace
	image   location.Source
	scratch *record.Scratch
}

func (r *recording) Close() error {
	var err error
	if r.image != nil {
		err = r.image.Close()
	}
	return errors.Join(err, r.scratch.Close())
}

// record converts the image for this machine's platform to a layout in the work
// directory and runs it. The result is to be closed, also with an error, if it
// is not nil.
func (c *conversion) record(ctx context.Context) (*recording, error) {
	if err := record.Check(); err != nil {
		return nil, exitWith(exitFailure, fmt.Errorf("convert: --record: %w", err))
	}
	platform, err := hostPlatform(c.o.Platforms)
	if err != nil {
		return nil, exitWith(exitUsage, fmt.Errorf("convert: --record: %w", err))
	}
	scratch, err := record.OpenScratch(c.o.WorkDir)
	if err != nil {
		return nil, err
	}
	r := &recording{scratch: scratch}
	dir := filepath.Join(scratch.Dir(), "image")
	layout := location.InLayout(dir)
	o := c.o
	o.Platforms, o.Traces, o.Prioritize, o.WithoutArtifact = []v1.Platform{platform}, nil, false, true
	if !o.Rebuild { // to fetch a layer takes less than to build it
		earlier, err := c.dst.OpenSource(ctx, c.places, c.o.WorkDir)
		if err != nil {
			return r, err
		}
		defer earlier.Close() //nolint:errcheck // only read from
		o.AtHand = earlier
	}
	result, err := c.convert(ctx, layout, o)
	if errors.Is(err, location.ErrNotFound) {
		err = exitWith(exitFailure, nextStep(fmt.Errorf("convert: %w", err), "To be recorded, an image must be for %s. Give --trace with what was recorded elsewhere.", platform))
	}
	if err != nil {
		return r, err
	}
	if r.image, err = layout.OpenSource(ctx, location.Options{}, c.o.WorkDir); err != nil {
		return r, err
	}
	process, err := c.process(ctx, r.image)
	if err != nil {
		return r, err
	}
	var layers []record.Layer
	for _, l := range result.Manifests[0].Layers {
		path := filepath.Join(dir, "blobs", l.New.Algorithm, l.New.Hex)
		layers = append(layers, record.Layer{Path: path, Size: l.NewSize, TOCOffset: l.TOCOffset, TOCDigest: l.TOCDigest})
	}
	for range c.flags.record.runs {
		t, err := c.recordOnce(ctx, layers, process, scratch)
		if err != nil {
			return r, err
		}
		t.Image, t.Manifest = c.src.String(), result.Manifests[0].Old.String()
		r.traces = append(r.traces, t)
	}
	return r, nil
}

// recordOnce records one start and says what it was like.
func (c *conversion) recordOnce(ctx context.Context, layers []record.Layer, p record.Process, scratch *record.Scratch) (*trace.Trace, error) {
	const shown = 20 // of the last lines that the program wrote
	var lines []string
	t, report, err := record.Run(ctx, layers, p, c.flags.record.ready, record.Options{
		Worker:  []string{os.Args[0], recordWorkerVerb},
		Scratch: scratch,
		Log: func(line string) {
			if lines = append(lines, line); len(lines) > shown {
				lines = lines[1:]
			}
		},
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, record.ErrNotReady):
		said := "It wrote nothing."
		if len(lines) > 0 {
			said = "It wrote:\n    " + strings.Join(lines, "\n    ")
		}
		return nil, exitWith(exitFailure, fmt.Errorf("convert: %w\n  %s was not changed. It ran as %q, without network. %s", err, c.dst, p.Args, said))
	case err != nil:
		return nil, err
	}
	n, files := t.Bytes()
	_, err = fmt.Fprintf(c.std.err, "recorded a start: %s after %v; it read %s of %d files\n", report.Why, report.Took.Round(10*time.Millisecond), formatBytes(n), files)
	return t, err
}

// hostPlatform returns which platform of an image is recorded: this machine's.
// The others get the trace by the paths that they have in common.
func hostPlatform(chosen []v1.Platform) (v1.Platform, error) {
	host := v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	if len(chosen) == 0 {
		return host, nil
	}
	for _, p := range chosen {
		if p.OS == host.OS && p.Architecture == host.Architecture {
			return p, nil
		}
	}
	return host, fmt.Errorf("only %s runs here, and --platform leaves it out", host)
}

// process says what is run of the image: the command that was given, or what
// its config says.
func (c *conversion) process(ctx context.Context, src location.Source) (record.Process, error) {
	_, raw, err := src.Root(ctx)
	if err != nil {
		return record.Process{}, err
	}
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return record.Process{}, err
	}
	rc, err := src.Blob(ctx, m.Config)
	if err != nil {
		return record.Process{}, err
	}
	defer rc.Close() //nolint:errcheck // a reader
	var config v1.ConfigFile
	if err := json.NewDecoder(io.LimitReader(rc, m.Config.Size)).Decode(&config); err != nil {
		return record.Process{}, err
	}
	p := record.Process{Env: config.Config.Env, Dir: config.Config.WorkingDir, User: config.Config.User}
	if p.Args, err = splitWords(c.flags.record.command); err != nil {
		return record.Process{}, err
	}
	if len(p.Args) == 0 {
		p.Args = append(append(p.Args, config.Config.Entrypoint...), config.Config.Cmd...)
	}
	if len(p.Args) == 0 {
		return record.Process{}, exitWith(exitUsage, errors.New("convert: --record: the image doesn't say what to run; give a command: --record '/bin/app --flag'"))
	}
	return p, nil
}
