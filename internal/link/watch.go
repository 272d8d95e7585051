package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
)

// heldCreds tell the watch of the handshake.
type heldCreds struct {
	credentials.TransportCredentials
	w *watch
}

// ClientHandshake implements credentials.TransportCredentials.
func (c heldCreds) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		c.w.failed(err)
	}
	return conn, info, err
}

// Clone implements credentials.TransportCredentials.
func (c heldCreds) Clone() credentials.TransportCredentials {
	return heldCreds{c.TransportCredentials.Clone(), c.w}
}

// watch ends a connection on which something is expected and nothing comes, be
// it a single byte, for longer than the link explains.
type watch struct {
	min  time.Duration
	kill context.CancelFunc
	read atomic.Int64 // bytes

	mu      sync.Mutex
	timer   *time.Timer
	heard   time.Time     // guarded by mu; when something came last
	gap     time.Duration // guarded by mu; the longest silence that ended
	resting bool          // guarded by mu; nothing is expected
	working bool          // guarded by mu; what came is being taken
	stalled bool          // guarded by mu
	err     error         // guarded by mu; of dialling
	traffic Traffic       // guarded by mu; nil: nobody is told
	asked   time.Time     // guarded by mu; when something was asked for on a silent connection; zero: it is answered
}

func newWatch(least time.Duration, kill context.CancelFunc) *watch {
	w := &watch{min: least, kill: kill, heard: time.Now()}
	w.timer = time.AfterFunc(least, w.look)
	return w
}

// limit is how long a silence may be: what the link has shown is no stall.
// w.mu is held.
func (w *watch) limit() time.Duration { return max(w.min, 4*w.gap) }

func (w *watch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.resting {
		return
	}
	if w.working {
		w.heard = time.Now()
	}
	if left := w.limit() - time.Since(w.heard); left > 0 {
		w.timer.Reset(left)
		return
	}
	w.stalled = true
	w.kill()
}

func (w *watch) hear(n int) {
	w.read.Add(int64(n))
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if !w.resting && !w.working {
		w.gap = max(w.gap, now.Sub(w.heard))
	}
	w.heard = now
	if w.traffic != nil && !w.asked.IsZero() {
		w.traffic.Answered(now.Sub(w.asked))
		w.asked = time.Time{}
	}
}

// asks notes that something was asked for. w.mu is held.
func (w *watch) asks() {
	if w.traffic != nil {
		w.asked = time.Now()
		w.traffic.Busy(true)
	}
}

// busyNow is expect for what is asked for as soon as there is a connection.
func (w *watch) busyNow() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asks()
}

// expect begins the watch: something was asked for.
func (w *watch) expect() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.resting {
		w.resting, w.heard = false, time.Now()
		w.timer.Reset(w.limit())
		w.asks()
	}
}

// rest ends the watch until something is asked for.
func (w *watch) rest() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.resting = true
	w.timer.Stop()
	if w.traffic != nil {
		w.traffic.Busy(false)
	}
}

func (w *watch) busy(is bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.working = is
	w.heard = time.Now()
}

func (w *watch) failed(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
	w.kill() // gRPC would try again by itself, and keep the reason
}

func (w *watch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.resting = true
	w.timer.Stop()
	if w.traffic != nil {
		w.traffic.Close()
		w.traffic = nil
	}
}

func (w *watch) bytes() int64 { return w.read.Load() }

// errStalled is why a connection ends that made no progress.
var errStalled = errors.New("link: nothing came for longer than the link explains")

// why returns what really happened.
func (w *watch) why(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.stalled:
		return errStalled
	case w.err != nil:
		return fmt.Errorf("link: %w", w.err)
	}
	return told(err)
}

// on watches a connection.
func (w *watch) on(c net.Conn, traffic func(net.Conn) Traffic) net.Conn {
	if traffic != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.traffic = traffic(c)
	}
	return &watched{c, w}
}

type watched struct {
	net.Conn
	w *watch
}

// Read implements net.Conn.
func (c *watched) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.w.hear(n)
	}
	return n, err
}
