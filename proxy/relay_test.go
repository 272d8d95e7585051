package proxy

import (
	"errors"
	"net"
	"sync"
	"testing"
	"time"
)

// relay is a link that breaks: between a node and a proxy, on loopback.
type relay struct {
	l    net.Listener
	to   string
	work sync.WaitGroup

	thaw chan struct{} // closed at the end

	mu     sync.Mutex
	conns  map[net.Conn]bool // guarded by mu
	down   int64             // guarded by mu; bytes towards the node
	conn   int               // guarded by mu; connections that were made
	cut    int64             // each connection breaks after so many bytes down; 0: it doesn't
	pause  time.Duration     // between 4 KiB down
	stall  bool              // guarded by mu; nothing crosses any more, and nothing says so
	frozen bool              // guarded by mu; what the node says doesn\'t pass any more, but for
	ups    int               // guarded by mu; so many writes
	open   chan struct{}     // guarded by mu; closed when it does again
}

func newRelay(tb testing.TB, to string, cut int64, pause time.Duration) *relay {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	r := &relay{l: l, thaw: make(chan struct{}), to: to, cut: cut, pause: pause, conns: map[net.Conn]bool{}, open: make(chan struct{})}
	close(r.open)
	r.work.Go(r.accept)
	tb.Cleanup(func() {
		_ = l.Close()
		r.setStall(false)
		close(r.thaw)
		r.breakAll()
		r.work.Wait()
	})
	return r
}

func (r *relay) addr() string { return r.l.Addr().String() }

func (r *relay) accept() {
	for {
		c, err := r.l.Accept()
		if err != nil {
			return
		}
		up, err := net.Dial("tcp", r.to)
		if err != nil {
			_ = c.Close()
			continue
		}
		r.mu.Lock()
		r.conns[c], r.conns[up] = true, true
		r.conn++
		cut := r.cut
		r.mu.Unlock()
		r.work.Go(func() { r.copy(up, c, 0, false) })
		r.work.Go(func() { r.copy(c, up, cut, true) })
	}
}

func (r *relay) copy(to, from net.Conn, cut int64, down bool) {
	defer func() { _ = errors.Join(to.Close(), from.Close()) }()
	buf := make([]byte, 4<<10)
	var sum int64
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		r.mu.Lock()
		open := r.open
		if down {
			r.down += int64(n)
		}
		r.mu.Unlock()
		<-open
		if !down && !r.mayGoUp() {
			<-r.thaw
		}
		if down {
			time.Sleep(r.pause)
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
		if sum += int64(n); cut > 0 && sum >= cut {
			return
		}
	}
}

// freezeUp lets so many more writes of the node pass and then nothing until the
// test ends. What comes down still does.
func (r *relay) freezeUp(writes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frozen, r.ups = true, writes
}

func (r *relay) mayGoUp() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.frozen {
		return true
	}
	r.ups--
	return r.ups >= 0
}

func (r *relay) setStall(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if on && !r.stall {
		r.open = make(chan struct{})
	}
	if !on && r.stall {
		close(r.open)
	}
	r.stall = on
}

func (r *relay) breakAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		_ = c.Close()
	}
	r.conns = map[net.Conn]bool{}
}

func (r *relay) crossed() (down int64, conns int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.down, r.conn
}
