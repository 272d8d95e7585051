package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"filippo.io/age"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/airstream-io/airstream/convert/location"
	"github.com/airstream-io/airstream/internal/bundle"
	"github.com/airstream-io/airstream/internal/inventory"
	"github.com/airstream-io/airstream/internal/units"
	"github.com/airstream-io/airstream/pack"
)

// createFlags are the flags of one invocation.
type createFlags struct {
	list       string
	have       []string
	files      []string
	platforms  []string
	sign       string
	recipients []string
	rate       string
	dryRun     bool
	blobs      bool
	referrers  bool
	workDir    string
	plainHTTP  bool
	noProgress bool
	out        string
}

func (f *createFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringSliceVar(&f.platforms, "platform", nil, "only `OS/ARCH[/VARIANT]` of images for several (default: all)")
	fs.StringVar(&f.sign, "sign", "", "sign it with the minisign secret key in `FILE`")
	fs.StringArrayVarP(&f.recipients, "recipient", "r", nil, "encrypt it to an age `RECIPIENT`, or to those in a file; may be given several times")
	fs.StringVar(&f.rate, "rate", "", "reckon with a link of `RATE`, like 256kbit")
	fs.BoolVar(&f.dryRun, "dry-run", false, "write nothing, and say how large it would be")
	fs.StringVar(&f.workDir, "work-dir", "", "`DIR` for scratch files, as large as the layers and the bundle (default $TMPDIR or airstream/work in the user's cache)")
	fs.BoolVar(&f.plainHTTP, "plain-http", false, "allow HTTP for registries without TLS")
	fs.BoolVar(&f.noProgress, "no-progress", false, "don't show progress")
	fs.StringVarP(&f.out, "output", "o", "", "write the bundle to `FILE`; - is standard output")
}

