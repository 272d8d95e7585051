package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/airstream-io/airstream/test/rig/images"
	"github.com/airstream-io/airstream/test/rig/link"
	"github.com/airstream-io/airstream/test/rig/node"
	"github.com/airstream-io/airstream/test/rig/registry"
	"github.com/airstream-io/airstream/test/rig/site"
	"github.com/airstream-io/airstream/test/rig/tools"
)

// fullPullLimit is how long the full pull may show its slowness.
const fullPullLimit = time.Minute

// Names of the image on shore.
const (
	plain  = "demo/python:plain"  // as everybody builds it
	lazy   = "demo/python:lazy"   // converted
	traced = "demo/python:traced" // converted, with the record of a start
)

// quietly is for the daemon: what crosses in the demo is what somebody waits
// for or asked for, so that its figures mean something.
const quietly = "[fetch]\nbackground = false\n"

// demo is what is running, and what was measured.
type demo struct {
	t     *timeline
	cache string
	dir   string // for the trace
	marks []string

	vsat   link.Profile
	reg    *registry.Registry
	binary string
	sites  []*site.Site // that are running
	img    *images.Image

	full, first, hot site.Launch
	dark             time.Duration
}

func (d *demo) play(ctx context.Context) error {
	for _, scene := range []func(context.Context) error{
		d.prepare, d.convert, d.record, d.race, d.prefetch, d.startDark,
	} {
		if err := scene(ctx); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return d.explain(err)
		}
	}
	d.summary()
	return nil
}

// explain adds what the daemons have logged to an error.
func (d *demo) explain(err error) error {
	for _, s := range d.sites {
		if log, lerr := s.Log(); lerr == nil {
			err = fmt.Errorf("%w\nThe daemon's log:\n%s", err, log)
		}
	}
	return err
}

// close takes away what is running.
func (d *demo) close(ctx context.Context) error {
	err := d.leave(ctx)
	if d.reg != nil {
		err = errors.Join(err, d.reg.Close())
	}
	if d.dir != "" {
		err = errors.Join(err, os.RemoveAll(d.dir))
	}
	return err
}

// visit goes to a fresh node, which has nothing yet, behind a link of its own.
func (d *demo) visit(ctx context.Context, p link.Profile) (*site.Site, error) {
	s, err := site.Start(ctx, site.Options{Profile: p, Seed: 1, Registry: d.reg, Airstream: d.binary, Config: quietly})
	if err != nil {
		return nil, err
	}
	d.sites = append(d.sites, s)
	return s, d.mark(s)
}

// leave takes all nodes away.
func (d *demo) leave(ctx context.Context) error {
	var errs []error
	for _, s := range d.sites {
		errs = append(errs, s.Close(context.WithoutCancel(ctx)))
	}
	d.sites = nil
	return errors.Join(errs...)
}

func (d *demo) prepare(ctx context.Context) (err error) {
	var ok bool
	if d.vsat, ok = link.ProfileNamed("geo-vsat"); !ok {
		return errors.New("the profile geo-vsat is gone")
	}
	if d.cache, err = tools.CacheDir(); err != nil {
		return err
	}
	d.t.title("1. What is set up")
	d.t.say(`Two sides on this machine, cut off from everything else: a "shore" with a registry
		(the server that keeps container images), and a "node" far away, with containerd
		(the program that pulls images and runs containers on most Kubernetes nodes).`)
	d.t.more(`Between them is an emulated satellite link, like a ship's: an answer takes at least
		600 ms, 2 Mbit/s arrive at most, and 1%% of all packets are lost. The link is the only
		thing here that is not real.`)
	if d.binary, err = site.Build(ctx); err != nil {
		return err
	}
	if d.dir, err = os.MkdirTemp("", "airdemo-"); err != nil {
		return err
	}
	d.marks = append(d.marks, d.dir)
	began := time.Now()
	d.t.say("Getting the image ready: Debian with Python and a web application. (The first time it is built from Debian packages, which takes a few minutes.)")
	if d.img, err = images.Build(ctx, imageName); err != nil {
		return err
	}
	d.t.say("The image has %d layers and %s, compressed; that took %s.", d.img.Layers, megabytes(d.img.Compressed), span(time.Since(began)))
	d.t.more("What counts from here on: how long until the application prints its ready line, and how many bytes had to cross for it.")
	store, err := tools.CacheDir("registry")
	if err != nil {
		return err
	}
	d.reg, err = registry.Start(ctx, registry.Options{Dir: store})
	return err
}

