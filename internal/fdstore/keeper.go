package fdstore

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	maxKept    = 64   // descriptors; a node's daemon has five
	maxMessage = 4096 // bytes
	maxSenders = 16   // processes that are listened to: the last that were started
)

// Keeper is the keeper's side: it holds descriptors for processes that are
// started one after the other. It is safe for concurrent use.
type Keeper struct {
	conn    *net.UnixConn
	address string
	served  sync.WaitGroup
	notify  func(state string)

	mu      sync.Mutex
	kept    []kept // guarded by mu; in the order in which they came
	senders []int  // guarded by mu; process IDs
}

type kept struct {
	name string
	fd   int // ours
}

// NewKeeper starts a keeper. It calls notify, one call at a time, with what
// processes say of themselves, such as "READY=1". The caller closes it.
func NewKeeper(notify func(state string)) (*Keeper, error) {
	// An abstract address needs no directory, and nothing is left of it.
	address := "@airstream-keeper-" + rand.Text()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("fdstore: listen: %w", err)
	}
	k := &Keeper{conn: conn, address: address, notify: notify, senders: []int{os.Getpid()}}
	raw, err := conn.SyscallConn()
	if err == nil {
		var serr error
		err = raw.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
		err = errors.Join(err, serr)
	}
	if err != nil {
		return nil, fmt.Errorf("fdstore: listen: %w", errors.Join(err, conn.Close()))
	}
	k.served.Go(k.serve)
	return k, nil
}

// Environ returns the environment of the next process: env, and where to find
// the keeper and the files, which must be its descriptors from 3 on.
func (k *Keeper) Environ(env []string) (environ []string, files []*os.File, err error) {
	if err := k.Settle(); err != nil {
		return nil, nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.kept = slices.DeleteFunc(k.kept, func(f kept) bool {
		if ended(f.fd) {
			_ = unix.Close(f.fd) // it has ended
			return true
		}
		return false
	})
	var names []string
	for _, f := range k.kept {
		fd, err := unix.FcntlInt(uintptr(f.fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			closeAll(files)
			return nil, nil, fmt.Errorf("fdstore: duplicate %s: %w", f.name, err)
		}
		files = append(files, os.NewFile(uintptr(fd), f.name))
		names = append(names, f.name)
	}
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		switch name {
		case "NOTIFY_SOCKET", "FDSTORE", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES":
		default:
			environ = append(environ, e)
		}
	}
	environ = append(environ, "NOTIFY_SOCKET="+k.address, fmt.Sprintf("FDSTORE=%d", maxKept))
	if len(files) > 0 {
		environ = append(environ, fmt.Sprintf("LISTEN_FDS=%d", len(files)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	return environ, files, nil
}

// Settle returns when all that processes sent before is here, also of one that
// has died meanwhile.
func (k *Keeper) Settle() error {
	self := &Store{socket: k.address, keeps: true}
	if err := self.barrier(); err != nil {
		return fmt.Errorf("fdstore: %w", err)
	}
	return nil
}

// Started tells the keeper of a process that it shall listen to, besides those
// before it: what they have sent may still be on its way.
func (k *Keeper) Started(pid int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.senders = append(k.senders, pid)
	if len(k.senders) > maxSenders {
		k.senders = slices.Delete(k.senders, 1, 2) // the first is this process
	}
}

// Names returns the names of what is kept.
func (k *Keeper) Names() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var names []string
	for _, f := range k.kept {
		names = append(names, f.name)
	}
	return names
}

// Close closes what is kept, and returns when nothing is read any more.
func (k *Keeper) Close() error {
	err := k.conn.Close()
	k.served.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.remove(func(string) bool { return true })
	if err != nil {
		return fmt.Errorf("fdstore: close: %w", err)
	}
	return nil
}

// serve reads until the socket is closed. Nothing that a message can be ends
// it.
func (k *Keeper) serve() {
	text := make([]byte, maxMessage)
	oob := make([]byte, 4096) // SCM_MAX_FD is 253 descriptors of 4 bytes
	for {
		n, oobn, flags, _, err := k.conn.ReadMsgUnix(text, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		pid, fds := control(oob[:oobn])
		if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) == 0 && k.listensTo(pid) {
			fds = k.message(string(text[:n]), fds)
		}
		for _, fd := range fds {
			_ = unix.Close(fd) // also what ends a barrier
		}
	}
}

// control takes a control message apart. The descriptors are the caller's.
func control(oob []byte) (pid int, fds []int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0, nil
	}
	for i := range messages {
		if cred, err := unix.ParseUnixCredentials(&messages[i]); err == nil {
			pid = int(cred.Pid)
		} else if f, err := unix.ParseUnixRights(&messages[i]); err == nil {
			fds = append(fds, f...)
		}
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	return pid, fds
}

func (k *Keeper) listensTo(pid int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return pid != 0 && slices.Contains(k.senders, pid)
}

// message does what a message says and returns the descriptors that it didn't
// keep.
func (k *Keeper) message(text string, fds []int) (rest []int) {
	var store, remove, barrier bool
	name := "stored" // as sd_pid_notify_with_fds(3) has it
	var states []string
	for line := range strings.SplitSeq(text, "\n") {
		key, value, _ := strings.Cut(line, "=")
		switch key {
		case "FDSTORE":
			store = value == "1"
		case "FDSTOREREMOVE":
			remove = value == "1"
		case "FDNAME":
			name = value
		case "BARRIER":
			barrier = value == "1"
		case "FDPOLL", "":
		default:
			states = append(states, line)
		}
	}
	if len(states) > 0 && !barrier {
		k.notify(strings.Join(states, "\n"))
	}
	if name == "" || len(name) > maxName || strings.ContainsRune(name, ':') {
		return fds
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case remove:
		k.remove(func(n string) bool { return n == name })
	case store:
		for len(fds) > 0 && len(k.kept) < maxKept {
			k.kept = append(k.kept, kept{name, fds[0]})
			fds = fds[1:]
		}
	}
	return fds
}

// remove closes what has one of these names. It needs mu.
func (k *Keeper) remove(is func(name string) bool) {
	k.kept = slices.DeleteFunc(k.kept, func(f kept) bool {
		if is(f.name) {
			_ = unix.Close(f.fd) // its other duplicates say what went wrong
			return true
		}
		return false
	})
}

// ended says whether a descriptor is of no use any more: an unmounted FUSE
// connection, a pipe without another end.
func ended(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd)}}
	_, err := unix.Poll(fds, 0)
	return err == nil && fds[0].Revents&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) != 0
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // duplicates
	}
}
