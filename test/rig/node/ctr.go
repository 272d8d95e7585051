package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Ctr runs ctr against the node and returns its standard output. An error
// quotes its standard error.
func (n *Node) Ctr(ctx context.Context, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := n.ctr(ctx, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := n.opts.Namespace.Run(cmd); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return stdout.String(), fmt.Errorf("node: ctr %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// ctr prepares a ctr command.
func (n *Node) ctr(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(n.opts.Bin, "ctr"), append([]string{"--address", n.Socket()}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = n.env()
	return cmd
}

// PullTransfer pulls an image through containerd's transfer service, with the
// node's hosts, and unpacks it with the snapshotter.
func (n *Node) PullTransfer(ctx context.Context, ref, snapshotter string) error {
	_, err := n.Ctr(ctx, "images", "pull", "--hosts-dir", n.path("certs.d"), "--snapshotter", snapshotter, ref)
	return err
}

// Run describes a container to run.
type Run struct {
	Ref         string   // an image that has been pulled
	Snapshotter string   // empty: Overlayfs
	Namespace   string   // containerd's; empty: "default"
	Args        []string // program and its arguments; empty: the image's own
	Env         []string // as "KEY=VALUE"

	// Ready matches the line of output that says that the container does its
	// job; the container is killed then. If it is nil, the container runs
	// until it ends by itself.
	Ready *regexp.Regexp
}

// Result says how a container ran.
type Result struct {
	Ready  time.Duration // from the start of the call to the ready line, or to the end without one
	Line   string        // that matched Ready
	Output string        // what the container has printed, at most outputLimit bytes
}

// outputLimit bounds the output that is kept, in bytes.
const outputLimit = 1 << 20

// ErrNotReady is wrapped by the error for a container that ended without
// printing its ready line.
var ErrNotReady = errors.New("ended before it was ready")

// RunUntil runs a container with ctr, in the node's network, until it is
// ready, and takes it away again. Its error quotes the output.
func (n *Node) RunUntil(ctx context.Context, r Run) (Result, error) {
	if r.Snapshotter == "" {
		r.Snapshotter = Overlayfs
	}
	if r.Namespace == "" {
		r.Namespace = "default"
	}
	id := n.newID("run")
	args := []string{
		"--namespace", r.Namespace, "run", "--rm", "--net-host", "--snapshotter", r.Snapshotter,
		"--cgroup", n.cgroup() + "/" + id, "--runc-root", n.path("runc"), "--fifo-dir", n.path("fifo"),
	}
	for _, env := range r.Env {
		args = append(args, "--env", env)
	}
	args = append(append(args, r.Ref, id), r.Args...)

	w := newWatcher(r.Ready)
	// Not ctx: ctr must live to clean up after its container.
	cmd := n.ctr(context.WithoutCancel(ctx), args...)
	cmd.Stdout, cmd.Stderr = w, w
	begin := time.Now()
	ended := make(chan error, 1)
	go func() { ended <- n.opts.Namespace.Run(cmd) }()

	var err error
	select {
	case <-w.matched:
	case err = <-ended:
		ended <- err
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	result := w.result(begin)
	if result.Line == "" && r.Ready != nil && err == nil {
		err = ErrNotReady
	}
	err = errors.Join(err, n.endRun(context.WithoutCancel(ctx), r.Namespace, id, cmd, ended))
	if err != nil {
		return result, fmt.Errorf("node: run %s: %w\n%s", r.Ref, err, result.Output)
	}
	return result, nil
}

// endRun kills a container that ctr runs, and waits until ctr has cleaned up.
func (n *Node) endRun(ctx context.Context, namespace, id string, cmd *exec.Cmd, ended chan error) error {
	ctx, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ended: //nolint:errcheck // the caller has looked at how it ended, or has killed it
			return nil
		case <-ctx.Done():
			cmd.Process.Kill() //nolint:errcheck // it has ended then
			<-ended            //nolint:errcheck // it was killed
			return fmt.Errorf("ctr did not end %v after its container was killed", stopGrace)
		default:
		}
		// There may be no task yet, or no longer; and one that was created in
		// between must be killed, too: ask until ctr is gone.
		n.Ctr(ctx, "--namespace", namespace, "tasks", "kill", "--signal", "SIGKILL", id) //nolint:errcheck // see above
		select {
		case err := <-ended:
			ended <- err
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// watcher keeps output and waits for a line.
type watcher struct {
	ready   *regexp.Regexp // nil: none
	matched chan struct{}  // closed at the first match

	mu   sync.Mutex
	text []byte    // guarded by mu; all output, up to the limit
	line []byte    // guarded by mu; the line that is not complete yet
	hit  string    // guarded by mu
	at   time.Time // guarded by mu; of hit
}

func newWatcher(ready *regexp.Regexp) *watcher {
	return &watcher{ready: ready, matched: make(chan struct{})}
}

// Write takes output as it comes.
func (w *watcher) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text = append(w.text, p[:min(len(p), outputLimit-len(w.text))]...)
	if w.ready == nil || !w.at.IsZero() {
		return len(p), nil
	}
	w.line = append(w.line, p...)
	for {
		line, rest, complete := bytes.Cut(w.line, []byte("\n"))
		if w.ready.Match(line) {
			w.hit, w.at = string(line), time.Now()
			close(w.matched)
			return len(p), nil
		}
		if !complete {
			break
		}
		w.line = rest
	}
	if len(w.line) > outputLimit {
		w.line = nil
	}
	return len(p), nil
}

// result returns what has come so far.
func (w *watcher) result(begin time.Time) Result {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := w.at
	if at.IsZero() {
		at = time.Now()
	}
	return Result{Ready: at.Sub(begin), Line: strings.TrimSpace(w.hit), Output: string(w.text)}
}
