package link

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/test/rig/netns"
)

// udpHeaders is what IP and UDP add to a payload, in bytes.
const udpHeaders = 28

// start starts a link in a process of its own.
func start(tb testing.TB, profile string) *Link {
	tb.Helper()
	if err := netns.Available(); err != nil {
		tb.Skip(err)
	}
	p, err := Parse(profile)
	if err != nil {
		tb.Fatal(err)
	}
	l, err := Start(tb.Context(), Options{EmulatorOptions: EmulatorOptions{Profile: p, Seed: 1}})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := l.Close(); err != nil {
			tb.Error(err)
		}
	})
	return l
}

func stats(tb testing.TB, l *Link) Stats {
	tb.Helper()
	s, err := l.Stats(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// echo answers datagrams at the shore until the test ends.
func echo(tb testing.TB, l *Link) netip.AddrPort {
	tb.Helper()
	conn, err := l.Shore.ListenPacket(tb.Context(), "udp", netip.AddrPortFrom(ShoreAddr, 0).String())
	if err != nil {
		tb.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			conn.WriteTo(buf[:n], from) //nolint:errcheck // a lost answer, as any other
		}
	}()
	tb.Cleanup(func() {
		conn.Close() //nolint:errcheck // ends the loop
		<-done
	})
	return netip.MustParseAddrPort(conn.LocalAddr().String())
}

// ping sends n datagrams of size bytes one after another and returns the
// round trip times of those that came back.
func ping(tb testing.TB, l *Link, to netip.AddrPort, n int, patience time.Duration) []time.Duration {
	tb.Helper()
	conn, err := l.Node.Dial(tb.Context(), "udp", to.String())
	if err != nil {
		tb.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // the test is over
	var times []time.Duration
	buf := make([]byte, 64)
	for i := range n {
		binary.BigEndian.PutUint64(buf, uint64(i)) //nolint:gosec // small
		sent := time.Now()
		if _, err := conn.Write(buf[:8]); err != nil {
			tb.Fatal(err)
		}
		if err := conn.SetReadDeadline(sent.Add(patience)); err != nil {
			tb.Fatal(err)
		}
		for {
			n, err := conn.Read(buf)
			if err != nil {
				break
			}
			if n == 8 && binary.BigEndian.Uint64(buf) == uint64(i) { //nolint:gosec // small
				times = append(times, time.Since(sent))
				break
			}
		}
	}
	return times
}

func median(times []time.Duration) time.Duration {
	slices.Sort(times)
	return times[len(times)/2]
}

// stock is how much flood sends ahead, so that a pause of the test does not
// let the link run dry.
const stock = 300 * time.Millisecond

// flood sends datagrams that make IP packets of size bytes from one side to
// the other until ctx ends: stock at once, then 1.15 times rate.
func flood(ctx context.Context, from *netns.NS, to netip.AddrPort, rate BitsPerSecond, size int) error {
	conn, err := from.Dial(ctx, "udp", to.String())
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is buffered in it
	payload := make([]byte, size-udpHeaders)
	begin := time.Now()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for sent := int64(0); ; {
		for budget := (rate + rate/7).Bytes(time.Since(begin) + stock); sent < budget; sent += int64(size) {
			if _, err := conn.Write(payload); err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// count reads datagrams until ctx ends and returns the rate at which they
// came, from the first after warmUp to the last, as IP packets.
func count(ctx context.Context, conn net.PacketConn, warmUp time.Duration) (BitsPerSecond, error) {
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) }) //nolint:errcheck // ends the wait below
	defer stop()
	buf := make([]byte, MaxMTU)
	begin := time.Now()
	var first, last time.Time
	var bits int64
	for {
		n, _, err := conn.ReadFrom(buf)
		now := time.Now()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if bits == 0 {
				return 0, errors.New("nothing came")
			}
			return BitsPerSecond(float64(bits) / last.Sub(first).Seconds()), nil
		case err != nil:
			return 0, err
		case now.Sub(begin) < warmUp:
		case first.IsZero():
			first = now
		default:
			bits += int64(n+udpHeaders) * 8
			last = now
		}
	}
}

// way is one direction of a link under test.
type way struct {
	name     string
	from, to *netns.NS
	address  netip.Addr // of the receiver
	asked    BitsPerSecond
	pick     func(Stats) DirectionStats

	seen, counted BitsPerSecond // results: what the receiver saw, what the emulator counted
}

// ways returns the directions in which a link carries anything.
func ways(l *Link, p Profile) []*way {
	all := []*way{
		{name: "down", from: l.Shore, to: l.Node, address: NodeAddr, asked: p.Down, pick: func(s Stats) DirectionStats { return s.Down }},
		{name: "up", from: l.Node, to: l.Shore, address: ShoreAddr, asked: p.Up, pick: func(s Stats) DirectionStats { return s.Up }},
	}
	return slices.DeleteFunc(all, func(w *way) bool { return w.asked == 0 })
}

// throughput floods all ways at once for a while and fills in their results.
func throughput(t *testing.T, l *Link, ways []*way, size int, warmUp, window time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), warmUp+window)
	defer cancel()
	var g errgroup.Group
	for _, w := range ways {
		conn, err := w.to.ListenPacket(ctx, "udp", netip.AddrPortFrom(w.address, 0).String())
		if err != nil {
			t.Fatal(err)
		}
		// Open until both ways are done: an answer that nobody listens would
		// be traffic the other way.
		defer conn.Close() //nolint:errcheck // the test is over
		enlarge(t, conn)
		g.Go(func() error {
			return flood(ctx, w.from, netip.MustParseAddrPort(conn.LocalAddr().String()), w.asked, size)
		})
		g.Go(func() (err error) { w.seen, err = count(ctx, conn, warmUp); return err })
	}
	time.Sleep(warmUp)
	before := stats(t, l)
	time.Sleep(window - window/10)
	took := stats(t, l).Since(before)
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, w := range ways {
		d := w.pick(took)
		if d.KernelDropped != 0 {
			t.Errorf("%s: %d packets never reached the emulator", w.name, d.KernelDropped)
		}
		w.counted = BitsPerSecond(float64(d.Delivered.Bytes) * 8 / took.Elapsed.Seconds())
	}
}

