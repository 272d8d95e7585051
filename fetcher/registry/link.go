package registry

import (
	"context"
	"time"

	"github.com/airstream-io/airstream/fetcher/uplink"
)

// Dark tells whether the last requests failed for want of a link.
func (c *Client) Dark() bool { return c.opts.Meter.State().Dark }

// Link returns what is known of the link.
func (c *Client) Link() uplink.State { return c.opts.Meter.State() }

// Changed returns a channel that is closed when the link becomes dark, slow or
// up next.
func (c *Client) Changed() <-chan struct{} { return c.opts.Meter.Changed() }

// Admit waits until the link is up and a request of class may begin, or for at
// most most: somebody must try whether a dark link is back. The error is ctx's.
func (c *Client) Admit(ctx context.Context, class uplink.Class, most time.Duration) error {
	began := time.Now()
	for {
		change := c.opts.Meter.Changed()
		ok, again, _ := c.opts.Meter.Admit(class)
		if ok && (!c.Dark() || time.Since(began) >= most) {
			return ctx.Err()
		}
		wait := most
		if !ok {
			wait = min(max(time.Until(again), time.Second), time.Hour)
		}
		timer := time.NewTimer(wait)
		select {
		case <-change:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// hear notes that something answered from across the link.
func (c *Client) hear() { c.heard.Store(time.Now().UnixNano()) }

// Heard returns when something last answered from across the link: a TLS
// handshake or an answer, but not a bare connection, which a proxy or a modem
// on site may have accepted. It is the zero time if nothing has yet.
func (c *Client) Heard() time.Time {
	if ns := c.heard.Load(); ns != 0 {
		return time.Unix(0, ns)
	}
	return time.Time{}
}
