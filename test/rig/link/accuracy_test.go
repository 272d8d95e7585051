package link

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// TestAccuracy checks the emulator against its own settings, with real
// sockets: rates within 2%, round trips within 10 ms.
func TestAccuracy(t *testing.T) {
	for _, c := range []struct {
		profile        string
		size           int // bytes of the packets that measure the rate
		warmUp, window time.Duration
		pings          int
	}{
		{"diode-lossless", 1500, time.Second, 3 * time.Second, 0},
		{"leo-lossless", 1500, time.Second, 3 * time.Second, 40},
		{"geo-vsat-lossless", 1500, 2 * time.Second, 4 * time.Second, 7},
		{"pass-lossless", 700, 2 * time.Second, 4 * time.Second, 40},
		{"l-band-lossless", 350, 3 * time.Second, 5 * time.Second, 5},
		{"iridium-certus-lossless", 350, 3 * time.Second, 5 * time.Second, 5},
		{"iridium-narrow-lossless", 48, 3 * time.Second, 20 * time.Second, 3},
	} {
		t.Run(c.profile, func(t *testing.T) {
			if testing.Short() && c.window > 4*time.Second {
				t.Skip("takes too long for -short")
			}
			l := start(t, c.profile)
			p := stats(t, l).Profile
			if p.Down < 10*Mbit {
				t.Parallel() // slow links don't disturb each other
			}
			if c.pings > 0 {
				checkRTT(t, l, p, ping(t, l, echo(t, l), c.pings, p.RTT+p.RTTMax+5*time.Second))
			}
			used, began := cpu(t, l), time.Now()
			// A queue that lasts through pauses of the sender, which is this
			// test: what is measured is the rate, and the queue has no part in it.
			p.Queue = max(p.QueueLimit(p.Down), p.QueueLimit(p.Up), p.Down.Bytes(stock))
			if _, err := l.SetProfile(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			both := ways(l, p)
			// A busy machine can hold up the sender, and so only lower what is
			// measured: then it is measured again.
			for attempt := 1; ; attempt++ {
				throughput(t, l, both, c.size, c.warmUp+p.RTTMax, c.window)
				if attempt == 3 || !slices.ContainsFunc(both, (*way).slow) {
					break
				}
			}
			for _, w := range both {
				w.check(t)
			}
			s := stats(t, l)
			t.Logf("emulator: %s priority, %.1f%% of a processor, latest packet %v late",
				s.Priority, 100*float64(cpu(t, l)-used)/float64(time.Since(began)), max(s.Down.MaxLate, s.Up.MaxLate))
		})
	}
}

func checkRTT(t *testing.T, l *Link, p Profile, times []time.Duration) {
	t.Helper()
	if len(times) == 0 {
		t.Fatal("no echo came back")
	}
	// What the link's rate takes for the packet itself is not delay.
	own := p.Down.transmit(8+udpHeaders) + p.Up.transmit(8+udpHeaders)
	got := median(times) - own
	low, high := p.RTT, max(p.RTT, p.RTTMax)
	t.Logf("rtt: asked %v to %v, median %v (%v to %v, %d echoes) without %v to send the packets",
		low, high, got, times[0]-own, times[len(times)-1]-own, len(times), own)
	if got < low-10*time.Millisecond || got > high+10*time.Millisecond {
		t.Errorf("round trip of %v, want %v to %v", got, low, high)
	}
}

// TestTCPFillsTheLink: a bulk stream over a long fat pipe, after slow start.
func TestTCPFillsTheLink(t *testing.T) {
	if testing.Short() {
		t.Skip("takes too long for -short")
	}
	for _, profile := range []string{"geo-vsat-lossless", "rtt=55ms,down=50mbit,up=8mbit"} {
		t.Run(profile, func(t *testing.T) {
			l := start(t, profile)
			defer bulk(t, l)()
			time.Sleep(6 * time.Second)
			// The best of several windows: sender and receiver are this test,
			// and a busy machine may hold them up.
			var best BitsPerSecond
			after := stats(t, l)
			for range 4 {
				before := after
				time.Sleep(2 * time.Second)
				after = stats(t, l)
				took := after.Since(before)
				best = max(best, BitsPerSecond(float64(took.Down.Delivered.Bytes)*8/took.Elapsed.Seconds()))
			}
			t.Logf("asked %s, got %+.2f%%; queue %d of %d bytes at most, %d dropped by it", after.Profile.Down,
				off(best, after.Profile.Down), after.Down.MaxQueue, after.Profile.QueueLimit(after.Profile.Down), after.Down.QueueDropped.Packets)
			if o := off(best, after.Profile.Down); o < -10 || o > 2 {
				t.Errorf("rate %.1f%% off", o)
			}
			if after.Up.Connections != 1 || after.Down.Connections != 0 {
				t.Errorf("%d connections up, %d down", after.Up.Connections, after.Down.Connections)
			}
		})
	}
}

// TestBusyMachine: everything else that runs must not look like a slow link.
func TestBusyMachine(t *testing.T) {
	l := start(t, "rtt=200ms,down=20mbit,up=20mbit")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range 2 * runtime.NumCPU() {
		wg.Go(func() {
			for ctx.Err() == nil {
			}
		})
	}
	down := ways(l, stats(t, l).Profile)[:1]
	throughput(t, l, down, 1400, time.Second, 3*time.Second)
	s := stats(t, l)
	t.Logf("%s priority: rate %+.2f%%, latest packet %v late", s.Priority, off(down[0].counted, 20*Mbit), s.Down.MaxLate)
	// Only the emulator is judged here. The sender, an ordinary process, may
	// be too late to keep the link busy.
	if s.Priority == "normal" {
		t.Skip("the machine grants no priority")
	}
	if o := off(down[0].counted, 20*Mbit); o > 2 {
		t.Errorf("rate %.2f%% off", o)
	}
	if s.Down.MaxLate > 10*time.Millisecond {
		t.Errorf("a packet was delivered %v late", s.Down.MaxLate)
	}
}

// BenchmarkEmulator measures what it costs to carry a second of traffic.
func BenchmarkEmulator(b *testing.B) {
	for _, rate := range []BitsPerSecond{2 * Mbit, 50 * Mbit, 100 * Mbit} {
		b.Run(rate.String(), func(b *testing.B) {
			l := start(b, fmt.Sprintf("rtt=40ms,down=%s,up=1mbit", rate))
			conn, err := l.Node.ListenPacket(b.Context(), "udp", netip.AddrPortFrom(NodeAddr, 0).String())
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close() //nolint:errcheck // the test is over
			ctx, cancel := context.WithCancel(b.Context())
			var g errgroup.Group
			g.Go(func() error {
				return flood(ctx, l.Shore, netip.MustParseAddrPort(conn.LocalAddr().String()), rate, 1500)
			})
			time.Sleep(200 * time.Millisecond)
			before, used := stats(b, l), cpu(b, l)
			for b.Loop() {
				time.Sleep(time.Second)
			}
			after, spent := stats(b, l).Since(before), cpu(b, l)-used
			b.ReportMetric(100*spent.Seconds()/after.Elapsed.Seconds(), "%cpu")
			b.ReportMetric(float64(after.Down.Delivered.Bytes)*8/after.Elapsed.Seconds()/1e6, "Mbit/s")
			cancel()
			if err := g.Wait(); err != nil {
				b.Error(err)
			}
		})
	}
}