func newBundleCreateCommand(std streams) *cobra.Command {
	var f createFlags
	cmd := &cobra.Command{
		Use:   "create {REF… | -f FILE} -o FILE",
		Short: "Write images into a bundle, less what the receivers have",
		Long: `Write images into a bundle. REF is an image in a registry. NAME=PLACE takes it from
another place, oci:DIR:TAG say, and has it called NAME on the node; NAME:TAG@sha256:…
takes what has that digest and gives it the tag. Artifacts that are no images, charts
say, go in as well.

With --to-inventory, what all receivers have is left out: on each, airstream
inventory export writes one. What they have is looked up in the registry.

The bundle begins with what matters most: manifests, tables of contents, what a
recorded start reads in its order, and then the rest.

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 interrupted; 4 the registry can't be
reached; 5 what was read is not what its digest promises; 7 no space.`,
		Example: `  airstream bundle create -o update.bundle registry.example/app:1.1
  airstream bundle create -f images.txt --to-inventory ship.inventory --sign minisign.key -o ship.bundle
  airstream bundle create --dry-run --rate 256kbit --to-inventory ship.inventory registry.example/app:1.1
  airstream bundle create registry.example/app:1.0=oci:app -o - | ssh node airstream bundle apply --activate -`,
		PreRunE: func(c *cobra.Command, _ []string) error {
			return exitWith(exitUsage, flagsFromEnv(c.Flags(), os.LookupEnv))
		},
		RunE: func(c *cobra.Command, refs []string) error {
			return bundleError(runBundleCreate(c.Context(), std, f, refs))
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&f.list, "file", "f", "", "read references from `FILE`, one a line, # begins a comment; - is standard input")
	fs.StringArrayVar(&f.have, "to-inventory", nil, "leave out what the inventory in `FILE` has; may be given several times: then what all of them have")
	fs.StringArrayVar(&f.files, "add", nil, "put a plain file in as well: `FILE`, or NAME=FILE; may be given several times")
	fs.BoolVar(&f.blobs, "blobs", false, "put in the layers' own bytes, too, so that bundle export can write them; nodes make no use of these")
	fs.BoolVar(&f.referrers, "referrers", true, "put in what refers to the images, signatures and SBOMs, behind all else")
	f.register(cmd)
	return cmd
}

func runBundleCreate(ctx context.Context, std streams, f createFlags, refs []string) error {
	if f.list != "" {
		listed, err := readLines(f.list, std.in, func(string) error { return nil })
		if err != nil {
			return exitWith(exitUsage, err)
		}
		refs = append(refs, listed...)
	}
	if len(refs) == 0 && len(f.files) == 0 {
		return exitWith(exitUsage, errors.New("name images, or a file of them with -f"))
	}
	c := creation{std: std, flags: f}
	defer c.close()
	for _, ref := range refs {
		if err := c.image(ctx, ref); err != nil {
			return err
		}
	}
	return c.run(ctx)
}

// creation is one bundle that is being made.
type creation struct {
	std     streams
	flags   createFlags
	order   pack.Order
	sources []location.Source
}

func (c *creation) close() {
	for _, s := range c.sources {
		_ = s.Close() // only read from
	}
}

func (c *creation) places() location.Options {
	return location.Options{PlainHTTP: c.flags.plainHTTP}
}

// run writes the bundle.
func (c *creation) run(ctx context.Context) (err error) {
	f, o := &c.flags, &c.order
	var rate units.BitRate
	if f.rate != "" {
		if rate, err = units.ParseBitRate(f.rate); err != nil || rate == 0 {
			return exitWith(exitUsage, fmt.Errorf("--rate %s: want a rate like 256kbit", f.rate))
		}
	}
	if (f.out == "") != f.dryRun {
		return exitWith(exitUsage, errors.New("say where to write it with -o FILE, or how large it would be with --dry-run"))
	}
	if err := c.prepare(ctx); err != nil {
		return err
	}
	if !f.noProgress {
		o.Progress = func(doing string) { _, _ = fmt.Fprintln(c.std.err, doing) }
	}
	s, err := c.write(ctx)
	if err != nil {
		return err
	}
	size := s.size
	words := fmt.Sprintf("bundle %s: %s in %s, %s of content", s.ID, units.Short(size), count(len(s.Contents.Records), "record"), units.Short(s.Contents.Raw))
	if s.Skipped > 0 {
		words += fmt.Sprintf("; %s left out, which the receivers have", units.Short(s.Skipped))
	}
	if rate > 0 {
		words += fmt.Sprintf("; %s at %s", units.Span(units.Transfer(size, float64(rate.BytesPerSecond()))), f.rate)
	}
	to := c.std.err
	if f.dryRun {
		to = c.std.out
	}
	_, err = fmt.Fprintln(to, words)
	return err
}

// prepare reads what the flags name.
func (c *creation) prepare(ctx context.Context) (err error) {
	f, o := &c.flags, &c.order
	o.Platforms, o.Blobs, o.Referrers = f.platforms, f.blobs, f.referrers
	if o.WorkDir = f.workDir; o.WorkDir == "" {
		if o.WorkDir, err = defaultWorkDir(); err != nil {
			return err
		}
	}
	if f.sign != "" {
		if o.Bundle.Sign, err = bundle.ReadSigner(f.sign, askPassword(c.std, f.sign)); err != nil {
			return exitWith(exitUsage, err)
		}
	}
	for _, r := range f.recipients {
		list, err := parseRecipients(r)
		if err != nil {
			return exitWith(exitUsage, fmt.Errorf("--recipient %s: %w", r, err))
		}
		o.Bundle.Recipients = append(o.Bundle.Recipients, list...)
	}
	for _, name := range f.have {
		if err := c.receiver(ctx, name); err != nil {
			return err
		}
	}
	for _, arg := range f.files {
		if err := c.file(arg); err != nil {
			return exitWith(exitUsage, err)
		}
	}
	return nil
}

// parseRecipients reads a recipient, or a file of them.
func parseRecipients(s string) ([]age.Recipient, error) {
	if strings.HasPrefix(s, "age1") {
		return age.ParseRecipients(strings.NewReader(s))
	}
	f, err := os.Open(s)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // a reader
	return age.ParseRecipients(f)
}

// image adds an image to the order: REF or NAME=PLACE.
func (c *creation) image(ctx context.Context, arg string) error {
	called, place, given := strings.Cut(arg, "=")
	if !given {
		place = arg
		if called, _, given = strings.Cut(arg, "@"); given && strings.Contains(called[strings.LastIndexByte(called, '/')+1:], ":") {
			place = called[:strings.LastIndexByte(called, ':')] + arg[len(called):]
		} else {
			called = arg
		}
	}
	if strings.HasPrefix(called, "oci:") || strings.HasPrefix(called, "docker-archive:") {
		return exitWith(exitUsage, fmt.Errorf("%s: say what it is to be called: registry.example/app:1.0=%s", arg, arg))
	}
	src, ref, err := parseRef(called)
	if err != nil {
		return err
	}
	title := src.Host + "/" + src.Repo + ":" + ref
	if digest.Digest(ref).Validate() == nil {
		title = src.Host + "/" + src.Repo + "@" + ref
	}
	if slices.ContainsFunc(c.order.Images, func(i pack.Image) bool { return i.Name == title }) {
		return nil // named twice
	}
	s, err := c.open(ctx, place)
	if err != nil {
		return err
	}
	c.order.Images = append(c.order.Images, pack.Image{Name: title, Source: s})
	return nil
}

// packSource is what pack needs of a place.
type packSource interface {
	location.Source
	pack.Source
}

func (c *creation) open(ctx context.Context, place string) (packSource, error) {
	l, err := location.Parse(place, c.places())
	if err != nil {
		return nil, err
	}
	s, err := l.OpenSource(ctx, c.places(), c.order.WorkDir)
	if err != nil {
		return nil, err
	}
	c.sources = append(c.sources, s)
	p, ok := s.(packSource)
	if !ok {
		return nil, exitWith(exitUsage, fmt.Errorf("%s: bundles are made from registries and OCI layouts", place))
	}
	return p, nil
}

// receiver adds what an inventory names.
func (c *creation) receiver(ctx context.Context, file string) error {
	images, err := readInventory(file)
	if err != nil {
		return exitWith(exitVerify, err)
	}
	held := make([]pack.Held, 0, len(images))
	for _, img := range images {
		s, err := c.open(ctx, img.Name())
		if err != nil {
			return err
		}
		held = append(held, pack.Held{Name: img.Name(), Source: s})
	}
	c.order.Receivers = append(c.order.Receivers, held)
	return nil
}

func readInventory(file string) ([]inventory.Image, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, inventory.MaxSize+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	images, err := inventory.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return images, nil
}

// file adds a plain file: FILE or NAME=FILE.
func (c *creation) file(arg string) error {
	called, path, given := strings.Cut(arg, "=")
	if !given {
		called, path = filepath.Base(arg), arg
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // a reader
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", path)
	}
	if err != nil {
		return err
	}
	d, err := digest.FromReader(f)
	if err != nil {
		return err
	}
	c.order.Files = append(c.order.Files, pack.File{
		File: bundle.File{Path: filepath.ToSlash(called), Digest: d, Size: info.Size(), Mode: uint32(info.Mode().Perm())},
		Open: func() (io.ReadCloser, error) { return os.Open(path) },
	})
	return nil
}

// created is a bundle that was written.
type created struct {
	pack.Summary
	size int64 // bytes
}

// write makes the bundle, complete or not at all.
func (c *creation) write(ctx context.Context) (s created, err error) {
	counted := &byteCounter{w: io.Discard}
	defer func() { s.size = counted.n }()
	switch {
	case c.flags.dryRun:
	case c.flags.out == "-":
		counted.w = c.std.out
	default:
		f, err := os.CreateTemp(filepath.Dir(c.flags.out), ".airstream-bundle-")
		if err != nil {
			return s, err
		}
		counted.w = f
		s.Summary, err = pack.Write(ctx, c.order, counted)
		if err == nil {
			err = errors.Join(f.Chmod(0o644), f.Sync())
		}
		if err = errors.Join(err, f.Close()); err == nil {
			err = os.Rename(f.Name(), c.flags.out)
		}
		if err != nil {
			return s, errors.Join(err, os.Remove(f.Name()))
		}
		return s, nil
	}
	s.Summary, err = pack.Write(ctx, c.order, counted)
	return s, err
}

// byteCounter counts what is written.
type byteCounter struct {
	w io.Writer
	n int64
}

func (c *byteCounter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
