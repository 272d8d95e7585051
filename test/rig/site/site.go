// Package site puts the whole of it on one machine: a shore with a registry, an
// emulated link, and a node with containerd and the Airstream daemon under
// test, each in its own network namespace and its own process.
//
// It is what the end-to-end tests, the demo and the benchmarks share. What runs
// is what users run: the airstream binary, built from this module, with a
// configuration file; containerd with proxy_plugins and hosts.toml; a registry
// behind a front whose manners a caller chooses. Nothing is left when a Site is
// closed, and what a killed run has left is swept away by the next.
package site

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/airstream-io/airstream/test/rig/link"
	"github.com/airstream-io/airstream/test/rig/netns"
	"github.com/airstream-io/airstream/test/rig/node"
	"github.com/airstream-io/airstream/test/rig/registry"
	"github.com/airstream-io/airstream/test/rig/tools"
)

// Needs are the programs and features of the machine that a Site takes.
var Needs = []string{tools.Root, tools.FUSE, tools.TUN, tools.Overlay, tools.NetNS, "containerd", "ctr", "containerd-shim-runc-v2", "registry", "runc"}

// Options describe a Site. The zero value is a site next door: no delay, no
// loss, a plain registry, CRI with Airstream.
type Options struct {
	Profile link.Profile          // zero: link.Direct
	Seed    uint64                // of the link's losses
	Front   registry.FrontOptions // Listen is set by Start
	// Registry is the registry to stand behind; nil: one of its own, empty.
	Registry *registry.Registry
	// Password is what the daemon takes for Front.Password; empty: the same.
	Password string
	// NoCredentials leaves the daemon without any for the registry.
	NoCredentials bool
	// Config is TOML that is added to the daemon's configuration.
	Config string
	// Airstream is the daemon's binary; empty: Build's.
	Airstream string
	// NoDaemon leaves the daemon to StartDaemon.
	NoDaemon bool
	// Fronts are more registries on shore, with manners of their own, before
	// the same content; see Site.Fronts.
	Fronts []registry.FrontOptions
	// Mirrored tells the daemon that Fronts are mirrors of Front, to be asked
	// before it and in their order.
	Mirrored bool
	// Name is how the node knows the registry, in place of an address: see
	// test/rig/dns for how it resolves there. Not with TLS.
	Name string
	// Disk, if its size is set, is a file system of its own for the daemon's
	// root directory.
	Disk Disk
	// Proxy, if set, is a proxy on shore that the node's daemon asks.
	Proxy *Proxy
}

// Site is a running site.
type Site struct {
	Link     *link.Link
	Registry *registry.Registry
	Front    *registry.Front
	Fronts   []*registry.Front // those of Options.Fronts
	Node     *node.Node
	// ProxyFront is what the proxy reads from; nil without Options.Proxy.
	ProxyFront *registry.Front

	opts   Options
	dir    string
	own    bool // the registry is this site's
	daemon daemon
	other  *netns.Process // what StartOther has started
	proxy  *netns.Process // nil if there is none
	closed bool
}

// mirrorAddr is where the daemon's mirror listens; the namespace is its own.
const mirrorAddr = "127.0.0.1:5075"

// Start starts everything. The caller closes the Site.
func Start(ctx context.Context, opts Options) (_ *Site, err error) {
	s := &Site{opts: opts}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close(context.WithoutCancel(ctx)))
		}
	}()
	if err := sweep(ctx); err != nil {
		return nil, err
	}
	if s.dir, err = makeDir(); err != nil {
		return nil, err
	}
	if s.opts.Airstream == "" {
		if s.opts.Airstream, err = Build(ctx); err != nil {
			return nil, err
		}
	}
	if opts.Profile.Down == 0 && opts.Profile.Up == 0 {
		opts.Profile = link.Direct()
	}
	s.Link, err = link.Start(ctx, link.Options{EmulatorOptions: link.EmulatorOptions{Profile: opts.Profile, Seed: opts.Seed}})
	if err != nil {
		return nil, err
	}
	if s.Registry = opts.Registry; s.Registry == nil {
		if s.Registry, err = registry.Start(ctx, registry.Options{}); err != nil {
			return nil, err
		}
		s.own = true
	}
	if err := s.startFronts(ctx); err != nil {
		return nil, err
	}
	if err := s.mountDisk(ctx); err != nil {
		return nil, err
	}
	s.Node, err = node.Start(ctx, node.Options{
		Namespace: s.Link.Node, AirstreamSocket: s.SnapshotterSocket(), AirstreamRoot: s.Root(), CRISnapshotter: node.Airstream,
	})
	if err != nil {
		return nil, err
	}
	if err := s.ThroughMirror(); err != nil {
		return nil, err
	}
	if err := s.writeConfig(); err != nil {
		return nil, err
	}
	if opts.Proxy != nil {
		if err := s.setUpProxy(ctx); err != nil {
			return nil, err
		}
	}
	if opts.NoDaemon {
		return s, nil
	}
	return s, s.StartDaemon(ctx)
}

