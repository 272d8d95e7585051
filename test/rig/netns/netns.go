// Package netns gives the rig its two worlds: network namespaces with a name,
// in which the shore and the node live on one machine without seeing each
// other, except through the link that package link puts between them.
//
// A namespace belongs to the operating system thread, and Go moves goroutines
// between threads at will. So everything that must happen inside a namespace
// happens on a goroutine of its own, locked to a thread that has entered it
// and that dies with the goroutine: it never goes back to the pool, where it
// would make an unrelated goroutine open its sockets in the wrong world. A
// socket stays in the namespace in which it was opened, whoever uses it
// afterwards, and so does a process with all its children. NS.Do, NS.Dial,
// NS.Listen and NS.Start are these three facts as functions.
//
// Names carry the process that owns them (its pid and start time), so that
// Sweep can delete what a crashed run left behind, and nothing else.
package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// dir is where iproute2 looks for named namespaces; keeping to it makes
// `ip netns` and `nsenter --net=` work on ours.
const dir = "/run/netns"

// NS is an open network namespace. It is safe for concurrent use.
type NS struct {
	name string
	path string
	made bool // by Create: Close deletes it

	mu     sync.Mutex
	file   *os.File // guarded by mu against Close; nil afterwards
	closed bool     // guarded by mu
}

// Options says how a new namespace differs from a machine as shipped.
type Options struct {
	// Sysctls are set after the namespace's own, by name with dots:
	// "net.ipv4.tcp_rmem".
	Sysctls map[string]string
}

// Available says why namespaces can't be made here: nil if they can, else
// an error whose text is one line for a user.
func Available() error {
	if os.Geteuid() != 0 {
		return errors.New("netns: network namespaces need root")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return errors.New("netns: no /dev/net/tun on this machine")
	}
	return nil
}

// Create makes a namespace with its loopback up and IPv6 left off on every
// device to come, so that no router solicitation or listener report joins
// the traffic under test. Its name is made unique around label, which must
// be a plain file name. Close deletes it.
func Create(label string, opts Options) (*NS, error) {
	if err := Available(); err != nil {
		return nil, err
	}
	if label == "" || filepath.Base(label) != label {
		return nil, fmt.Errorf("netns: create: label %q is not a plain name", label)
	}
	name, err := OwnName(label)
	if err != nil {
		return nil, fmt.Errorf("netns: create %s: %w", label, err)
	}
	path := filepath.Join(dir, name)
	if err := pin(path); err != nil {
		return nil, fmt.Errorf("netns: create %s: %w", name, err)
	}
	ns, err := Open(path)
	if err != nil {
		return nil, errors.Join(err, remove(path))
	}
	ns.made = true
	if err := ns.configure(opts); err != nil {
		return nil, errors.Join(fmt.Errorf("netns: create %s: %w", name, err), ns.Close())
	}
	return ns, nil
}

// pin makes a namespace and pins it to path.
func pin(path string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // what iproute2 makes it
		return err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount: %w", err)
		}
		return nil
	})
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// configure brings a new namespace into the state that Create promises.
func (n *NS) configure(opts Options) error {
	if err := n.SetSysctl("net.ipv6.conf.default.disable_ipv6", "1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for name, value := range opts.Sysctls {
		if err := n.SetSysctl(name, value); err != nil {
			return err
		}
	}
	return n.SetUp("lo")
}

// Open opens the namespace at path: a file that Create or `ip netns add`
// made, or /proc/PID/ns/net. Close does not delete it.
func Open(path string) (*NS, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("netns: open: %w", err)
	}
	return &NS{name: filepath.Base(path), path: path, file: f}, nil
}

// Name returns the name that `ip netns exec` takes.
func (n *NS) Name() string { return n.name }

// Path returns the file that `nsenter --net=` takes.
func (n *NS) Path() string { return n.path }

// Close closes the namespace and, if Create made it, deletes its name. The
// kernel keeps the namespace itself until the last process and socket in it
// are gone. A second Close does nothing.
func (n *NS) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil
	}
	n.closed = true
	err := n.file.Close()
	if n.made {
		err = errors.Join(err, remove(n.path))
	}
	if err != nil {
		return fmt.Errorf("netns: close %s: %w", n.name, err)
	}
	return nil
}

// Do runs fn on a thread inside the namespace and returns what it returns.
// Goroutines that fn starts are outside again.
func (n *NS) Do(fn func() error) error {
	return onThread(func() error {
		if err := n.enter(); err != nil {
			return err
		}
		return fn()
	})
}

// enter moves the calling thread into the namespace. The caller is locked to
// the thread and must not give it back.
func (n *NS) enter() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return fmt.Errorf("netns: enter %s: %w", n.name, os.ErrClosed)
	}
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("netns: enter %s: %w", n.name, err)
	}
	return nil
}

// onThread runs fn on a thread that serves nothing else before it ends.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := errors.New("netns: function left its goroutine")
		defer func() { done <- err }()
		err = fn()
	}()
	return <-done
}

// remove takes a namespace's name away.
func remove(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) { // not mounted: its creator died in between
		err = nil
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return os.Remove(path)
}
