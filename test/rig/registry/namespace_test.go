package registry

import (
	"errors"
	"net"
	"net/http"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/test/rig/tools"
)

// A front can stand in another network namespace: from here it can't be
// reached, and what is behind it can.
func TestFrontInANamespace(t *testing.T) {
	tools.Need(t, tools.Root, tools.NetNS, "ip")
	r := start(t, Options{})
	push(t, r, "app:v1", image(t, 1))
	inside := newNamespace(t)
	f, err := r.Front(FrontOptions{Redirect: true, Listen: func() (l net.Listener, err error) {
		inside(func() { l, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0") })
		return l, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // the test is over
	if conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", f.Host()); err == nil {
		_ = conn.Close()
		t.Error("the front can be reached from outside")
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	dial := make(chan net.Conn, 2)
	for _, host := range []string{f.Host(), f.StorageHost()} {
		inside(func() {
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", host)
			if err != nil {
				t.Error(err)
			}
			dial <- conn
		})
	}
	for range 2 {
		if conn := <-dial; conn != nil {
			_ = conn.Close()
		}
	}
	if c := f.Counts(); c.Connections > 2 {
		t.Errorf("%d connections", c.Connections)
	}
}

// newNamespace returns a function that runs another in a network namespace with
// loopback, which lasts as long as the test.
func newNamespace(t *testing.T) func(func()) {
	t.Helper()
	work, done := make(chan func()), make(chan struct{})
	ready := make(chan error)
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := syscall.Unshare(syscall.CLONE_NEWNET)
		if err == nil {
			err = loopbackUp()
		}
		ready <- err
		for f := range work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(work); <-done })
	return func(f func()) {
		wait := make(chan struct{})
		work <- func() { f(); close(wait) }
		<-wait
	}
}

// loopbackUp sets the flags that bring lo up in the thread's namespace.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return errors.Join(unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr), unix.Close(fd))
}
