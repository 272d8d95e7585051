package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/test/rig/netns"
)

// command gives a command and fails the test if it is refused.
func command(t *testing.T, do func(context.Context) (Stats, error)) Stats {
	t.Helper()
	s, err := do(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// connect opens a TCP connection to a listener at the shore.
func connect(t *testing.T, l *Link) (node, shore net.Conn) {
	t.Helper()
	listener, err := l.Shore.Listen(t.Context(), "tcp", netip.AddrPortFrom(ShoreAddr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close() //nolint:errcheck // one connection is enough
	if node, err = l.Node.Dial(t.Context(), "tcp", listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if shore, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		node.Close()  //nolint:errcheck // the test is over
		shore.Close() //nolint:errcheck // the test is over
	})
	return node, shore
}

func TestCutAndRestore(t *testing.T) {
	l := start(t, "rtt=20ms,down=10mbit,up=10mbit")
	server := echo(t, l)
	if n := len(ping(t, l, server, 5, time.Second)); n != 5 {
		t.Fatalf("%d of 5 echoes over a good link", n)
	}
	if s := command(t, l.Cut); s.Mode != ModeCut || !s.Dark {
		t.Errorf("after Cut: %+v", s)
	}
	if n := len(ping(t, l, server, 3, 100*time.Millisecond)); n != 0 {
		t.Errorf("%d echoes over a link that is cut", n)
	}
	s := command(t, l.Restore)
	if s.Mode != ModeOpen || s.Dark || s.Up.OutageDropped.Packets != 3 {
		t.Errorf("after Restore: %+v", s)
	}
	if n := len(ping(t, l, server, 5, time.Second)); n != 5 {
		t.Errorf("%d of 5 echoes after Restore", n)
	}
}

// TCP waits through darkness and goes on afterwards.
func TestConnectionSurvivesACut(t *testing.T) {
	l := start(t, "rtt=20ms,down=10mbit,up=10mbit")
	node, shore := connect(t, l)
	command(t, l.Cut)
	if _, err := shore.Write([]byte("patience")); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(300*time.Millisecond, func() { l.Restore(context.Background()) }) //nolint:errcheck // the read fails then
	if err := node.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	buf := make([]byte, 100)
	n, err := node.Read(buf)
	if err != nil || string(buf[:n]) != "patience" || time.Since(begin) < 300*time.Millisecond {
		t.Errorf("read %q, %v after %v", buf[:n], err, time.Since(begin))
	}
}

func TestResetBreaksConnectionsAndRefusesNewOnes(t *testing.T) {
	l := start(t, "rtt=20ms,down=10mbit,up=10mbit")
	node, _ := connect(t, l)
	command(t, l.Reset)
	if _, err := node.Write([]byte("anybody there?")); err != nil {
		t.Fatal(err)
	}
	if err := node.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := node.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("open connection: %v", err)
	}
	if _, err := l.Node.Dial(t.Context(), "tcp", netip.AddrPortFrom(ShoreAddr, 80).String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("new connection: %v", err)
	}
	s := command(t, l.Restore)
	if s.Up.Connections != 2 || s.Up.Resets < 2 {
		t.Errorf("counters: %+v", s.Up)
	}
	connect(t, l)
}

func TestBlackholeIsSilent(t *testing.T) {
	l := start(t, "rtt=20ms,down=10mbit,up=10mbit")
	command(t, l.Blackhole)
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	_, err := l.Node.Dial(ctx, "tcp", netip.AddrPortFrom(ShoreAddr, 80).String())
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("connect: %v", err)
	}
	s := command(t, l.Restore)
	// The kernel repeats the SYN after a second: one connection, two SYNs.
	if s.Up.Blackholed.Packets < 2 || s.Up.Resets != 0 || s.Up.Connections != 1 || s.Up.SYNs < 2 {
		t.Errorf("counters: %+v", s.Up)
	}
}

func TestScheduledOutage(t *testing.T) {
	l := start(t, "rtt=10ms,down=10mbit,up=10mbit")
	server := echo(t, l)
	if _, err := l.Schedule(t.Context(), Outage{For: 400 * time.Millisecond, Every: 800 * time.Millisecond, After: 400 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	// 32 echoes 50 ms apart are two periods: half of them are lost.
	came := 0
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range 32 {
		<-tick.C
		came += len(ping(t, l, server, 1, 40*time.Millisecond))
	}
	if came < 13 || came > 19 {
		t.Errorf("%d of 32 echoes", came)
	}
	s, err := l.Schedule(t.Context())
	if err != nil || len(s.Profile.Outages) != 0 {
		t.Errorf("cleared timetable: %v, %v", s.Profile.Outages, err)
	}
	if _, err := l.Schedule(t.Context(), Outage{For: -1}); err == nil || !strings.Contains(err.Error(), "outage") {
		t.Errorf("an impossible outage: %v", err)
	}
}

func TestProfileCanChange(t *testing.T) {
	l := start(t, "rtt=10ms,down=10mbit,up=10mbit")
	server := echo(t, l)
	p, err := Parse("rtt=300ms,down=1mbit,up=1mbit,mtu=600,name=slower")
	if err != nil {
		t.Fatal(err)
	}
	if s, err := l.SetProfile(t.Context(), p); err != nil || s.Profile.Name != "slower" {
		t.Fatalf("%+v, %v", s.Profile, err)
	}
	if m := median(ping(t, l, server, 3, 2*time.Second)); m < 295*time.Millisecond || m > 315*time.Millisecond {
		t.Errorf("round trip %v", m)
	}
	for _, ns := range []*netns.NS{l.Shore, l.Node} {
		err := ns.Do(func() error {
			device, err := net.InterfaceByName(Device)
			if err == nil && device.MTU != 600 {
				err = fmt.Errorf("mtu is %d", device.MTU)
			}
			return err
		})
		if err != nil {
			t.Errorf("%s: %v", ns.Name(), err)
		}
	}
	p.MTU = 1
	if _, err := l.SetProfile(t.Context(), p); err == nil || !strings.Contains(err.Error(), "mtu") {
		t.Errorf("an impossible profile: %v", err)
	}
}

// Nobody but the test talks: an idle link stays idle, so counters can be
// compared with what was sent.
func TestNoForeignTraffic(t *testing.T) {
	l := start(t, "direct")
	time.Sleep(1200 * time.Millisecond) // router solicitations come within a second
	s := stats(t, l)
	if s.Down.Offered.Packets+s.Up.Offered.Packets != 0 {
		t.Errorf("%d packets down and %d up that nobody sent", s.Down.Offered.Packets, s.Up.Offered.Packets)
	}
	if n := len(ping(t, l, echo(t, l), 10, time.Second)); n != 10 {
		t.Errorf("%d echoes", n)
	}
	s = stats(t, l)
	if want := (Count{10, 360}); s.Up.Delivered != want || s.Down.Delivered != want {
		t.Errorf("counted %+v up, %+v down; want %+v", s.Up.Delivered, s.Down.Delivered, want)
	}
}

func TestCongestionControlOfEachSide(t *testing.T) {
	if err := netns.Available(); err != nil {
		t.Skip(err)
	}
	l, err := Start(t.Context(), Options{EmulatorOptions: EmulatorOptions{Profile: Direct(), NodeCongestionControl: "reno"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	node, shore := connect(t, l)
	for _, side := range []struct {
		conn net.Conn
		want string
	}{{node, "reno"}, {shore, "cubic"}} {
		raw, err := side.conn.(*net.TCPConn).SyscallConn() //nolint:errcheck,forcetypeassert // it is one
		if err != nil {
			t.Fatal(err)
		}
		var got string
		raw.Control(func(fd uintptr) { //nolint:errcheck // empty then
			got, _ = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		})
		if strings.TrimRight(got, "\x00") != side.want {
			t.Errorf("congestion control %q, want %s", got, side.want)
		}
	}
}

func TestStartCleansUpAfterItself(t *testing.T) {
	if err := netns.Available(); err != nil {
		t.Skip(err)
	}
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	// A binary that isn't an emulator: whatever was made is taken away.
	_, err := Start(t.Context(), Options{EmulatorOptions: EmulatorOptions{Profile: Direct()}, Airlink: "/bin/echo"})
	if err == nil || !strings.Contains(err.Error(), "not ready") {
		t.Errorf("got %v", err)
	}
	l, err := Start(t.Context(), Options{EmulatorOptions: EmulatorOptions{Profile: Direct()}})
	if err != nil {
		t.Fatal(err)
	}
	pid := l.process.PID()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	for _, path := range []string{l.Shore.Path(), l.Node.Path(), l.Path, fmt.Sprintf("/proc/%d", pid)} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there", path)
		}
	}
	if _, err := l.Stats(t.Context()); err == nil {
		t.Error("a closed link answers")
	}
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestCommandsObeyTheirContext(t *testing.T) {
	// A socket that accepts and never answers.
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // the test is over
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := (Client{Path: path}).Stats(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
