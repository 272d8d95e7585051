package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func create(t *testing.T, label string, opts Options) *NS {
	t.Helper()
	if err := Available(); err != nil {
		t.Skip(err)
	}
	ns, err := Create(label, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(ns.Path()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("after Close %s is still there: %v", ns.Path(), err)
		}
	})
	return ns
}

// id returns the identity of the namespace that the calling thread is in.
func id(t *testing.T) string {
	t.Helper()
	target, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Error(err)
	}
	return target
}

func TestDoEntersAndNeverTaintsThePool(t *testing.T) {
	a, b := create(t, "a", Options{}), create(t, "b", Options{})
	outside := id(t)
	seen := make(map[string]string)
	for _, ns := range []*NS{a, b} {
		if err := ns.Do(func() error { seen[ns.Name()] = id(t); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if seen[a.Name()] == seen[b.Name()] || seen[a.Name()] == outside {
		t.Errorf("namespaces are not apart: %v, outside %s", seen, outside)
	}
	// Goroutines on many threads, while others enter and leave.
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			if err := a.Do(func() error { return nil }); err != nil {
				t.Error(err)
			}
			if got := id(t); got != outside {
				t.Errorf("a goroutine outside runs in %s", got)
			}
		})
	}
	wg.Wait()
}

func TestDoReturnsTheFunctionsError(t *testing.T) {
	ns := create(t, "error", Options{})
	want := errors.New("mine")
	if err := ns.Do(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
}

func TestClosedNamespaceRefuses(t *testing.T) {
	ns := create(t, "closed", Options{})
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(func() error { return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Do after Close: %v", err)
	}
}

func TestSocketsLiveInTheirNamespace(t *testing.T) {
	a, b := create(t, "a", Options{}), create(t, "b", Options{})
	ctx := t.Context()
	l, err := a.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // the test is over
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		fmt.Fprint(conn, "hello") //nolint:errcheck // the reader notices
		conn.Close()              //nolint:errcheck // the reader notices
	}()
	if conn, err := b.Dial(ctx, "tcp", l.Addr().String()); err == nil {
		conn.Close() //nolint:errcheck // must not have been opened
		t.Error("b reaches a's loopback")
	}
	conn, err := a.Dial(ctx, "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // the test is over
	var got bytes.Buffer
	if _, err := got.ReadFrom(conn); err != nil || got.String() != "hello" {
		t.Errorf("got %q, %v", got.String(), err)
	}
	if _, err := a.Dial(ctx, "tcp", "localhost:80"); err == nil {
		t.Error("a name was accepted, though it would be resolved outside")
	}
}

func TestDialObeysItsContext(t *testing.T) {
	ns := create(t, "dial", Options{})
	err := ns.AddRoute(Route{To: netip.MustParsePrefix("192.0.2.0/24"), Device: "lo"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := ns.Dial(ctx, "tcp", "192.0.2.1:80"); err == nil {
		t.Error("reached nobody")
	}
}

func TestSettings(t *testing.T) {
	ns := create(t, "sysctl", Options{Sysctls: map[string]string{"net.ipv4.tcp_slow_start_after_idle": "0"}})
	for name, want := range map[string]string{
		"net.ipv4.tcp_slow_start_after_idle": "0",
		"net.ipv6.conf.default.disable_ipv6": "1",
	} {
		if got, err := ns.Sysctl(name); err != nil || got != want {
			t.Errorf("%s = %q, %v; want %s", name, got, err, want)
		}
	}
	if err := ns.SetSysctl("kernel.hostname", "oops"); err == nil {
		t.Error("a setting of the whole machine was let through")
	}
}

func TestAddressesAndRoutes(t *testing.T) {
	ns := create(t, "addr", Options{})
	if err := ns.AddAddress("lo", netip.MustParseAddr("10.1.2.3")); err != nil {
		t.Fatal(err)
	}
	if err := ns.AddAddress("lo", netip.MustParseAddr("10.1.2.3")); !errors.Is(err, syscall.EEXIST) {
		t.Errorf("the same address again: %v", err)
	}
	l, err := ns.Listen(t.Context(), "tcp", "10.1.2.3:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := ns.SetMTU("lo", 1400); err != nil {
		t.Fatal(err)
	}
	if err := ns.SetTxQueueLen("lo", 77); err != nil {
		t.Fatal(err)
	}
	err = ns.Do(func() error {
		lo, err := net.InterfaceByName("lo")
		if err == nil && (lo.MTU != 1400 || lo.Flags&net.FlagUp == 0) {
			err = fmt.Errorf("loopback is %+v", lo)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if n, err := ns.Dropped("lo"); err != nil || n != 0 {
		t.Errorf("dropped %d, %v", n, err)
	}
	if _, err := ns.Dropped("nosuch"); err == nil {
		t.Error("counters of a device that is not there")
	}
}

func TestRouteChoosesCongestionControl(t *testing.T) {
	ns := create(t, "route", Options{})
	if err := ns.AddAddress("lo", netip.MustParseAddr("10.1.2.3")); err != nil {
		t.Fatal(err)
	}
	route := Route{To: netip.MustParsePrefix("10.9.0.0/16"), Device: "lo", CongestionControl: "nosuch"}
	if err := ns.AddRoute(route); err == nil {
		t.Error("an unknown algorithm was accepted")
	}
	for i, algorithm := range []string{"cubic", "reno"} {
		route.To = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, byte(i), 0}), 24)
		route.CongestionControl = algorithm
		if err := ns.AddRoute(route); err != nil {
			t.Fatal(err)
		}
		err := ns.Do(func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd) //nolint:errcheck // the test is over
			err = unix.Connect(fd, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{10, 9, byte(i), 1}})
			if err != nil && !errors.Is(err, unix.EINPROGRESS) {
				return err
			}
			got, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
			if err == nil && strings.TrimRight(got, "\x00") != algorithm {
				err = fmt.Errorf("connection uses %q, want %s", got, algorithm)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func TestProcessRunsInsideAndStops(t *testing.T) {
	ns := create(t, "process", Options{})
	log := filepath.Join(t.TempDir(), "log")
	p, err := ns.Start(Command{Args: []string{"sh", "-c", "readlink /proc/self/ns/net; exec sleep 60"}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	var want string
	if err := ns.Do(func() error { want = id(t); return nil }); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); !strings.Contains(p.LogTail(), want); {
		if time.Now().After(deadline) {
			t.Fatalf("process says %q, want %s", p.LogTail(), want)
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err := p.Stop(t.Context(), 5*time.Second); err != nil {
		t.Error(err)
	}
	if err := p.Stop(t.Context(), time.Second); err != nil {
		t.Errorf("second Stop: %v", err)
	}
}

func TestProcessErrorQuotesItsLog(t *testing.T) {
	var here *NS // start it in our own namespace: needs no root
	log := filepath.Join(t.TempDir(), "log")
	p, err := here.Start(Command{Args: []string{"sh", "-c", "echo the disk is on fire; exit 3"}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	err = p.Wait(t.Context())
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(err.Error(), "the disk is on fire") {
		t.Errorf("got %v", err)
	}
	if _, err := here.Start(Command{Args: []string{"/no/such/program"}, Log: log}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing program: %v", err)
	}
}

func TestStubbornProcessIsKilled(t *testing.T) {
	var here *NS
	log := filepath.Join(t.TempDir(), "log")
	p, err := here.Start(Command{Args: []string{"sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	for p.LogTail() == "" {
		time.Sleep(5 * time.Millisecond)
	}
	if err := p.Stop(t.Context(), 50*time.Millisecond); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("got %v", err)
	}
	if Alive(fmt.Sprintf("%d.0", p.PID())) {
		t.Error("still alive")
	}
}

func TestTailKeepsWholeLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte("first line\nsecond\nthird\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := Tail(path, 15); got != "second\nthird\n" {
		t.Errorf("got %q", got)
	}
	if got := Tail(path, 100); got != "first line\nsecond\nthird\n" {
		t.Errorf("got %q", got)
	}
}

func TestSweepTakesOnlyTheDead(t *testing.T) {
	mine := create(t, "mine", Options{})
	// A namespace whose name says that it belongs to a process that has ended.
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	dead := filepath.Join(dir, fmt.Sprintf("airstream.%d.12345.1.dead", cmd.Process.Pid))
	if err := pin(dead); err != nil {
		t.Fatal(err)
	}
	// And one of somebody else's.
	foreign := filepath.Join(dir, fmt.Sprintf("foreign-%d", os.Getpid()))
	if err := pin(foreign); err != nil {
		t.Fatal(err)
	}
	defer remove(foreign) //nolint:errcheck // reported below if it was swept
	swept, err := Sweep()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the dead one stays (swept %v)", swept)
	}
	for _, path := range []string{mine.Path(), foreign} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("Sweep took %s", path)
		}
	}
}

func TestOwnerOf(t *testing.T) {
	for name, want := range map[string]string{
		"airstream.12.345.6.node":      "12.345",
		"airstream.12.345.6.a.b":       "12.345",
		"airstream.12.345.node":        "",
		"other.12.345.6.node":          "",
		"airstream.x.345.6.node":       "",
		"airstream.12..6.node":         "",
		"airstream.12.345.-1.node":     "",
		"airstream":                    "",
		"airstream.12.345.6":           "",
		"airstream.99999999999999.1.1": "",
	} {
		if got, ok := OwnerOf(name); got != want || ok != (want != "") {
			t.Errorf("%s: got %q, %v", name, got, ok)
		}
	}
	self, err := Owner(os.Getpid())
	if err != nil || !Alive(self) {
		t.Errorf("this process %q is not alive: %v", self, err)
	}
	if Alive("nonsense") || Alive(fmt.Sprintf("%d.1", os.Getpid())) {
		t.Error("alive, though it can't be")
	}
}
