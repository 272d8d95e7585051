// Package supervise is the tiny parent of a daemon where no systemd is: it
// keeps the daemon's descriptors (package fdstore), and starts it again when it
// dies, or when a new version shall run, with the same descriptors. What hangs
// on them, the file systems of running containers above all, only waits
// meanwhile.
//
// The parent does next to nothing, so that it has next to no reason to die. If
// it does, the daemon is asked to end, too: without a keeper it would live on
// with nobody to start it again and nobody to stop it.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/airstream-io/airstream/internal/fdstore"
)

// Limits of a restart. The first is at once: readers wait for it.
const (
	stable     = 10 * time.Second       // a daemon that ran that long did not die of its start
	firstPause = 100 * time.Millisecond // before the second restart in a row; it doubles
	maxPause   = 10 * time.Second
)

// defaultGrace: see Options.Grace.
const defaultGrace = 60 * time.Second

// upgrade is the signal that asks for a restart.
const upgrade = syscall.SIGUSR2

// What the daemon is told.
const (
	leave = syscall.SIGTERM // end, and leave everything to the next one
	end   = syscall.SIGINT  // end for good
)

// Options are what to supervise.
type Options struct {
	// Command is the program and its arguments. The program is looked up anew
	// at each start, so that a replaced one is what runs then.
	Command []string
	// Stdout and Stderr are the daemon's. Default: this process's.
	Stdout, Stderr *os.File
	// Grace is how long the daemon may take to end after it was told to, before
	// it is killed. Default: 60 s, more than its own graces together.
	Grace time.Duration
	// Logger gets starts and ends. Default: discard.
	Logger *slog.Logger
}

// Run starts the command and keeps it running until ctx ends or a signal says
// so, and returns the exit code of the last process.
//
// SIGTERM, SIGINT and SIGQUIT end it: the daemon gets SIGINT, which tells it
// that no other follows. SIGUSR2 restarts it: it gets SIGTERM, ends, and is
// started from what its program's file holds then. Other signals are passed
// on, SIGHUP too. A command that fails before it was ever ready is not started again: that
// is a mistake for somebody to see.
func Run(ctx context.Context, signals <-chan os.Signal, opts Options) (code int, err error) {
	if len(opts.Command) == 0 {
		return 0, errors.New("supervise: no command")
	}
	s := &supervisor{opts: opts, log: opts.Logger, signals: signals}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.opts.Grace <= 0 {
		s.opts.Grace = defaultGrace
	}
	if s.opts.Stdout == nil {
		s.opts.Stdout = os.Stdout
	}
	if s.opts.Stderr == nil {
		s.opts.Stderr = os.Stderr
	}
	// Our own service manager, if there is one, hears what the daemon says. It
	// is no keeper to us: what it keeps would come back to this process only.
	up, err := fdstore.Inherit()
	if err != nil {
		return 0, err
	}
	if s.keeper, err = fdstore.NewKeeper(func(state string) { s.heard(up, state) }); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.keeper.Close()) }()
	// The kernel sends the parent-death signal when the thread that started
	// the child ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return s.run(ctx)
}

type supervisor struct {
	opts    Options
	log     *slog.Logger
	signals <-chan os.Signal
	keeper  *fdstore.Keeper
	ready   atomic.Bool // the daemon was, once
}

// heard is told what the daemon says.
func (s *supervisor) heard(up *fdstore.Store, state string) {
	lines := slices.DeleteFunc(strings.Split(state, "\n"), func(line string) bool {
		// That of the daemon; the service manager knows ours.
		return strings.HasPrefix(line, "MAINPID=")
	})
	if slices.Contains(lines, "READY=1") {
		s.ready.Store(true)
	}
	if err := up.Notify(strings.Join(lines, "\n")); err != nil {
		s.log.Debug("the service manager was not told", slog.Any("error", err))
	}
}

// run starts one daemon after the other.
func (s *supervisor) run(ctx context.Context) (int, error) {
	var pause time.Duration
	for {
		began := time.Now()
		code, why, err := s.one(ctx)
		if why == final || why == died && !s.ready.Load() {
			return code, err
		}
		if err != nil {
			s.log.ErrorContext(ctx, "daemon was not started", slog.Any("error", err))
		}
		if why == restart || time.Since(began) > stable {
			pause = 0
		}
		if pause > 0 {
			s.log.WarnContext(ctx, "daemon ends again and again", slog.Duration("pause", pause))
		}
		if s.wait(ctx, pause) {
			return code, nil
		}
		pause = min(max(2*pause, firstPause), maxPause)
	}
}

// wait waits before a restart; last says that there shall be none.
func (s *supervisor) wait(ctx context.Context, pause time.Duration) (last bool) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return false
		case <-ctx.Done():
			return true
		case sig := <-s.signals:
			switch sig {
			case syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT:
				return true
			case upgrade:
				return false
			}
		}
	}
}

// reason is why a daemon ended.
type reason int

const (
	died    reason = iota // or was never there
	restart               // we told it to make place for the next one
	final                 // we told it to end for good
)

// one runs one daemon to its end.
func (s *supervisor) one(ctx context.Context) (code int, why reason, err error) {
	env, files, err := s.keeper.Environ(os.Environ())
	if err != nil {
		return 1, died, err
	}
	// It is told to end, not killed, when ctx ends.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), s.opts.Command[0], s.opts.Command[1:]...)
	cmd.Env, cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = env, files, s.opts.Stdout, s.opts.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: leave}
	err = cmd.Start()
	for _, f := range files {
		_ = f.Close() // duplicates
	}
	if err != nil {
		return 1, died, fmt.Errorf("supervise: %w", err)
	}
	s.keeper.Started(cmd.Process.Pid)
	s.log.InfoContext(ctx, "daemon started", slog.Int("pid", cmd.Process.Pid), slog.Any("inherits", s.keeper.Names()))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // how it ended is in its state
	}()
	why = s.attend(ctx, cmd.Process, ended)
	if err := s.keeper.Settle(); err != nil { // it may have been ready at last
		s.log.ErrorContext(ctx, "keeper does not answer", slog.Any("error", err))
	}
	state := cmd.ProcessState
	s.log.InfoContext(ctx, "daemon ended", slog.Int("pid", cmd.Process.Pid), slog.String("how", state.String()))
	if code = state.ExitCode(); code < 0 {
		const bySignal = 128 // as shells have it
		code = bySignal
		if status, ok := state.Sys().(syscall.WaitStatus); ok {
			code += int(status.Signal())
		}
	}
	return code, why, nil
}

// attend passes signals to the daemon until it has ended.
func (s *supervisor) attend(ctx context.Context, daemon *os.Process, ended <-chan struct{}) (why reason) {
	var patience <-chan time.Time                          // set once it was told to end
	tell := func(sig os.Signal) { _ = daemon.Signal(sig) } // it may have ended
	stop := ctx.Done()
	for {
		select {
		case <-ended:
			return why
		case <-patience:
			s.log.ErrorContext(ctx, "daemon does not end, and is killed", slog.Int("pid", daemon.Pid))
			tell(syscall.SIGKILL)
		case <-stop:
			stop, why, patience = nil, final, time.After(s.opts.Grace)
			tell(end)
		case sig := <-s.signals:
			switch sig {
			case syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT:
				why, patience = final, time.After(s.opts.Grace)
				tell(end)
			case upgrade:
				s.log.InfoContext(ctx, "daemon is restarted", slog.Int("pid", daemon.Pid))
				why, patience = max(why, restart), time.After(s.opts.Grace)
				tell(leave)
			default:
				tell(sig)
			}
		}
	}
}
