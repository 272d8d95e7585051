package site

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/airstream-io/airstream/test/rig/link"
	"github.com/airstream-io/airstream/test/rig/registry"
)

// startFronts starts the fronts on shore.
func (s *Site) startFronts(ctx context.Context) (err error) {
	port := uint16(0)
	if s.opts.Name != "" {
		port = 80 // a name stands for its whole host
	}
	if s.Front, err = s.front(ctx, s.opts.Front, port); err != nil {
		return err
	}
	for _, opts := range s.opts.Fronts {
		f, err := s.front(ctx, opts, 0)
		if err != nil {
			return err
		}
		s.Fronts = append(s.Fronts, f)
	}
	if s.opts.Proxy != nil {
		return s.startProxyFront(ctx)
	}
	return nil
}

func (s *Site) front(ctx context.Context, opts registry.FrontOptions, port uint16) (*registry.Front, error) {
	if opts.Name != "" {
		return nil, errors.New("site: leave FrontOptions.Name empty; see Options.Name")
	}
	opts.Listen = func() (net.Listener, error) {
		lis, err := s.Link.Shore.Listen(ctx, "tcp", netip.AddrPortFrom(link.ShoreAddr, port).String())
		port = 0 // of the first listener only
		return lis, err
	}
	return s.Registry.Front(opts)
}

// Ref returns how the node names an image: "app:1" is "10.18.0.1:41234/app:1",
// or "NAME/app:1" with Options.Name.
func (s *Site) Ref(name string) string { return s.host() + "/" + name }

// host is the node's word for the registry.
func (s *Site) host() string { return cmp.Or(s.opts.Name, s.Front.Host()) }

// SnapshotterSocket returns where the daemon answers containerd.
func (s *Site) SnapshotterSocket() string { return s.path("run/snapshotter.sock") }

// writeConfig writes the configurations of the daemon and of the proxy.
func (s *Site) writeConfig() error {
	var text strings.Builder
	fmt.Fprintf(&text, "root = %q\nstate = %q\n[mirror]\naddress = %q\n", s.path("a"), s.path("run"), mirrorAddr)
	files := map[string]string{}
	for i, f := range append([]*registry.Front{s.Front}, s.Fronts...) {
		opts, host, url := s.opts.Front, f.Host(), f.URL()
		if i > 0 {
			opts = s.opts.Fronts[i-1]
		} else if s.opts.Name != "" {
			host, url = s.opts.Name, "http://"+s.opts.Name
		}
		fmt.Fprintf(&text, "[registry.%q]\nurl = %q\n", host, url)
		if i == 0 && s.opts.Mirrored {
			fmt.Fprintf(&text, "mirrors = [%s]\n", s.mirrors())
		}
		if ca := f.CA(); opts.TLS && len(ca) > 0 {
			files["ca.pem"] = string(ca)
			fmt.Fprintf(&text, "ca_file = %q\n", s.path("ca.pem"))
		}
		if u := opts.Username; u != "" && !s.opts.NoCredentials {
			name := fmt.Sprintf("password-%d", i)
			files[name] = cmp.Or(s.opts.Password, opts.Password) + "\n"
			fmt.Fprintf(&text, "username = %q\npassword_file = %q\n", u, s.path(name))
		}
	}
	if p := s.opts.Proxy; p != nil {
		fmt.Fprintf(&text, "[proxy]\naddress = %q\n%s", proxyAddr, p.Node)
		maps.Copy(files, s.proxyConfig())
	}
	text.WriteString(s.opts.Config)
	files["airstream.toml"] = text.String()
	for name, content := range files {
		if err := os.WriteFile(s.path(name), []byte(content), 0o600); err != nil {
			return fmt.Errorf("site: %w", err)
		}
	}
	return nil
}

// mirrors returns the addresses of Fronts as TOML has them.
func (s *Site) mirrors() string {
	var list []string
	for _, f := range s.Fronts {
		list = append(list, strconv.Quote(f.URL()))
	}
	return strings.Join(list, ", ")
}

// frontsCloser closes all of them.
type frontsCloser []*registry.Front

func (fs frontsCloser) Close() error {
	var errs []error
	for _, f := range fs {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
