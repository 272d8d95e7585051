package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command describes a process to start.
type Command struct {
	Name string   // in errors; the base name of Args[0] if empty
	Args []string // program and its arguments; the program is looked up in this process's PATH
	Env  []string // as in exec.Cmd: nil means this process's own
	Dir  string   // as in exec.Cmd

	// Log is the file to which output is appended, and from whose end errors
	// quote. Required.
	Log string
	// Stdin and Stdout are optional; output goes to the log otherwise.
	Stdin  io.Reader
	Stdout io.Writer
}

// Process is a running child. It is safe for concurrent use.
type Process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // valid once done is closed
}

// Start starts a process inside the namespace, or in the caller's own if n is
// nil. The process is killed when this process dies. It is in a session of its
// own, so that a Ctrl-C at the terminal reaches it only through its owner, and
// so that its priority is its own.
func (n *NS) Start(c Command) (*Process, error) {
	if len(c.Args) == 0 || c.Log == "" {
		return nil, errors.New("netns: start: a command needs arguments and a log")
	}
	p := &Process{name: c.Name, log: c.Log, done: make(chan struct{})}
	if p.name == "" {
		p.name = filepath.Base(c.Args[0])
	}
	log, err := os.OpenFile(c.Log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("netns: start %s: %w", p.name, err)
	}
	p.cmd = exec.Command(c.Args[0], c.Args[1:]...)
	p.cmd.Env, p.cmd.Dir, p.cmd.Stdin = c.Env, c.Dir, c.Stdin
	p.cmd.Stdout, p.cmd.Stderr = io.Writer(log), log
	if c.Stdout != nil {
		p.cmd.Stdout = c.Stdout
	}
	started := make(chan error, 1)
	go func() {
		// The kernel sends the parent-death signal when the *thread* that
		// forked ends, so the thread stays until the child is gone.
		runtime.LockOSThread()
		err := n.start(p.cmd)
		err = errors.Join(err, log.Close())
		if p.cmd.Process == nil {
			started <- err
			return
		}
		started <- nil
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("netns: start %s: %w", p.name, err)
	}
	return p, nil
}

// Run runs a prepared command to its end inside the namespace, or in the
// caller's own if n is nil. It returns what cmd.Run returns. The command is
// killed when this process dies.
func (n *NS) Run(cmd *exec.Cmd) error {
	return onThread(func() error {
		if err := n.start(cmd); err != nil {
			return err
		}
		return cmd.Wait()
	})
}

// start starts cmd from the calling thread, which must outlive the child and
// must not be given back.
func (n *NS) start(cmd *exec.Cmd) error {
	if n != nil {
		if err := n.enter(); err != nil {
			return err
		}
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	return cmd.Start()
}

// PID returns the process's id; it may be reused once Done is closed.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended and has been waited for.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal, unless the process has ended.
func (p *Process) Signal(sig os.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("netns: signal %s: %w", p.name, err)
	}
	return nil
}

// Wait waits for the process to end. Its error quotes the end of the log
// unless the process ended with status 0.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
	case <-ctx.Done():
		return fmt.Errorf("netns: wait for %s: %w", p.name, context.Cause(ctx))
	}
	if p.err != nil {
		return p.Explain(p.err)
	}
	return nil
}

// Explain adds the end of the log to an error that the process is to blame
// for.
func (p *Process) Explain(err error) error {
	return fmt.Errorf("netns: %s: %w\n%s", p.name, err, p.LogTail())
}

// Kill kills the process and waits until it is gone.
func (p *Process) Kill() error {
	if err := p.Signal(unix.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

// Stop asks the process to end with SIGTERM, kills it when it has not after
// grace or when ctx ends, and waits until it is gone. How it ended is no
// error, except that it had to be killed.
func (p *Process) Stop(ctx context.Context, grace time.Duration) error {
	if err := p.Signal(unix.SIGTERM); err != nil {
		return err
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
		return errors.Join(p.Explain(fmt.Errorf("still runs %v after SIGTERM, killed", grace)), p.Kill())
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("netns: stop %s: %w", p.name, context.Cause(ctx)), p.Kill())
	}
}

// LogTail returns the last lines of the log, at most 4 KiB.
func (p *Process) LogTail() string { return Tail(p.log, 4<<10) }

// Tail returns the last whole lines of a file, at most limit bytes, or says
// why it can't.
func Tail(path string, limit int64) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close() //nolint:errcheck // only read
	info, err := f.Stat()
	if err != nil {
		return err.Error()
	}
	skip := max(0, info.Size()-limit)
	text, err := io.ReadAll(io.NewSectionReader(f, skip, limit))
	if err != nil {
		return err.Error()
	}
	if skip > 0 {
		for i, b := range text {
			if b == '\n' {
				return string(text[i+1:])
			}
		}
	}
	return string(text)
}
