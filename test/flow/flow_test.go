package flow

import (
	"context"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/test/rig/link"
	"github.com/airstream-io/airstream/test/rig/registry"
	"github.com/airstream-io/airstream/test/rig/tools"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// aLink is like a satellite, four times as fast, so that it doesn't take four
// times as long.
func aLink(t *testing.T) link.Profile {
	t.Helper()
	p := link.Profile{Name: "quick-sat", RTT: 300 * time.Millisecond, Down: 8 * link.Mbit, Up: 2 * link.Mbit, MTU: 1500}
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	return p
}

func open(t *testing.T, size int64, policy uplink.Policy) *Path {
	t.Helper()
	tools.Need(t, tools.Root, tools.NetNS, "ip", "registry")
	reg, err := registry.Start(t.Context(), registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := reg.Close(); err != nil {
			t.Error(err)
		}
	})
	blob, err := Push(t.Context(), reg, size)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Open(t.Context(), Options{Profile: aLink(t), Seed: 1, Registry: reg, Blob: blob, Size: size, Policy: policy})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func read(t *testing.T, p *Path, n int64) time.Duration {
	t.Helper()
	began := time.Now()
	if err := p.Read(t.Context(), uplink.Demand, 0, n, nil); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

func median(all []time.Duration) time.Duration {
	all = slices.Clone(all)
	slices.Sort(all)
	return all[len(all)/2]
}

// Bulk fills the link of somebody else's sender, and who waits does not notice.
func TestBulkFillsTheLinkAndADemandDoesNotNotice(t *testing.T) {
	const size = 16 << 20
	p := open(t, size, uplink.Policy{})
	read(t, p, 64<<10) // connections are warm
	var idle, busy []time.Duration
	for range 5 {
		time.Sleep(time.Second)
		idle = append(idle, read(t, p, 64<<10))
	}
	if err := p.Bulk(t.Context(), uplink.Prefetch, 4<<20, 8, nil); err != nil { // bulk's connections are, too
		t.Fatal(err)
	}
	began := time.Now()
	if err := p.Bulk(t.Context(), uplink.Prefetch, size, 8, nil); err != nil {
		t.Fatal(err)
	}
	use := size / (time.Since(began).Seconds() * float64(aLink(t).Down) / 8)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Bulk(ctx, uplink.Prefetch, size, 8, nil) }()
	time.Sleep(3 * time.Second)
	for range 5 {
		busy = append(busy, read(t, p, 64<<10))
		time.Sleep(time.Second)
	}
	select {
	case err := <-done:
		t.Errorf("bulk ended before the demands did: %v", err)
		done <- err
	default:
	}
	cancel()
	<-done //nolint:errcheck // canceled
	t.Logf("bulk used %.0f%% of the link; 64 KiB in %v alone, %v under bulk; %+v", 100*use, median(idle), median(busy), p.Meter.State())
	if use < 0.8 { // headers take 5 of the rest, the start of 2 s and its end what is left
		t.Errorf("bulk used %.0f%% of the link", 100*use)
	}
	if median(busy) > median(idle)*17/10 { // 1.5 in the mean over more reads: docs/benchmarks.md
		t.Errorf("64 KiB took %v alone, %v under bulk", idle, busy)
	}
	if s := p.Meter.State(); s.Peak < 0.8e6 || s.Peak > 1.2e6 {
		t.Errorf("a link of 1 MB/s was taken for %.0f B/s", s.Peak)
	}
}

// A rate cap is one of what crosses, not of what is read: but for the first
// 64 KiB of each connection, which the kernel grants before it is asked.
func TestRateCapHoldsOnTheLink(t *testing.T) {
	const rate = 100_000
	p := open(t, 4<<20, uplink.Policy{Rate: rate})
	read(t, p, 4<<10)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Bulk(ctx, uplink.Prefetch, 4<<20, 8, nil) }()
	time.Sleep(5 * time.Second)
	before, err := p.Link.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Second)
	after, err := p.Link.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	<-done //nolint:errcheck // canceled
	got := after.Down.Delivered.Bytes - before.Down.Delivered.Bytes
	t.Logf("%d bytes in 10 s", got)
	if got < 9*rate || got > 105*rate/10 {
		t.Errorf("%d bytes crossed in 10 s at %d bytes/s", got, rate)
	}
}
