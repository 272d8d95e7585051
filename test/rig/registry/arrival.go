package registry

import (
	"errors"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pollAcks is how exactly the time of an arrival is known.
const pollAcks = 10 * time.Millisecond

// Arrival tells when the parts of an answer arrived at the other end. An
// answer's handler returns when the kernel has taken the last byte; on a thin
// link that is seconds before the last byte is across. It is safe for
// concurrent use.
type Arrival struct {
	mu    sync.Mutex
	steps []arrived // guarded by mu; ascending in both
	ended time.Time // guarded by mu; zero: it is still followed
	out   bool      // guarded by mu; the handler has returned
	blind bool      // nothing is known of its connection
}

type arrived struct {
	bytes int64 // since the answer began, its header included
	when  time.Time
}

// FollowArrival follows the answer to a request whose handler has just begun.
// The handler calls Out when it returns. What is followed ends by itself when
// everything has arrived or the connection ends. The answer of a request that
// came past no front is taken to be there when it is out.
func FollowArrival(r *http.Request) *Arrival {
	a := &Arrival{blind: true}
	conn := connOf(r.Context())
	if conn == nil {
		return a
	}
	sc, ok := conn.Conn.(syscall.Conn)
	if !ok {
		return a
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return a
	}
	acked, queued, err := sent(raw)
	if err != nil {
		return a
	}
	a.blind = false
	go a.follow(raw, acked+queued)
	return a
}

// follow notes how far the other end has acknowledged, from byte base on.
func (a *Arrival) follow(raw syscall.RawConn, base int64) {
	tick := time.NewTicker(pollAcks)
	defer tick.Stop()
	for range tick.C {
		// Before the queue is looked at: what a handler has left to its server
		// is in the kernel a moment after it returned, not always before.
		a.mu.Lock()
		out := a.out
		a.mu.Unlock()
		acked, queued, err := sent(raw)
		now := time.Now()
		a.mu.Lock()
		if n := acked - base; err == nil && n > 0 && (len(a.steps) == 0 || a.steps[len(a.steps)-1].bytes < n) {
			a.steps = append(a.steps, arrived{n, now})
		}
		if err != nil || out && queued == 0 {
			a.ended = now
			a.mu.Unlock()
			return
		}
		a.mu.Unlock()
	}
}

// Out says that the handler has returned.
func (a *Arrival) Out() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.out = true
	if a.blind {
		a.ended = time.Now()
	}
}

// At returns when the first n bytes of the answer's body had arrived, or false
// if they may still be on the way. Bytes of the header count as the body's, so
// it is a little early. Of an answer that broke off before byte n it returns
// when that was.
func (a *Arrival) At(n int64) (time.Time, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i, _ := slices.BinarySearchFunc(a.steps, n, func(s arrived, n int64) int { return int(s.bytes - n) })
	if i < len(a.steps) {
		return a.steps[i].when, true
	}
	return a.ended, !a.ended.IsZero()
}

// Has tells whether the first n bytes of the answer's body are known to have
// arrived; see At.
func (a *Arrival) Has(n int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.blind && a.out || len(a.steps) > 0 && a.steps[len(a.steps)-1].bytes >= n
}

// sent returns how many bytes of a connection the other end has acknowledged,
// and how many wait for that.
func sent(raw syscall.RawConn) (acked, queued int64, err error) {
	var info *unix.TCPInfo
	var n int
	cerr := raw.Control(func(fd uintptr) {
		// In this order: what is acknowledged in between counts once at least.
		if n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); err == nil { //nolint:gosec // a descriptor
			info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) //nolint:gosec // a descriptor
		}
	})
	if err = errors.Join(cerr, err); err != nil {
		return 0, 0, err
	}
	return int64(info.Bytes_acked), int64(n), nil //nolint:gosec // far below
}
