package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/catalog"
)

// How long an address is left alone that has failed while another one works:
// the first time, and at most. Guesses: an outage that is noticed at once, and
// a site that has moved.
const (
	firstRest   = 5 * time.Second
	longestRest = 10 * time.Minute
)

// host is one address of a registry, with its connections and credentials.
type host struct {
	Host
	name  string // as in references: the registry's, or the mirror's own
	own   bool   // it is the registry's own address: what it says is final
	base  *url.URL
	http  *http.Client
	bulk  *http.Client // for what nobody waits for
	cred  credentials
	login loginLock

	mu       sync.Mutex
	failures int       // guarded by mu; since it answered last
	until    time.Time // guarded by mu; when it is asked again, if another one works
	probing  bool      // guarded by mu
}

// upstreams returns the addresses of a registry: its mirrors, then its own.
func (c *Client) upstreams(known string) ([]*host, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if list, ok := c.hosts[known]; ok {
		return list, nil
	}
	conf := c.opts.Hosts[known]
	raw := conf.URL
	if raw == "" {
		raw = "https://" + endpoint(known)
	}
	var list []*host
	for _, m := range conf.Mirrors {
		h, err := newHost(known, m, conf)
		if err != nil {
			return nil, err
		}
		// The registry's password is none of a mirror's business. A mirror has
		// its own settings under its own name.
		h.name, h.Username, h.Password = h.base.Host, "", ""
		if its, ok := c.opts.Hosts[h.name]; ok {
			h.CA, h.Insecure, h.Username, h.Password = its.CA, its.Insecure, its.Username, its.Password
		}
		list = append(list, h)
	}
	h, err := newHost(known, raw, conf)
	if err != nil {
		return nil, err
	}
	h.own = true
	list = append(list, h)
	for _, h := range list {
		h.connect(c.opts.Dial)
	}
	c.hosts[known] = list
	return list, nil
}

func newHost(known, raw string, conf Host) (*host, error) {
	base, err := url.Parse(strings.TrimSuffix(raw, "/"))
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" {
		return nil, fmt.Errorf("registry: host %q: invalid URL %q", known, raw)
	}
	return &host{Host: conf, name: known, base: base, login: loginLock{place: make(chan struct{}, 1)}}, nil
}

// endpoint returns where a host's API is: for the default registry of short
// names that is not the host that references have.
func endpoint(host string) string {
	if reg, err := name.NewRegistry(host, name.WeakValidation); err == nil {
		return reg.RegistryStr()
	}
	return host
}

// failed notes that the host did not answer as a registry that works does. It
// is asked again after a while, or after as long as it said.
func (h *host) failed(atLeast time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if now.Before(h.until) {
		return // requests that were under way at once fail at once
	}
	rest := min(firstRest<<min(h.failures, 10), longestRest)
	h.failures++
	h.until = now.Add(max(rest, min(atLeast, time.Hour)))
}

func (h *host) well() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failures, h.until = 0, time.Time{}
}

// soon lets a host that failed be tried again before long: another one has just
// answered after none did, so it was the link.
func (h *host) soon() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := time.Now().Add(firstRest); h.failures > 0 && h.until.After(t) {
		h.until = t
	}
}

func (h *host) state() (failures int, until time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failures, h.until
}

// order returns the hosts as they are to be asked now: those that work, in
// their order, then the others, the longest rested first. A host that has
// rested is probed on the side: nobody waits to learn whether it is back.
func (c *Client) order(list []*host) []*host {
	if len(list) == 1 {
		return list
	}
	var works, rests []*host
	until := map[*host]time.Time{}
	for _, h := range list {
		failures, t := h.state()
		if failures == 0 {
			works = append(works, h)
			continue
		}
		until[h] = t
		rests = append(rests, h)
	}
	slices.SortStableFunc(rests, func(a, b *host) int { return until[a].Compare(until[b]) })
	if len(works) > 0 {
		for _, h := range rests {
			if time.Now().After(until[h]) {
				c.probe(h)
			}
		}
	}
	return append(works, rests...)
}

// probe asks a host whether it is there, once at a time.
func (c *Client) probe(h *host) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	if ok, _, _ := c.opts.Meter.Admit(uplink.Background); c.closed || h.probing || !ok {
		return
	}
	h.probing = true
	c.work.Go(func() {
		err := c.ping(c.run, h)
		if err == nil {
			h.well()
		}
		h.mu.Lock()
		h.probing = false
		h.mu.Unlock()
	})
}

// ping makes the smallest request that there is. Any answer but trouble says
// that the host is there.
func (c *Client) ping(ctx context.Context, h *host) error {
	ctx, a := c.begin(ctx, h, uplink.Background, 0)
	a.quiet = true
	defer a.end()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.base.String()+"/v2/", nil)
	if err != nil {
		return fmt.Errorf("registry: probe %s: %w", h.base.Host, err)
	}
	resp, err := c.do(ctx, a, h, req)
	if err != nil {
		return fmt.Errorf("registry: probe %s: %w", h.base.Host, err)
	}
	if err := troubled(catalog.Source{Host: h.name}, "probe", resp); err != nil {
		h.failed(RetryAfter(err))
		return err
	}
	return resp.Body.Close()
}

// troubled returns the error of an answer that says that the host has trouble,
// and closes its body; other answers are left alone.
func troubled(src catalog.Source, what string, resp *http.Response) error {
	if e := (&Error{Status: resp.StatusCode}); !e.Temporary() {
		return nil
	}
	return refused(src, what, resp)
}

// each has ask try the hosts of a registry until one has the answer. The error
// is that of the registry itself, for a mirror may lack what the registry has;
// once the registry has given a final one, nothing else is tried.
func (c *Client) each(ctx context.Context, src catalog.Source, ask func(h *host) error) error {
	list, err := c.upstreams(src.Host)
	if err != nil {
		return err
	}
	var last error
	for _, h := range c.order(list) {
		err := ask(h)
		if err == nil {
			if failures, _ := h.state(); failures > 0 {
				for _, other := range list {
					other.soon() // none worked until now: it was the link
				}
				h.well()
			}
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		final := !Temporary(err) && !errors.Is(err, ErrContent)
		if Temporary(err) {
			h.failed(RetryAfter(err))
		}
		if h.own {
			if last = err; final {
				break
			}
		}
	}
	return last
}

// Counts are what a Client saw since it started.
type Counts struct {
	Wrong int64 // manifests that were not what their digest says; none was used
}

// Counts returns what was seen so far.
func (c *Client) Counts() Counts { return Counts{Wrong: c.wrong.Load()} }

// drop reads the little that may be left of a body, so that its connection can
// be used again, and closes it.
func drop(body io.ReadCloser) error {
	_, err := io.CopyN(io.Discard, body, 4<<10)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, body.Close())
}
