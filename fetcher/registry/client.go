// Package registry speaks to OCI registries across bad links.
//
// Every request is one attempt that ends when it has made no progress for as
// long as the link explains, never because it took long as a whole. Retrying
// is the caller's: errors say whether waiting can help. A round trip is what a
// satellite link has least of, so nothing is asked twice: a token is kept and
// sent along until it is refused, a redirect to a storage host is remembered
// per blob, connections stay open for minutes, and there is no ping.
//
// A registry may have several addresses: mirrors near or far, and its own. What
// works is asked, the first in their order if several do.
//
// Blobs come as ranges from any byte on. A registry or a proxy on the way that
// ignores Range is read from its beginning; the caller learns where the stream
// really starts and may use what it would otherwise have thrown away.
package registry

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/catalog"
)

// Host says how to reach one registry host. The zero value is HTTPS at the
// host's own name, with credentials from docker's configuration.
type Host struct {
	URL      string         // "http://127.0.0.1:5000"; empty: https:// and the host
	Mirrors  []string       // other addresses of the same repositories, as URL; asked in this order before URL
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
	Shore    Shore // asked before the registries are; nil: nobody is
	Logger   *slog.Logger
	// Dial makes connections; nil: from where this process is.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Shore has what registries have: a proxy on shore, which reads them. For both
// methods, ok is false if the registry is to be asked: there is no saying now.
type Shore interface {
	// Manifest returns what ref, a tag or a digest, means; the client compares a
	// digest.
	Manifest(ctx context.Context, src catalog.Source, ref string) (m Manifest, ok bool, err error)
	// Blob opens n bytes of a blob, or all if n < 0, from byte off on.
	Blob(ctx context.Context, class uplink.Class, src catalog.Source, d digest.Digest, off, n int64) (rc io.ReadCloser, ok bool, err error)
}

// Client is safe for concurrent use.
type Client struct {
	opts Options

	via  string          // this process's entry in Via headers
	run  context.Context //nolint:containedctx // of probes, which nobody waits for
	stop context.CancelFunc
	work sync.WaitGroup

	heard atomic.Int64 // when something last answered, in ns since 1970; see Heard
	wrong atomic.Int64 // see Counts

	mu        sync.Mutex
	hosts     map[string][]*host       // guarded by mu; by name, in the order in which they are asked
	redirects map[redirectKey]string   // guarded by mu; where a blob was last found
	granted   map[catalog.Source]Login // guarded by mu; clients' logins that a registry took
	sentBy    map[sentKey]*host        // guarded by mu; which of several addresses a blob came from last
	closed    bool                     // guarded by mu
}

type redirectKey struct {
	h      *host
	repo   string
	digest string
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
	if opts.Dial == nil {
		opts.Dial = remembering((&net.Dialer{KeepAlive: keepAlive}).DialContext)
	}
	run, stop := context.WithCancel(context.Background()) //nolint:forbidigo // the client's own life, ended by Close
	return &Client{
		opts: opts, via: "1.1 airstream-" + strings.ToLower(rand.Text()[:10]), run: run, stop: stop,
		hosts: map[string][]*host{}, redirects: map[redirectKey]string{}, granted: map[catalog.Source]Login{}, sentBy: map[sentKey]*host{},
	}
}

// Close ends what the client does by itself and closes idle connections.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	all := c.hosts
	c.mu.Unlock()
	c.stop()
	c.work.Wait()
	for _, hosts := range all {
		for _, h := range hosts {
			h.disconnect()
		}
	}
}

// attempt is one request's watch over progress.
type attempt struct {
	cancel  context.CancelFunc
	timer   *time.Timer
	meter   *uplink.Meter
	class   uplink.Class
	stream  *uplink.Stream // that the answer is
	h       *host          // that is asked
	asked   string         // the host and port of the last request
	quiet   bool           // the meter is not told of failures: something else is tried next
	queued  int64
	stalled atomic.Bool
}

// errStalled is why an attempt ends that made no progress for too long.
var errStalled = errors.New("no progress for as long as the link explains")

// begin starts the watch; queued is how many bytes the request asks for. The
// request must use the context that it returns.
func (c *Client) begin(ctx context.Context, h *host, class uplink.Class, queued int64) (context.Context, *attempt) {
	ctx, cancel := context.WithCancel(ctx)
	a := &attempt{meter: c.opts.Meter, class: class, stream: c.opts.Meter.Begin(class), h: h, asked: h.base.Host, queued: queued, cancel: cancel}
	a.timer = time.AfterFunc(a.meter.StallLimit(queued), func() {
		a.stalled.Store(true)
		cancel()
	})
	return ctx, a
}

// progress puts the stall off.
func (a *attempt) progress() { a.progressAfter(0) }

// progressAfter puts the stall off, less what was waited already.
func (a *attempt) progressAfter(waited time.Duration) {
	a.timer.Reset(max(a.meter.StallLimit(a.queued)-waited, time.Millisecond))
}

// rest stops the watch while nobody waits for the link: a reader may take its
// time, and lets others go first by doing so.
func (a *attempt) rest() { a.timer.Stop() }

func (a *attempt) end() {
	a.stream.End()
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
		if !a.quiet {
			a.meter.Failed(a.asked, err)
		}
		a.h.failed(0)
	}
	return err
}

// do sends one request and reports to the meter. It follows no redirect and
// answers no challenge.
func (c *Client) do(ctx context.Context, a *attempt, h *host, req *http.Request) (*http.Response, error) {
	var sent time.Time
	var warm bool
	trace := &httptrace.ClientTrace{
		GotConn:     func(i httptrace.GotConnInfo) { warm = i.Reused; a.stream.On(i.Conn, warm); a.progress() },
		ConnectDone: func(string, string, error) { a.progress() },
		TLSHandshakeDone: func(_ tls.ConnectionState, err error) {
			if err == nil {
				c.hear()
			}
			a.progress()
		},
		WroteRequest: func(httptrace.WroteRequestInfo) { sent = time.Now() },
		GotFirstResponseByte: func() {
			c.hear()
			if warm && !sent.IsZero() {
				a.meter.FirstByte(time.Since(sent))
			}
			a.progress()
		},
	}
	req = req.WithContext(httptrace.WithClientTrace(ctx, trace))
	req.Header.Set("User-Agent", "airstream")
	a.asked = req.URL.Host
	a.progress()
	resp, err := h.client(a.class).Do(req)
	a.rest()
	if err != nil {
		return nil, a.failed(err)
	}
	c.opts.Meter.Alive(a.asked)
	return resp, nil
}
