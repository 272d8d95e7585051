package uplink

import (
	"crypto/tls"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tap is a connection seen from below.
type tap interface {
	// read returns what was counted; ok is false if the connection is gone.
	read() (c counters, ok bool)
	// clamp bounds how many bytes the other side may send before what it sent
	// was read. What it has been granted already is never taken back: the
	// bound holds once that has come.
	clamp(n int64)
}

// socket is the tap of a TCP connection.
type socket struct{ raw syscall.RawConn }

// tapOf returns conn's tap, or nil if it has none. TLS is looked through.
func tapOf(conn net.Conn) tap {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	if _, ok := conn.(*net.TCPConn); !ok {
		return nil
	}
	raw, err := conn.(syscall.Conn).SyscallConn() //nolint:errcheck // a TCPConn is one
	if err != nil {
		return nil
	}
	return &socket{raw}
}

// counters are what a socket counted since it was opened.
type counters struct {
	received int64 // bytes in order, TLS and headers of HTTP included
	segments int64 // that brought data, also twice or out of order
	late     int64 // of these, behind one that was missing
	wire     int64 // bytes of IP packets both ways, as far as they reached this end
	mss      int64 // bytes of payload that a full packet has, as far as is known

	rtt    time.Duration // of the other side's data, queues included; 0: unknown
	minRTT time.Duration // of our own packets, the shortest of minutes; 0: unknown
}

// headerBytes are those of IPv4 and TCP with timestamps.
const headerBytes = 52

func (s *socket) read() (c counters, ok bool) {
	var info *unix.TCPInfo
	var err error
	cerr := s.raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) //nolint:gosec // a descriptor
	})
	if cerr != nil || err != nil {
		return c, false
	}
	return counters{
		received: int64(info.Bytes_received), //nolint:gosec // far below
		segments: int64(info.Data_segs_in),
		late:     int64(info.Rcv_ooopack),
		wire:     int64(info.Bytes_received) + int64(info.Bytes_sent) + headerBytes*(int64(info.Segs_in)+int64(info.Segs_out)), //nolint:gosec // far below
		mss:      int64(info.Rcv_mss),
		rtt:      time.Duration(info.Rcv_rtt) * time.Microsecond,
		minRTT:   minRTTOf(info),
	}, true
}

// minRTTOf: the kernel says 2^32-1 while it knows none.
func minRTTOf(info *unix.TCPInfo) time.Duration {
	if info.Min_rtt == ^uint32(0) {
		return 0
	}
	return time.Duration(info.Min_rtt) * time.Microsecond
}

// openWindow is a window that bounds nothing: the kernel sizes its buffers
// itself and takes less.
const openWindow = 1 << 30

// clamp: the kernel forgets the bound when it enlarges a buffer, so it is set
// again and again.
func (s *socket) clamp(n int64) {
	_ = s.raw.Control(func(fd uintptr) { // a socket that is gone needs no bound
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP, int(min(n, openWindow)))
	})
}
