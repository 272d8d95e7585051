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

// A rate cap is one of what crosses, headers included. What was read obeys it at
// any time; the kernel holds what arrived and was not read yet, no more than
// the 64 KiB of each connection that it grants before it is asked.
func TestRateCapHoldsOnTheLink(t *testing.T) {
	const rate = 100_000
	p := open(t, 4<<20, uplink.Policy{Rate: rate})
	read(t, p, 4<<10)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Bulk(ctx, uplink.Prefetch, 4<<20, 8, nil) }()
	defer func() {
		cancel()
		<-done //nolint:errcheck // canceled
	}()
	time.Sleep(5 * time.Second)
	before, began := p.Meter.State().Bytes, time.Now()
	time.Sleep(10 * time.Second)
	got, took := float64(p.Meter.State().Bytes-before), time.Since(began).Seconds()
	crossed, conns := delivered(t, p), connections(p)
	all := p.Meter.State().Bytes
	const headers = 1.05
	t.Logf("%.0f bytes read in %.2f s; %d crossed in all on %d connections, %d were read", got, took, crossed, conns, all)
	if share := headers * got / (rate * took); share < 0.95 || share > 1.03 {
		t.Errorf("%.0f bytes were read in %.2f s at %d bytes/s: %.2f times what is allowed", got, took, rate, share)
	}
	const handshake = 8 << 10
	if most := headers*float64(all) + float64(conns)*(64<<10+handshake); float64(crossed) > most {
		t.Errorf("%d bytes crossed, where %.0f may have", crossed, most)
	}
	// One for demands, two for bulk, and two whose requests end as those of the
	// next begin.
	if conns > 5 {
		t.Errorf("%d connections, each of which brings what nobody has paced", conns)
	}
}

func delivered(t *testing.T, p *Path) uint64 {
	t.Helper()
	s, err := p.Link.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s.Down.Delivered.Bytes
}

// connections returns how many the registry was asked on.
func connections(p *Path) (n uint64) {
	for _, e := range p.Front.Log() {
		n = max(n, e.Conn)
	}
	return n
}
