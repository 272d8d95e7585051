// Package fdstore lets descriptors outlive the process that made them. A
// process hands duplicates to a keeper, and whoever is started after it, also
// after a crash, gets them back: a FUSE connection with requests that wait, a
// socket with clients in its queue.
//
// The protocol is that of systemd's file descriptor store (sd_notify(3),
// sd_listen_fds(3)), and both of its sides are here: Store is the daemon's,
// Keeper the keeper's for machines without systemd (internal/supervise).
//
// To keep: a datagram to the socket that $NOTIFY_SOCKET names, with the
// descriptor as SCM_RIGHTS. To have back: descriptors from 3 on, counted by
// $LISTEN_FDS and named by $LISTEN_FDNAMES.
package fdstore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	firstFD = 3   // SD_LISTEN_FDS_START
	maxFDs  = 256 // that a process takes over; a bound for hostile environments
	maxName = 255 // bytes, sd_pid_notify_with_fds(3)
)

// barrierWait is how long a keeper may take to confirm. It has nothing to do
// but read; systemd may be busy while a machine boots.
const barrierWait = 10 * time.Second

// Store is the daemon's side. It is safe for concurrent use.
type Store struct {
	socket string // where to notify; empty without a keeper
	keeps  bool

	mu        sync.Mutex
	inherited map[string]*os.File // guarded by mu; not taken yet
}

// Inherit takes over what the environment says, and clears it there, so that
// children of this process don't take it for theirs. It must be called once,
// before descriptors are opened that might get the same numbers; later calls
// find nothing.
func Inherit() (*Store, error) {
	s := &Store{socket: os.Getenv("NOTIFY_SOCKET"), inherited: make(map[string]*os.File)}
	s.keeps = s.socket != ""
	// systemd says from version 254 on how many it keeps; before, one has to
	// try. Where it keeps none, a stop is a crash, which the next start mends.
	if n, ok := os.LookupEnv("FDSTORE"); ok && n == "0" {
		s.keeps = false
	}
	err := s.inherit(os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES"))
	for _, name := range []string{"NOTIFY_SOCKET", "FDSTORE", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		err = errors.Join(err, os.Unsetenv(name))
	}
	if err != nil {
		return nil, fmt.Errorf("fdstore: inherit descriptors: %w", err)
	}
	return s, nil
}

// inherit takes the descriptors over. A parent that starts programs as os/exec
// does can't know the child's process ID beforehand; it leaves pid away.
func (s *Store) inherit(pid, count, names string) error {
	if count == "" || pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return nil
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 || n > maxFDs {
		return fmt.Errorf("LISTEN_FDS is %q", count)
	}
	name := strings.Split(names, ":")
	for i := range n {
		fd := firstFD + i
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			return fmt.Errorf("descriptor %d of %d: %w", i+1, n, err)
		}
		unix.CloseOnExec(fd)
		what := "unknown" // as sd_listen_fds_with_names(3) has it
		if i < len(name) && name[i] != "" {
			what = name[i]
		}
		f := os.NewFile(uintptr(fd), what)
		if s.inherited[what] != nil { // names are unique here; it is a leftover
			_ = f.Close()
			continue
		}
		s.inherited[what] = f
	}
	return nil
}

// Keeps says whether there is a keeper, so that descriptors given to it will
// reach the process after this one.
func (s *Store) Keeps() bool { return s.keeps }

// Take returns the descriptor that an earlier process left under a name, or
// nil. It is the caller's then; the keeper keeps its own until Drop.
func (s *Store) Take(name string) *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.inherited[name]
	delete(s.inherited, name)
	return f
}

// Keep gives the keeper a duplicate of f under a name, in place of what it had
// under it, and returns when the keeper has it. Without a keeper it does
// nothing.
func (s *Store) Keep(name string, f *os.File) error {
	if !s.keeps {
		return nil
	}
	if name == "" || len(name) > maxName || strings.ContainsAny(name, ":\n") {
		return fmt.Errorf("fdstore: keep %q: not a name", name)
	}
	err := withFD(f, func(fd int) error {
		return s.send(message{"FDSTOREREMOVE=1\nFDNAME=" + name, none}, message{"FDSTORE=1\nFDNAME=" + name, fd})
	})
	if err == nil {
		err = s.barrier()
	}
	if err != nil {
		return fmt.Errorf("fdstore: keep %s: %w", name, err)
	}
	return nil
}

// Drop has the keeper close what it has under a name. It does not fail if
// there is nothing.
func (s *Store) Drop(name string) error {
	if f := s.Take(name); f != nil {
		_ = f.Close() // nobody has written to it
	}
	if !s.keeps {
		return nil
	}
	err := s.send(message{"FDSTOREREMOVE=1\nFDNAME=" + name, none})
	if err == nil {
		err = s.barrier()
	}
	if err != nil {
		return fmt.Errorf("fdstore: drop %s: %w", name, err)
	}
	return nil
}

// DropRest drops what an earlier process left and this one has not taken.
func (s *Store) DropRest() error {
	s.mu.Lock()
	var names []string
	for name := range s.inherited {
		names = append(names, name)
	}
	s.mu.Unlock()
	var errs []error
	for _, name := range names {
		errs = append(errs, s.Drop(name))
	}
	return errors.Join(errs...)
}

// Notify tells whoever started the process of its state, such as "READY=1",
// if it wants to know.
func (s *Store) Notify(state string) error {
	if s.socket == "" {
		return nil
	}
	if err := s.send(message{state, none}); err != nil {
		return fmt.Errorf("fdstore: notify %q: %w", state, err)
	}
	return nil
}

// barrier returns when the keeper has read all that was sent before.
func (s *Store) barrier() error {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = read.Close() }() // only read
	err = withFD(write, func(fd int) error { return s.send(message{"BARRIER=1", fd}) })
	if err := errors.Join(err, write.Close(), read.SetReadDeadline(time.Now().Add(barrierWait))); err != nil {
		return err
	}
	if _, err := read.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("the keeper does not confirm: %w", err)
	}
	return nil
}

// message is a datagram, with a descriptor or none.
type message struct {
	text string
	fd   int
}

const none = -1

func (s *Store) send(messages ...message) (err error) {
	// Not by package net, whose connected sockets send no descriptors.
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(socket)) }()
	for _, m := range messages {
		var oob []byte
		if m.fd != none {
			oob = unix.UnixRights(m.fd)
		}
		err := error(unix.EINTR)
		for errors.Is(err, unix.EINTR) {
			err = unix.Sendmsg(socket, []byte(m.text), oob, &unix.SockaddrUnix{Name: s.socket}, unix.MSG_NOSIGNAL)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// withFD calls fn with the number of an open file without changing its mode.
func withFD(f *os.File, fn func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	err = raw.Control(func(fd uintptr) { ferr = fn(int(fd)) })
	return errors.Join(err, ferr)
}
