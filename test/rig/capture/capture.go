// Package capture sees the packets that pass a network namespace of the rig, so that
// tests can tell what crossed, and when, from what the ends say of it.
package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/test/rig/netns"
)

// Packet is an IPv4 packet of TCP.
type Packet struct {
	At       time.Time // when the kernel had it
	Src, Dst netip.AddrPort
	Seq      uint32 // of the payload's first byte
	Payload  int    // bytes of TCP payload
	SYN, RST bool
}

// maxPackets bounds what a capture keeps; later packets are not kept.
const maxPackets = 1 << 20

// Capture is a capture that goes on until Stop.
type Capture struct {
	file *os.File
	done chan struct{}

	mu      sync.Mutex
	packets []Packet // guarded by mu
}

// Start captures what the devices of a namespace send and receive. It needs root.
func Start(ns *netns.NS) (*Capture, error) {
	var file *os.File
	err := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		file = os.NewFile(uintptr(fd), "packets") //nolint:gosec // a descriptor
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20))
	})
	if err != nil {
		if file != nil {
			err = errors.Join(err, file.Close())
		}
		return nil, fmt.Errorf("capture: %s: %w", ns.Name(), err)
	}
	c := &Capture{file: file, done: make(chan struct{})}
	go c.run()
	return c, nil
}

func htons(n uint16) uint16 { return n<<8 | n>>8 } // on machines that are little-endian, as ours are

// Stop ends the capture and returns what passed, in its order.
func (c *Capture) Stop() ([]Packet, error) {
	err := c.file.Close()
	<-c.done
	return c.Packets(), err
}

// Packets returns what has passed so far, in its order.
func (c *Capture) Packets() []Packet {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Packet(nil), c.packets...)
}

func (c *Capture) run() {
	defer close(c.done)
	conn, err := c.file.SyscallConn()
	if err != nil {
		return
	}
	buf, oob := make([]byte, 128), make([]byte, 128)
	for {
		var n, oobn int
		var rerr error
		err := conn.Read(func(fd uintptr) bool {
			n, oobn, _, _, rerr = unix.Recvmsg(int(fd), buf, oob, 0) //nolint:gosec // a descriptor
			return !errors.Is(rerr, unix.EAGAIN)
		})
		if err != nil || rerr != nil && !errors.Is(rerr, unix.EINTR) {
			return
		}
		if p, ok := parse(buf[:n]); ok {
			p.At = stamp(oob[:oobn])
			c.keep(p)
		}
	}
}

func (c *Capture) keep(p Packet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.packets) < maxPackets {
		c.packets = append(c.packets, p)
	}
}

// stamp returns the time in a control message; now, if there is none.
func stamp(oob []byte) time.Time {
	all, err := unix.ParseSocketControlMessage(oob)
	if err == nil {
		for _, m := range all {
			if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
				return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:]))) //nolint:gosec // the kernel's
			}
		}
	}
	return time.Now()
}

// parse reads the headers of an IPv4 packet (RFC 791) of TCP (RFC 9293). ok is false
// for any other. b may be cut short behind them.
func parse(b []byte) (p Packet, ok bool) {
	if len(b) < 20 || b[0]>>4 != 4 || b[9] != unix.IPPROTO_TCP {
		return p, false
	}
	head, size := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if head < 20 || len(b) < head+20 {
		return p, false
	}
	t := b[head:]
	p.Payload = size - head - int(t[12]>>4)*4
	if p.Payload < 0 {
		return p, false
	}
	p.Src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:16])), binary.BigEndian.Uint16(t))
	p.Dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:20])), binary.BigEndian.Uint16(t[2:]))
	p.Seq = binary.BigEndian.Uint32(t[4:])
	p.SYN, p.RST = t[13]&2 != 0, t[13]&4 != 0
	return p, true
}
