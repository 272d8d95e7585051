package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxSocketPath is the longest path of a unix socket in bytes (unix(7): 108
// with the terminating zero).
const maxSocketPath = 107

// Listen makes a unix socket at path that only its owner, root, can connect to.
// Missing parent directories are made with mode 0700. A socket that a dead
// process left is replaced; if a process listens on it the error names the
// process. The socket is removed when the listener is closed.
func Listen(ctx context.Context, path string) (_ net.Listener, err error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("snapshotter: listen on %s: the path has %d bytes, a unix socket's can have %d", path, len(path), maxSocketPath)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("snapshotter: listen on %s: %w", path, err)
	}
	// Two daemons that start at once must not both find the same stale socket
	// and the second one remove what the first has just made.
	lock, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("snapshotter: listen on %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("snapshotter: listen on %s: lock %s: %w", path, dir, err)
	}
	if err := removeStale(ctx, path); err != nil {
		return nil, fmt.Errorf("snapshotter: listen on %s: %w", path, err)
	}
	config := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error {
		// The mode of an unbound socket is that of the file that bind makes:
		// there is no moment at which others could connect.
		var chmodErr error
		err := conn.Control(func(fd uintptr) { chmodErr = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, chmodErr)
	}}
	lis, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("snapshotter: %w", err)
	}
	return lis, nil
}

// removeStale removes the socket at path unless somebody listens on it.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != os.ModeSocket:
		return errors.New("there is something else than a socket; move it away or choose another path")
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		who := peer(conn)
		return errors.Join(fmt.Errorf("in use by %s; stop it or choose another path", who), conn.Close())
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	default:
		return err
	}
}

// peer says which process listens at the other end of a unix connection.
func peer(conn net.Conn) string {
	const unknown = "another process"
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return unknown
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return unknown
	}
	var cred *unix.Ucred
	if ctlErr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); ctlErr != nil || err != nil || cred.Pid == 0 {
		return unknown
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cred.Pid))
	if err != nil {
		return fmt.Sprintf("process %d", cred.Pid)
	}
	return fmt.Sprintf("process %d (%s)", cred.Pid, strings.TrimSpace(string(name)))
}
