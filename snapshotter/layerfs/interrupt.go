package layerfs

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// recheck is how often a wait that was interrupted without an end looks
// whether its process has to go by now: the kernel reports only the first
// signal. What a kill -9 then takes at most; a guess.
const recheck = 500 * time.Millisecond

// request is the context of one request. It costs nothing until somebody waits
// on it, which almost no request does.
type request struct {
	tree   *tree
	cancel <-chan struct{} // closed by go-fuse when the kernel reports a signal; reused after end
	pid    uint32          // of the thread that waits, 0 if it is none that we can see
	again  bool            // another process has begun with it

	mu     sync.Mutex
	ended  bool          // guarded by mu
	done   chan struct{} // guarded by mu; nil until somebody asks
	stop   chan struct{} // guarded by mu; ends watch
	exited chan struct{} // guarded by mu; closed by watch
}

var _ context.Context = (*request)(nil)

// request returns the context of a request; end must be called before the
// request is answered.
func (t *tree) request(cancel <-chan struct{}, header *fuse.InHeader) *request {
	return &request{tree: t, cancel: cancel, pid: header.Pid, again: t.again(header.Unique)}
}

// again says whether another process has begun with a request.
func (t *tree) again(unique uint64) bool {
	if unique&resent != 0 {
		return true
	}
	if len(t.repeated) == 0 {
		return false
	}
	_, ok := t.repeated[unique]
	return ok
}

// Deadline implements context.Context: there are no wall-clock limits.
func (r *request) Deadline() (deadline time.Time, ok bool) { return time.Time{}, false }

// Value implements context.Context.
func (r *request) Value(any) any { return nil }

// Err implements context.Context.
func (r *request) Err() error {
	r.mu.Lock()
	done := r.done
	r.mu.Unlock()
	select {
	case <-done: // never if nil
		return context.Canceled
	default:
		return nil
	}
}

// Done implements context.Context.
func (r *request) Done() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done == nil {
		r.done = make(chan struct{})
		if r.ended {
			close(r.done)
			return r.done
		}
		r.stop = make(chan struct{})
		r.exited = make(chan struct{})
		go r.watch(r.stop, r.exited)
	}
	return r.done
}

// end ends the context and waits for its goroutine, if there is one.
func (r *request) end() {
	r.mu.Lock()
	r.ended = true
	stop, exited := r.stop, r.exited
	r.mu.Unlock()
	if stop != nil {
		close(stop)
		<-exited
	}
}

// watch closes done when the request is answered, when the server closes, or
// when a signal makes the waiting process leave.
func (r *request) watch(stop <-chan struct{}, exited chan<- struct{}) {
	defer close(exited)
	defer r.finish()
	// The process before this one may have had the kernel's one message.
	if !r.again || r.pid == 0 {
		select {
		case <-stop:
			return
		case <-r.tree.ending:
			return
		case <-r.cancel:
		}
	}
	tick := time.NewTicker(recheck)
	defer tick.Stop()
	for r.tree.alive() && !leaves(r.pid) {
		select {
		case <-stop:
			return
		case <-r.tree.ending:
			return
		case <-tick.C:
		}
	}
}

func (r *request) finish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.done)
}

// leaving are the signals by which somebody wants a process to end, whether it
// handles them or not. SIGKILL stands for all signals that kill: the kernel
// marks a dying thread with it.
const leaving = 1<<(syscall.SIGHUP-1) | 1<<(syscall.SIGINT-1) | 1<<(syscall.SIGQUIT-1) | 1<<(syscall.SIGTERM-1) | 1<<(syscall.SIGKILL-1)

// leaves says whether a thread is dying or asked to end. A thread that it
// can't find out about is taken to leave.
func leaves(pid uint32) bool {
	if pid == 0 {
		return true
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return true
	}
	var pending, blocked uint64
	lines := bufio.NewScanner(bytes.NewReader(status))
	for lines.Scan() {
		key, value, _ := bytes.Cut(lines.Bytes(), []byte(":"))
		switch string(key) {
		case "SigPnd", "ShdPnd", "SigBlk":
		default:
			continue
		}
		set, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 16, 64)
		switch {
		case err != nil:
			return true
		case string(key) == "SigBlk":
			blocked = set
		default:
			pending |= set
		}
	}
	return pending&^blocked&leaving != 0
}
