package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/airstream-io/airstream/test/rig/images"
	"github.com/airstream-io/airstream/test/rig/link"
	"github.com/airstream-io/airstream/test/rig/site"
	"github.com/airstream-io/airstream/test/rig/tools"
)

// contender is a way to get a workload started: one entry here is all that a new
// one takes.
type contender struct {
	name  string // in flags and results
	title string // in tables
	color string // in the picture
	tag   string // under which its images are in the registry; see shore.publish
	bound bool   // no way to start anything, but what none can do better than

	options func(*site.Options)                           // what its site needs, if anything
	begin   func(ctx context.Context, s *site.Site) error // what it needs on the node beside the daemon, if anything
	// settle makes it forget, between the start of the older version and that of
	// the newer, how the link was for the first, if it remembers.
	settle func(ctx context.Context, s *site.Site) error
	start  func(ctx context.Context, s *site.Site, i start) (site.Launch, error)
	// get measures a bound.
	get func(ctx context.Context, b *bench, c cell) (result, error)
}

// start is an image to be started.
type start struct {
	tag     string
	img     *images.Image
	lacking int64         // bytes of the layers that the node has none of
	limit   time.Duration // of a full pull
}

// contenders are all, in the order of the table.
var contenders = []contender{
	{
		name: "overlayfs", title: "full pull, overlayfs", color: "#9a9a9a", tag: plainTag,
		start: func(ctx context.Context, s *site.Site, i start) (site.Launch, error) {
			return s.FullUpdate(ctx, i.tag, i.img, i.lacking, i.limit)
		},
	},
	{
		name: "stargz", title: "stargz-snapshotter", color: "#d98a3d", tag: stargzTag,
		options: func(o *site.Options) { o.NoDaemon = true },
		begin: func(ctx context.Context, s *site.Site) error {
			program, err := buildStargz(ctx)
			if err != nil {
				return err
			}
			return s.StartOther(ctx, program, s.Front.Host())
		},
		start: func(ctx context.Context, s *site.Site, i start) (site.Launch, error) {
			return s.OtherStart(ctx, i.tag, i.img)
		},
	},
	{
		name: "airstream", title: "Airstream, no proxy", color: "#2f6fb3", tag: tracedTag,
		settle: func(ctx context.Context, s *site.Site) error { return s.UpgradeDaemon(ctx) },
		start: func(ctx context.Context, s *site.Site, i start) (site.Launch, error) {
			return s.LazyStart(ctx, i.tag, i.img)
		},
	},
	{
		name: "proxy", title: "Airstream, with proxy", color: "#2e9e63", tag: tracedTag,
		options: func(o *site.Options) { o.Proxy = &site.Proxy{} },
		begin:   func(ctx context.Context, s *site.Site) error { return s.AwaitProxy(ctx) },
		settle: func(ctx context.Context, s *site.Site) error {
			return errors.Join(s.UpgradeDaemon(ctx), s.AwaitProxy(ctx))
		},
		start: func(ctx context.Context, s *site.Site, i start) (site.Launch, error) {
			return s.LazyStart(ctx, i.tag, i.img)
		},
	},
	{name: oneGet, title: "one GET of what is read", color: "#111111", bound: true, get: getHot},
}

// oneGet is the bound that is measured; the other is computed from it.
const oneGet = "get"

func contenderNames() (names []string) {
	for _, c := range contenders {
		names = append(names, c.name)
	}
	return names
}

func contenderNamed(name string) contender {
	for _, c := range contenders {
		if c.name == name {
			return c
		}
	}
	return contender{}
}

// measure measures one start. A contender that fails is a result; an error is
// the rig's.
func (b *bench) measure(ctx context.Context, c cell) (result, error) {
	who := contenderNamed(c.Contender)
	r := result{cell: c}
	limited, cancel := context.WithTimeout(ctx, b.patience)
	defer cancel()
	var err error
	if who.bound {
		r, err = who.get(limited, b, c)
	} else {
		var starts []start
		if starts, err = b.starts(ctx, c, who.tag); err == nil {
			r.Launch, err = b.onSite(limited, c, who, starts)
		}
	}
	var failed notReady
	switch {
	case ctx.Err() != nil:
		return r, ctx.Err()
	case errors.As(err, &failed):
		r.Launch = site.Launch{}
		r.Failed, _, _ = strings.Cut(failed.Error(), "\n")
		fmt.Fprintf(b.words, "%s failed: %v\n", c, err) //nolint:errcheck // progress only
		return r, nil
	}
	return r, err
}