func (d *demo) convert(ctx context.Context) error {
	oci, err := d.img.OCI()
	if err != nil {
		return err
	}
	if _, err := d.reg.Push(ctx, plain, oci); err != nil {
		return err
	}
	d.t.title("2. Convert the image, on shore, once")
	d.t.say("airstream convert %s %s", plain, lazy)
	d.t.more(`The result is an image that every container runtime can still run as usual. But
		each piece of each file in it can now be fetched alone, and checked alone.`)
	began := time.Now()
	out, err := site.Convert(ctx, d.binary, d.reg, plain, lazy)
	if err != nil {
		return err
	}
	again := ""
	if !strings.Contains(out, "built") {
		again = " (An earlier run had converted it: nothing is built or sent twice.)"
	}
	d.t.say("Converted in %s.%s", span(time.Since(began)), again)
	return nil
}

// record notes what a start reads, on a node that has a fast link: in CI, say.
func (d *demo) record(ctx context.Context) error {
	d.t.title("3. Note what a start reads, on shore, once")
	s, err := d.visit(ctx, link.Direct())
	if err != nil {
		return err
	}
	d.t.say("The converted image is started once on a node that is close to the registry, in CI for example, and Airstream notes which pieces of which files are read (airstream trace).")
	if _, err := s.LazyStart(ctx, lazy, d.img); err != nil {
		return err
	}
	file := filepath.Join(d.dir, "trace.json")
	if _, err := s.Run(ctx, "trace", s.Ref(lazy), "-o", file); err != nil {
		return err
	}
	if _, err := site.Convert(ctx, d.binary, d.reg, plain, traced, "--trace", file); err != nil {
		return err
	}
	d.t.say("The image was converted again with that note in it (airstream convert --trace); its layers stay as they are.")
	return d.leave(ctx)
}

// race starts the application in three ways at the same time, each on a node and
// a link of its own. The last node stays.
func (d *demo) race(ctx context.Context) error {
	d.t.title("4. Three ways to start it, side by side")
	var nodes [3]*site.Site
	for i := range nodes {
		var err error
		if nodes[i], err = d.visit(ctx, d.vsat); err != nil {
			return err
		}
	}
	d.t.say("Three nodes that have nothing yet start the application at the same moment. Each has a satellite link to itself.")
	d.t.more("A pulls as nodes do today: all %s have to arrive before the container can start. To save your time it is stopped after %s, and its end is computed.", megabytes(d.img.Compressed), span(fullPullLimit))
	d.t.more("B has Airstream and pulls the converted image. Only the layers' lists of files have to cross before the container starts; then each read of a file waits until just that piece is here.")
	d.t.more("C does the same with the image that has the note in it: what the start needs is on its way before anybody asks for it.")
	var over [3]atomic.Bool
	progress := func(ctx context.Context) (string, error) {
		var parts []string
		for i, s := range nodes {
			if over[i].Load() {
				continue
			}
			st, err := s.Link.Stats(ctx)
			if err != nil {
				return "", err
			}
			parts = append(parts, fmt.Sprintf("%c: %s", 'A'+i, megabytes(int64(st.Down.Delivered.Bytes))))
		}
		return "crossed so far: " + strings.Join(parts, ", "), nil
	}
	return d.t.during(ctx, progress, func() error {
		group, ctx := errgroup.WithContext(ctx)
		for i, start := range []func() error{
			func() (err error) {
				d.full, err = nodes[0].FullPull(ctx, plain, d.img, fullPullLimit)
				return err
			},
			func() (err error) {
				d.first, err = nodes[1].LazyStart(ctx, lazy, d.img)
				return err
			},
			func() (err error) {
				d.hot, err = nodes[2].LazyStart(ctx, traced, d.img)
				return err
			},
		} {
			group.Go(func() error {
				if err := start(); err != nil {
					return err
				}
				over[i].Store(true)
				d.t.say("%s", d.arrival(i))
				return nil
			})
		}
		return group.Wait()
	})
}

