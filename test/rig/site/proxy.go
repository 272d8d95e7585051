package site

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/airstream-io/airstream/test/rig/link"
	"github.com/airstream-io/airstream/test/rig/netns"
	"github.com/airstream-io/airstream/test/rig/registry"
)

// Proxy is a proxy on shore, with which the node enrols before its daemon starts.
// It reads from a front of its own, which asks for credentials that only the
// proxy has, and which listens where no node gets to. So what arrives at
// Site.Front is what the node asked of registries beside its proxy.
type Proxy struct {
	// Front is what that front is like, besides.
	Front registry.FrontOptions
	// Config is TOML that is added to the proxy's configuration.
	Config string
	// Node is TOML that is added to [proxy] in the daemon's configuration.
	Node string
}

// nodeName is what the node is enrolled as.
const nodeName = "node"

// proxyAddr is where nodes come to.
var proxyAddr = netip.AddrPortFrom(link.ShoreAddr, 7075).String()

// startProxyFront starts the front that the proxy reads from.
func (s *Site) startProxyFront(ctx context.Context) (err error) {
	opts := s.opts.Proxy.Front
	if opts.Auth == registry.AuthNone {
		opts.Auth = registry.AuthBasic
	}
	opts.Username, opts.Password = "proxy", "shore: s3cret"
	opts.Listen = func() (net.Listener, error) { return s.Link.Shore.Listen(ctx, "tcp", "127.0.0.1:0") }
	s.ProxyFront, err = s.Registry.Front(opts)
	return err
}

// proxyConfig returns the proxy's configuration, and the files that it names.
func (s *Site) proxyConfig() map[string]string {
	text := fmt.Sprintf("root = %q\nauthority = %q\nlisten = %q\nstatus = \"127.0.0.1:7076\"\n%s[registry.%q]\nurl = %q\nusername = \"proxy\"\npassword_file = %q\n",
		s.path("proxy"), s.path("authority"), proxyAddr, s.opts.Proxy.Config, s.host(), s.ProxyFront.URL(), s.path("proxy-password"))
	files := map[string]string{"proxy-password": "shore: s3cret\n"}
	if ca := s.ProxyFront.CA(); s.opts.Proxy.Front.TLS {
		files["proxy-ca.pem"] = string(ca)
		text += fmt.Sprintf("ca_file = %q\n", s.path("proxy-ca.pem"))
	}
	files["proxy.toml"] = text
	return files
}

// setUpProxy starts a proxy as its operator does, and enrols the node.
func (s *Site) setUpProxy(ctx context.Context) error {
	if _, err := s.proxyVerb(ctx, "init", link.ShoreAddr.String()); err != nil {
		return err
	}
	if err := s.StartProxy(ctx); err != nil {
		return err
	}
	token, err := s.proxyVerb(ctx, "token", nodeName)
	if err != nil {
		return err
	}
	_, err = s.Run(ctx, "enrol", "--proxy", proxyAddr, token[:len(token)-1])
	return err
}

func (s *Site) proxyVerb(ctx context.Context, verb string, args ...string) (string, error) {
	return output(ctx, s.Link.Shore, s.opts.Airstream, append([]string{"proxy", verb, "--config", s.path("proxy.toml")}, args...)...)
}

// ProxyCache is the directory of the proxy's cache, for tests that spoil it while the
// proxy is stopped.
func (s *Site) ProxyCache() string { return filepath.Join(s.path("proxy"), "cache") }

// StartProxy starts the proxy, or starts it again, and waits until it listens.
func (s *Site) StartProxy(ctx context.Context) (err error) {
	s.proxy, err = s.Link.Shore.Start(netns.Command{
		Name: "airstream proxy", Args: []string{s.opts.Airstream, "proxy", "serve", "--config", s.path("proxy.toml")}, Log: s.path("proxy.log"),
	})
	if err != nil {
		return err
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(startLimit)
	for {
		if c, err := s.Link.Shore.Dial(ctx, "tcp", proxyAddr); err == nil {
			return c.Close()
		}
		select {
		case <-tick.C:
		case <-s.proxy.Done():
			return s.proxy.Explain(errors.New("site: the proxy ended before it listened"))
		case <-limit:
			return s.proxy.Explain(fmt.Errorf("site: the proxy did not listen in %v", startLimit))
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// AwaitProxy waits until the node's session with the proxy is up.
func (s *Site) AwaitProxy(ctx context.Context) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(startLimit)
	for {
		out, err := s.Run(ctx, "status", "-o", "json")
		if err != nil {
			return err
		}
		var status struct {
			Proxy struct {
				Up    bool
				Error string
			}
		}
		if err := json.Unmarshal([]byte(out), &status); err != nil {
			return fmt.Errorf("site: status: %w", err)
		}
		if status.Proxy.Up {
			return nil
		}
		select {
		case <-tick.C:
		case <-limit:
			return fmt.Errorf("site: the node had no session with its proxy in %v: %s", startLimit, status.Proxy.Error)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// KillProxy kills the proxy as a crash does. Its cache and its authority stay.
func (s *Site) KillProxy() error { return s.proxy.Kill() }

// StopProxy asks the proxy to end.
func (s *Site) StopProxy(ctx context.Context) error {
	if s.proxy == nil {
		return nil
	}
	return s.proxy.Stop(ctx, 20*time.Second)
}

// ProxyLog returns what the proxy has logged since the site was started.
func (s *Site) ProxyLog() (string, error) {
	b, err := os.ReadFile(s.path("proxy.log"))
	if err != nil {
		return "", fmt.Errorf("site: %w", err)
	}
	return string(b), nil
}
