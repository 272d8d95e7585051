// Package registry speaks to OCI registries across bad links.
//
// Every request is one attempt that ends when it has made no progress for as
// long as the link explains, never because it took long as a whole. Retrying
// is the caller's: errors say whether waiting can help. A round trip is what a
// satellite link has least of, so nothing is asked twice: a token is kept and
// sent along until it is refused, a redirect to a storage host is remembered
// per blob, connections stay open for minutes, and there is no ping.
//
// Blobs come as ranges from any byte on. A registry or a proxy on the way that
// ignores Range is read from its beginning; the caller learns where the stream
// really starts and may use what it would otherwise have thrown away.
package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/catalog"
)

// Host says how to reach one registry host. The zero value is HTTPS at the
// host's own name, with credentials from docker's configuration.
type Host struct {
	URL      string         // "http://127.0.0.1:5000"; empty: https:// and the host
	CA       *x509.CertPool // nil: the system's
	Insecure bool           // the certificate is not checked; content still is
	Username string
	Password string
}

// Options configure a Client.
type Options struct {
	Hosts    map[string]Host // by host as in references; others get the zero Host
	Keychain authn.Keychain  // nil: docker's configuration and credential helpers
	Meter    *uplink.Meter
	Logger   *slog.Logger
}

// Client is safe for concurrent use.
type Client struct {
	opts Options

	mu        sync.Mutex
	hosts     map[string]*host       // guarded by mu
	redirects map[redirectKey]string // guarded by mu; where a blob was last found
}

type redirectKey struct {
	src    catalog.Source
	digest string
}

// host is one registry with its connections and credentials.
type host struct {
	Host
	name  string
	base  *url.URL
	http  *http.Client
	cred  credentials
	login sync.Mutex // one login at a time; held across its request, by logins alone
}

// New returns a Client.
func New(opts Options) *Client {
	if opts.Keychain == nil {
		opts.Keychain = authn.DefaultKeychain
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	if opts.Meter == nil {
		opts.Meter = uplink.NewMeter(opts.Logger)
	}
	return &Client{opts: opts, hosts: map[string]*host{}, redirects: map[redirectKey]string{}}
}

// Dark tells whether the last requests failed for want of a link.
func (c *Client) Dark() bool { return c.opts.Meter.State().Dark }

// Close closes idle connections.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.hosts {
		h.http.CloseIdleConnections()
	}
}

func (c *Client) host(known string) (*host, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h, ok := c.hosts[known]; ok {
		return h, nil
	}
	h := &host{Host: c.opts.Hosts[known], name: known}
	raw := h.URL
	if raw == "" {
		raw = "https://" + endpoint(known)
	}
	var err error
	if h.base, err = url.Parse(strings.TrimSuffix(raw, "/")); err != nil || h.base.Host == "" {
		return nil, fmt.Errorf("registry: host %q: invalid URL %q", known, raw)
	}
	h.http = &http.Client{
		Transport: h.transport(),
		// Redirects are followed by hand: they are remembered, and must not
		// carry credentials to another host.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	c.hosts[known] = h
	return h, nil
}

// endpoint returns where a host's API is: for the default registry of short
// names that is not the host that references have.
func endpoint(host string) string {
	if reg, err := name.NewRegistry(host, name.WeakValidation); err == nil {
		return reg.RegistryStr()
	}
	return host
}

// transport has no limits in time: a TLS handshake alone can take longer than
// net/http's default over a satellite. Stalls are watched by each attempt.
func (h *host) transport() *http.Transport {
	dialer := &net.Dialer{KeepAlive: 60 * time.Second}
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         dialer.DialContext,
		ForceAttemptHTTP2:   false, // one lost packet would hold up every stream at once
		TLSNextProto:        map[string]func(string, *tls.Conn) http.RoundTripper{},
		TLSClientConfig:     &tls.Config{RootCAs: h.CA, InsecureSkipVerify: h.Insecure}, //nolint:gosec // asked for by the configuration; content is verified by digest
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     10 * time.Minute,
		DisableCompression:  true,
		ReadBufferSize:      32 << 10,
	}
}

// attempt is one request's watch over progress.
type attempt struct {
	cancel  context.CancelFunc
	timer   *time.Timer
	meter   *uplink.Meter
	class   uplink.Class
	conn    net.Conn // that the answer comes on
	queued  int64
	stalled atomic.Bool
}

// errStalled is why an attempt ends that made no progress for too long.
var errStalled = errors.New("no progress for as long as the link explains")

// begin starts the watch; queued is how many bytes the request asks for. The
// request must use the context that it returns.
func (c *Client) begin(ctx context.Context, class uplink.Class, queued int64) (context.Context, *attempt) {
	ctx, cancel := context.WithCancel(ctx)
	a := &attempt{meter: c.opts.Meter, class: class, queued: queued, cancel: cancel}
	a.timer = time.AfterFunc(a.meter.StallLimit(queued), func() {
		a.stalled.Store(true)
		cancel()
	})
	return ctx, a
}

// progress puts the stall off.
func (a *attempt) progress() { a.timer.Reset(a.meter.StallLimit(a.queued)) }

// rest stops the watch while nobody waits for the link: a reader may take its
// time, and lets others go first by doing so.
func (a *attempt) rest() { a.timer.Stop() }

func (a *attempt) end() {
	a.timer.Stop()
	a.cancel()
}

// failed returns what the caller should know of err: the stall rather than
// the canceled context that it led to. The meter is told, unless it was the
// caller who went away.
func (a *attempt) failed(err error) error {
	if a.stalled.Load() {
		err = errStalled
	}
	if !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		a.meter.Failed(err)
	}
	return err
}

// do sends one request and reports to the meter. It follows no redirect and
// answers no challenge.
func (c *Client) do(ctx context.Context, a *attempt, h *host, req *http.Request) (*http.Response, error) {
	var sent time.Time
	var warm bool
	trace := &httptrace.ClientTrace{
		GotConn:          func(i httptrace.GotConnInfo) { warm, a.conn = i.Reused, i.Conn; a.progress() },
		ConnectDone:      func(string, string, error) { a.progress() },
		TLSHandshakeDone: func(tls.ConnectionState, error) { a.progress() },
		WroteRequest:     func(httptrace.WroteRequestInfo) { sent = time.Now() },
		GotFirstResponseByte: func() {
			if warm && !sent.IsZero() {
				a.meter.FirstByte(time.Since(sent))
			}
			a.progress()
		},
	}
	req = req.WithContext(httptrace.WithClientTrace(ctx, trace))
	req.Header.Set("User-Agent", "airstream")
	a.progress()
	resp, err := h.http.Do(req)
	a.rest()
	if err != nil {
		return nil, a.failed(err)
	}
	c.opts.Meter.Alive()
	return resp, nil
}