func (s *Site) path(elem string) string { return filepath.Join(s.dir, elem) }

// ThroughMirror has containerd ask the daemon's mirror for every registry.
func (s *Site) ThroughMirror() error {
	return s.Node.SetHosts(map[string]string{"_default": fmt.Sprintf(
		"server = %q\n[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", "http://"+mirrorAddr, "http://"+mirrorAddr)})
}

// PastMirror has containerd ask the registry itself, as it does on a node
// without Airstream. It works with plain HTTP and without credentials only.
func (s *Site) PastMirror() error {
	return s.Node.SetHosts(map[string]string{s.Front.Host(): fmt.Sprintf("server = %q\n", s.Front.URL())})
}

// Log returns what the daemon has logged since the site was started.
func (s *Site) Log() (string, error) {
	b, err := os.ReadFile(s.path("airstream.log"))
	if err != nil {
		return "", fmt.Errorf("site: %w", err)
	}
	return string(b), nil
}

// Run runs a verb of the airstream binary on the node and returns its output.
func (s *Site) Run(ctx context.Context, args ...string) (string, error) {
	return output(ctx, s.Link.Node, s.opts.Airstream, append(args, "--config", s.path("airstream.toml"))...)
}

// Convert converts an image of the registry on shore. SRC and DST are names
// without a host, or places as "airstream convert" has them with a colon in
// front of a path.
func (s *Site) Convert(ctx context.Context, src, dst string, flags ...string) (string, error) {
	return Convert(ctx, s.opts.Airstream, s.Registry, src, dst, flags...)
}

// Image is what the daemon tells of an image.
type Image struct {
	Names    []string `json:"names"`
	Manifest string   `json:"manifest"`
	Layers   int      `json:"layers"`
	Lazy     int      `json:"lazyLayers"`
	Total    int64    `json:"total"`
	Missing  int64    `json:"missing"`
	Complete bool     `json:"complete"`
	Dark     string   `json:"runnableDark"`
}

// Images asks the daemon for its images.
func (s *Site) Images(ctx context.Context) ([]Image, error) {
	out, err := s.Run(ctx, "images", "-o", "json")
	if err != nil {
		return nil, err
	}
	var images []Image
	if err := json.Unmarshal([]byte(out), &images); err != nil {
		return nil, fmt.Errorf("site: images: %w", err)
	}
	return images, nil
}

// Close ends everything and takes away what was made.
func (s *Site) Close(ctx context.Context) error {
	if s.closed {
		return nil
	}
	s.closed = true
	var errs []error
	if s.Node != nil {
		errs = append(errs, s.Node.Stop(ctx))
	}
	errs = append(errs, s.StopDaemon(ctx), s.stopOther(ctx), s.StopProxy(ctx))
	for _, c := range []io.Closer{closer(s.Front != nil, s.Front), closer(s.ProxyFront != nil, s.ProxyFront), frontsCloser(s.Fronts), closer(s.own, s.Registry), closer(s.Link != nil, s.Link)} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	if s.dir != "" {
		errs = append(errs, s.unmountDisk(ctx), os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}

func closer(is bool, c io.Closer) io.Closer {
	if !is {
		return nil
	}
	return c
}