// arrival says how a node of the race has ended.
func (d *demo) arrival(i int) string {
	l := []*site.Launch{&d.full, &d.first, &d.hot}[i]
	if l.Computed {
		return fmt.Sprintf("%c: stopped. At the rate until now all of it takes about %s.", 'A'+i, span(l.Ready))
	}
	return fmt.Sprintf("%c: the application is ready after %s, when %s had crossed.", 'A'+i, span(l.Ready), megabytes(l.Down))
}

// node is the last one of the race.
func (d *demo) node() *site.Site { return d.sites[len(d.sites)-1] }

func (d *demo) prefetch(ctx context.Context) error {
	d.t.title("5. Before it gets dark: fetch the rest")
	port, err := link.Parse("rtt=50ms,down=100mbit,up=20mbit,name=port")
	if err != nil {
		return err
	}
	s := d.node()
	before, err := s.Link.SetProfile(ctx, port)
	if err != nil {
		return err
	}
	d.t.say("The ship is in port: node C has a fast link now (50 ms, 100 Mbit/s), to save your time. \"airstream prefetch\" brings what is still missing of the image.")
	began := time.Now()
	if _, err := s.Run(ctx, "prefetch", s.Ref(traced)); err != nil {
		return err
	}
	after, err := s.Link.Stats(ctx)
	if err != nil {
		return err
	}
	d.t.say("The image is complete after %s and %s. What had crossed before did not cross again.", span(time.Since(began)), megabytes(int64(after.Down.Delivered.Bytes-before.Down.Delivered.Bytes)))
	return nil
}

func (d *demo) startDark(ctx context.Context) error {
	d.t.title("6. Dark: the link is gone")
	s := d.node()
	if _, err := s.Link.Cut(ctx); err != nil {
		return err
	}
	d.t.say("The link is cut. Airstream's daemon and containerd are stopped and started again.")
	for _, step := range []func(context.Context) error{s.StopDaemon, s.StartDaemon, s.Node.Restart} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	// The pull asks what the tag means, as kubelet does with "always pull".
	began := time.Now()
	if err := s.Node.PullTransfer(ctx, s.Ref(traced), node.Airstream); err != nil {
		return err
	}
	pulled := time.Since(began)
	result, err := s.Node.RunUntil(ctx, node.Run{Ref: s.Ref(traced), Snapshotter: node.Airstream, Ready: d.img.Ready()})
	if err != nil {
		return err
	}
	d.dark = pulled + result.Ready
	d.t.say("The same image was pulled and started again, without any link. Ready after %s: %s to find that nobody answers and that all is here, %s to start.", span(d.dark), span(pulled), span(result.Ready))
	return nil
}

func (d *demo) summary() {
	d.t.title("In short: the image %s, %s, over 600 ms, 2 Mbit/s and 1%% loss", d.img.Name, megabytes(d.img.Compressed))
	row := func(cells ...any) { d.t.raw(fmt.Sprintf("  %-46s%12s%10s%9s", cells...)) }
	about := ""
	if d.full.Computed {
		about = "≈ "
	}
	row("", "until ready", "crossed", "faster")
	row("full pull, as today", about+span(d.full.Ready), about+megabytes(d.full.Down), "")
	for _, r := range []struct {
		what string
		l    site.Launch
	}{{"Airstream, first start", d.first}, {"Airstream, first start, with a trace", d.hot}} {
		row(r.what, span(r.l.Ready), megabytes(r.l.Down), fmt.Sprintf("%.1f ×", d.full.Ready.Seconds()/r.l.Ready.Seconds()))
	}
	row("Airstream, complete; link cut, all restarted", span(d.dark), "nothing", "")
	if d.full.Computed {
		d.t.raw("  ≈ is computed from the first " + span(fullPullLimit) + ".")
	}
	d.t.raw("  Each line is one run. `make bench` measures more images.")
	d.t.raw("")
}
