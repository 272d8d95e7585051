package site

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/test/rig/netns"
)

// startLimit bounds the daemon's start. It takes milliseconds.
const startLimit = 30 * time.Second

// daemon is the Airstream daemon as a user without systemd runs it: below
// "airstream supervise", which starts it again when it dies.
type daemon struct {
	supervisor *netns.Process // nil if there is none
	notify     *net.UnixConn  // what it says
	worker     int            // process ID of the daemon itself; 0 if it is dead
	held       bool           // the supervisor is stopped, so that the dead stay dead
}

// StartDaemon starts the Airstream daemon and waits until it is ready. After
// KillDaemon it is the same supervisor that starts the next one.
func (s *Site) StartDaemon(ctx context.Context) error {
	d := &s.daemon
	if d.supervisor == nil {
		if err := s.startSupervisor(); err != nil {
			return err
		}
	} else if d.held {
		d.held = false
		if err := d.supervisor.Signal(unix.SIGCONT); err != nil {
			return err
		}
	}
	return s.WaitDaemon(ctx)
}

func (s *Site) startSupervisor() (err error) {
	d := &s.daemon
	if err := os.Remove(s.path("notify.sock")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("site: %w", err)
	}
	d.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.path("notify.sock"), Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("site: %w", err)
	}
	d.supervisor, err = s.Link.Node.Start(netns.Command{
		Name: "airstream supervise",
		Args: []string{s.opts.Airstream, "supervise", "--", s.opts.Airstream, "node", "--config", s.path("airstream.toml")},
		Env:  append(os.Environ(), "NOTIFY_SOCKET="+s.path("notify.sock")), Log: s.path("airstream.log"),
	})
	if err != nil {
		return errors.Join(err, d.notify.Close())
	}
	return nil
}

// WaitDaemon waits until a daemon that was started or restarted is ready.
func (s *Site) WaitDaemon(ctx context.Context) error {
	d := &s.daemon
	ready := make(chan error, 1)
	go func() {
		buf := make([]byte, 100)
		for {
			n, err := d.notify.Read(buf)
			if err != nil || strings.HasPrefix(string(buf[:n]), "READY=1") {
				ready <- err
				return
			}
		}
	}()
	limit := time.NewTimer(startLimit)
	defer limit.Stop()
	var err error
	select {
	case err = <-ready:
		if err == nil {
			d.worker, err = child(d.supervisor.PID())
		}
		return err
	case <-d.supervisor.Done():
		err = d.supervisor.Explain(errors.New("site: the daemon ended before it was ready"))
		s.daemon.supervisor = nil
	case <-limit.C:
		err = d.supervisor.Explain(fmt.Errorf("site: the daemon was not ready in %v", startLimit))
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	// Ends the reader, too.
	_ = d.notify.SetReadDeadline(time.Now())
	err = errors.Join(err, <-ready)
	return errors.Join(err, d.notify.SetReadDeadline(time.Time{}))
}

// StopDaemon asks the daemon to end for good.
func (s *Site) StopDaemon(ctx context.Context) error {
	d := s.daemon
	s.daemon = daemon{}
	if d.supervisor == nil {
		return nil
	}
	var errs []error
	if d.held {
		errs = append(errs, d.supervisor.Signal(unix.SIGCONT))
	}
	errs = append(errs, d.supervisor.Stop(ctx, 20*time.Second), d.notify.Close())
	return errors.Join(errs...)
}

// KillDaemon kills the daemon as a crash does, and holds its supervisor back
// from starting another until StartDaemon.
func (s *Site) KillDaemon() error {
	d := &s.daemon
	if err := d.supervisor.Signal(unix.SIGSTOP); err != nil {
		return err
	}
	d.held = true
	return d.kill()
}

// CrashDaemon kills the daemon, calls those of dead when that is done, and waits
// until its supervisor has started the next.
func (s *Site) CrashDaemon(ctx context.Context, dead ...func()) error {
	if err := s.daemon.kill(); err != nil {
		return err
	}
	for _, f := range dead {
		f()
	}
	return s.WaitDaemon(ctx)
}

// UpgradeDaemon restarts the daemon from what its binary is by now.
func (s *Site) UpgradeDaemon(ctx context.Context) error {
	if err := s.daemon.supervisor.Signal(unix.SIGUSR2); err != nil {
		return err
	}
	return s.WaitDaemon(ctx)
}

// KillSupervisor kills the daemon and what keeps its descriptors, as an outage
// of the machine does. What it had mounted stays, dead.
func (s *Site) KillSupervisor() error {
	d := s.daemon
	s.daemon = daemon{}
	return errors.Join(d.supervisor.Kill(), d.kill(), d.notify.Close())
}

// kill kills the daemon and returns when it is dead; it may be a zombie then.
func (d *daemon) kill() error {
	pid := d.worker
	d.worker = 0
	if pid == 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("site: kill the daemon: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("site: kill the daemon: %w", err)
	}
	for {
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// DaemonPID returns the daemon's process ID: of the one that serves, not of its
// supervisor.
func (s *Site) DaemonPID() int { return s.daemon.worker }

// child returns the one child of a process.
func child(pid int) (int, error) {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return 0, fmt.Errorf("site: %w", err)
	}
	for _, list := range lists {
		b, err := os.ReadFile(list)
		if err != nil {
			continue // that thread has ended
		}
		if first, _, _ := strings.Cut(string(b), " "); first != "" {
			return strconv.Atoi(first)
		}
	}
	return 0, fmt.Errorf("site: process %d has no child", pid)
}
