package flow

import (
	"context"
	"testing"
	"time"

	"github.com/airstream-io/airstream/fetcher/uplink"
)

// Bulk alone on the link goes on after a blackhole, and fills the link again. The
// silence has shown nothing of the link's rate.
func TestBulkFillsTheLinkAfterABlackhole(t *testing.T) {
	p := open(t, 32<<20, uplink.Policy{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Bulk(ctx, uplink.Prefetch, 64<<20, 2<<20, nil) }()
	defer func() {
		cancel()
		<-done //nolint:errcheck // canceled
	}()
	time.Sleep(6 * time.Second)
	if _, err := p.Link.Blackhole(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Second) // longer than a request may say nothing
	dark := p.Meter.State()
	if _, err := p.Link.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(8 * time.Second) // the pause between attempts, and a slow start
	before := p.Meter.State().Bytes
	const span = 5
	time.Sleep(span * time.Second)
	after := p.Meter.State()
	rate := float64(after.Bytes-before) / span
	t.Logf("%.0f bytes/s; before %+v, after %+v", rate, dark, after)
	link := float64(aLink(t).Down) / 8
	if dark.Peak < 0.6*link || dark.Rate < 0.5*link {
		t.Errorf("in the blackhole a link of %.0f bytes/s is taken for %.0f, %.0f of late", link, dark.Peak, dark.Rate)
	}
	if rate < 0.6*link {
		t.Errorf("after the blackhole bulk brings %.0f bytes/s of %.0f", rate, link)
	}
}