// enlarge gives a socket a buffer that lasts through pauses of its reader.
func enlarge(t *testing.T, conn net.PacketConn) {
	t.Helper()
	raw, err := conn.(*net.UDPConn).SyscallConn() //nolint:errcheck,forcetypeassert // it is one
	if err != nil {
		t.Fatal(err)
	}
	var optErr error
	err = raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	})
	if err := errors.Join(err, optErr); err != nil {
		t.Fatal(err)
	}
}

// slow reports whether the way carried less than it should have.
func (w *way) slow() bool { return min(off(w.seen, w.asked), off(w.counted, w.asked)) < -2 }

// check fails if a way's rate is more than 2% off.
func (w *way) check(t *testing.T) {
	t.Helper()
	t.Logf("%s: asked %s, receiver saw %+.2f%%, counters say %+.2f%%", w.name, w.asked, off(w.seen, w.asked), off(w.counted, w.asked))
	for _, o := range []float64{off(w.seen, w.asked), off(w.counted, w.asked)} {
		if o < -2 || o > 2 {
			t.Errorf("%s: a rate %.2f%% off", w.name, o)
		}
	}
}

// off returns how far a rate is from what was asked for, in percent.
func off(got, want BitsPerSecond) float64 { return (float64(got)/float64(want) - 1) * 100 }

// cpu returns the processor time that the emulator's process has used.
func cpu(tb testing.TB, l *Link) time.Duration {
	tb.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", l.process.PID()))
	if err != nil {
		tb.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	var ticks int64
	for _, f := range fields[11:13] { // user and system time, 100 Hz: proc(5)
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			tb.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// bulk streams from shore to node over TCP until the returned function is
// called.
func bulk(t *testing.T, l *Link) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	g, ctx := errgroup.WithContext(ctx)
	listener, err := l.Shore.Listen(ctx, "tcp", netip.AddrPortFrom(ShoreAddr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	g.Go(func() error {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		defer context.AfterFunc(ctx, func() { conn.Close() })() //nolint:errcheck // ends Write
		buf := make([]byte, 64<<10)
		for {
			if _, err := conn.Write(buf); err != nil {
				return nil // the reader has had enough
			}
		}
	})
	conn, err := l.Node.Dial(ctx, "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	g.Go(func() error {
		defer context.AfterFunc(ctx, func() { conn.Close() })() //nolint:errcheck // ends Copy
		io.Copy(io.Discard, conn)                               //nolint:errcheck // ends when closed
		return nil
	})
	return func() {
		cancel()
		if err := errors.Join(g.Wait(), listener.Close()); err != nil {
			t.Error(err)
		}
	}
}
