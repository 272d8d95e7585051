package link

import (
	"context"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
)

const (
	// userTimeout is how long the kernel goes on sending what nobody
	// acknowledges. Outages of minutes pass; a node that comes back brings a new
	// session long before. A guess.
	userTimeout = 10 * time.Minute
)

// socket is a connection of the proxy's end: what gRPC writes to, above TLS. It
// counts how much of the payload of messages the kernel has taken, so that the
// Sender knows how much of what it sent still waits in this process.
type socket struct {
	net.Conn
	raw   *net.TCPConn // nil if it is none
	data  dataCounter
	paced int64 // what pace has set last

	mu    sync.Mutex
	taken int64         // guarded by mu; bytes of HTTP/2 DATA that the kernel took
	moved chan struct{} // guarded by mu; closed and replaced when taken grows, or the socket is closed
	err   error         // guarded by mu; why nothing more is taken
}

func newSocket(raw, secure net.Conn) *socket {
	s := &socket{Conn: secure, moved: make(chan struct{})}
	s.raw, _ = raw.(*net.TCPConn) // nil is fine
	return s
}

// Write implements net.Conn. gRPC calls it from one goroutine.
func (s *socket) Write(p []byte) (int, error) {
	n, err := s.Conn.Write(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken += s.data.count(p[:n])
	if err != nil {
		s.err = err
	}
	close(s.moved)
	s.moved = make(chan struct{})
	return n, err
}

// Close implements net.Conn.
func (s *socket) Close() error {
	err := s.Conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = net.ErrClosed
	}
	close(s.moved)
	s.moved = make(chan struct{})
	return err
}

// room waits until the kernel has taken all but most of sent bytes of messages.
func (s *socket) room(ctx context.Context, sent, most int64) error {
	for {
		s.mu.Lock()
		taken, moved, err := s.taken, s.moved, s.err
		s.mu.Unlock()
		if err != nil {
			return err
		}
		if sent-taken <= most {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// dataCounter finds the DATA frames in a stream of HTTP/2 frames: RFC 9113,
// section 4.1, 9 bytes of header and a payload.
type dataCounter struct {
	head [9]byte
	have int   // bytes of head
	left int64 // bytes of the payload to come
	data bool  // it is one of DATA
}

// count returns how many of p are payload of DATA.
func (d *dataCounter) count(p []byte) (n int64) {
	for len(p) > 0 {
		if d.left > 0 {
			k := min(d.left, int64(len(p)))
			if d.data {
				n += k
			}
			d.left -= k
			p = p[k:]
			continue
		}
		k := copy(d.head[d.have:], p)
		d.have += k
		p = p[k:]
		if d.have == len(d.head) {
			d.have = 0
			d.left = int64(d.head[0])<<16 | int64(d.head[1])<<8 | int64(d.head[2])
			d.data = d.head[3] == 0
		}
	}
	return n
}

// TCP is what the kernel says of a session's connection.
type TCP struct {
	RTT     time.Duration // smoothed; 0: unknown
	MinRTT  time.Duration // the shortest of minutes; 0: unknown
	Rate    int64         // bytes/s that were delivered lately; 0: unknown
	Retrans int64         // segments that were sent again
	Waiting bool          // something that was sent has not been acknowledged
	Unsent  int           // bytes that the kernel has taken and not sent yet
	Control string        // the congestion control in use
	Window  int           // packets that may be on their way; 0: unknown
}

// tcp asks the kernel.
func (s *socket) tcp() (t TCP) {
	if s.raw == nil {
		return t
	}
	control(s.raw, func(fd int) {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return
		}
		t.RTT = time.Duration(info.Rtt) * time.Microsecond
		if info.Min_rtt != ^uint32(0) {
			t.MinRTT = time.Duration(info.Min_rtt) * time.Microsecond
		}
		t.Rate = int64(min(info.Delivery_rate, 1<<40)) //nolint:gosec // bounded
		t.Unsent = int(info.Notsent_bytes)
		t.Window = int(info.Snd_cwnd)
		t.Retrans = int64(info.Total_retrans)
		t.Waiting = info.Unacked > 0 || info.Notsent_bytes > 0
		t.Control, err = unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		if err != nil {
			t.Control = ""
		}
	})
	return t
}

// keepLow sets how many bytes the kernel takes beyond what it may send at once.
func (s *socket) keepLow(n int) {
	if s.raw != nil {
		control(s.raw, func(fd int) { _ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, n) }) // else more waits there
	}
}

// pace bounds how fast the kernel sends, in bytes/s; what is above waits in it,
// up to its low water. 0 is no bound. One goroutine calls it.
func (s *socket) pace(rate int64) {
	if s.raw == nil || rate == s.paced {
		return
	}
	s.paced = rate
	limit := ^uint64(0)
	if rate > 0 {
		limit = uint64(rate)
	}
	control(s.raw, func(fd int) { _ = unix.SetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, limit) }) // a kernel without it paces less
}

// renew has congestion control begin anew with what is known: TCP keeps the window
// and the shortest round trip.
func (s *socket) renew() {
	if s.raw == nil {
		return
	}
	control(s.raw, func(fd int) {
		if unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno") == nil {
			_ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "bbr") // it was that a moment ago
		}
	})
}

// tune prepares a connection for a bad link, as far as the kernel can.
func tune(conn net.Conn) {
	c, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	control(c, func(fd int) {
		// Each is an improvement, and none is a condition. With loss, the
		// sender's congestion control decides (facts, links: two-way transport).
		_ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "bbr")
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, mostLowWater)
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
	})
}

func control(c syscall.Conn, f func(fd int)) {
	raw, err := c.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { f(int(fd)) }) //nolint:gosec // a descriptor; one that is gone needs nothing
	}
}

// serverCreds are TLS over connections that are tuned and counted.
type serverCreds struct {
	credentials.TransportCredentials
}

// ServerHandshake implements credentials.TransportCredentials.
func (c serverCreds) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	tune(raw)
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	s := newSocket(raw, conn)
	tls, _ := info.(credentials.TLSInfo) // it is
	return s, peerInfo{tls, s}, nil
}

// Clone implements credentials.TransportCredentials.
func (c serverCreds) Clone() credentials.TransportCredentials {
	return serverCreds{c.TransportCredentials.Clone()}
}

// peerInfo is what a handler gets to know of its connection.
type peerInfo struct {
	credentials.TLSInfo
	sock *socket
}