// starts publishes what a cell starts: the newer version, after the older one if
// it is an update.
func (b *bench) starts(ctx context.Context, c cell, tag string) (list []start, err error) {
	older, newer := c.versions()
	steps := []string{newer}
	if c.Kind == update {
		steps = []string{older, newer}
	}
	for i, name := range steps {
		img, err := b.shore.publish(ctx, name, tag)
		if err != nil {
			return nil, fmt.Errorf("publish %s:%s: %w", name, tag, err)
		}
		st := start{tag: name + ":" + tag, img: img, lacking: img.Compressed, limit: b.limit}
		if i > 0 {
			if st.lacking, err = lacking(list[0].img, img); err != nil {
				return nil, err
			}
		}
		list = append(list, st)
	}
	return list, nil
}

// notReady says that the start that was to be measured failed.
type notReady struct{ error }

func (n notReady) Unwrap() error { return n.error }

func (b *bench) onSite(ctx context.Context, c cell, who contender, starts []start) (_ site.Launch, err error) {
	p, err := c.profile()
	if err != nil {
		return site.Launch{}, err
	}
	opts := site.Options{Profile: p, Seed: uint64(c.Run), Registry: b.shore.reg, Airstream: b.shore.binary, Config: "[fetch]\nbackground = false\n"}
	if c.Kind == update {
		opts.Profile = link.Direct() // until the older version has started
	}
	if who.options != nil {
		who.options(&opts)
	}
	s, err := site.Start(ctx, opts)
	if err != nil {
		return site.Launch{}, err
	}
	defer func() { err = errors.Join(err, s.Close(context.WithoutCancel(ctx))) }()
	// What the kernel has learned of a fast link must not help on a slow one.
	for _, ns := range []interface {
		SetSysctl(name, value string) error
	}{s.Link.Shore, s.Link.Node} {
		if err := ns.SetSysctl("net.ipv4.tcp_no_metrics_save", "1"); err != nil {
			return site.Launch{}, err
		}
	}
	if who.begin != nil {
		if err := who.begin(ctx, s); err != nil {
			return site.Launch{}, err
		}
	}
	if c.Kind == update {
		if _, err := who.start(ctx, s, starts[0]); err != nil {
			return site.Launch{}, notReady{fmt.Errorf("the older version: %w", err)}
		}
		if _, err := s.Link.SetProfile(ctx, p); err != nil {
			return site.Launch{}, err
		}
		if who.settle != nil {
			if err := who.settle(ctx, s); err != nil {
				return site.Launch{}, err
			}
		}
	}
	launch, err := who.start(ctx, s, starts[len(starts)-1])
	if err != nil {
		if log, lerr := s.Log(); lerr == nil {
			err = fmt.Errorf("%w\nthe daemon's log:\n%s", err, log)
		}
		return launch, notReady{fmt.Errorf("%w%s", err, s.OtherLog())}
	}
	stats, err := s.Link.Stats(ctx)
	if err == nil && stats.Down.KernelDropped+stats.Up.KernelDropped > 0 {
		err = errors.New("the machine was too busy to emulate the link; nothing was kept")
	}
	return launch, err
}

// buildStargz builds stargz-snapshotter from the module of its own that
// test/stargz is.
func buildStargz(ctx context.Context) (string, error) {
	dir, err := tools.CacheDir("build")
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // programs
		return "", err
	}
	path := filepath.Join(dir, "stargz")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, ".")
	cmd.Dir = filepath.Join("test", "stargz")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-mod=readonly")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build stargz-snapshotter: %w\n%s", err, out)
	}
	return path, nil
}
