package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// SetUp brings a device of the namespace up.
func (n *NS) SetUp(device string) error {
	return n.ifreq("set up", device, func(fd int, req *unix.Ifreq) error {
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
			return err
		}
		req.SetUint16(req.Uint16() | unix.IFF_UP)
		return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
	})
}

// SetMTU sets the largest IP packet, in bytes, that the device carries.
func (n *NS) SetMTU(device string, mtu int) error {
	return n.ifreq("set mtu of", device, func(fd int, req *unix.Ifreq) error {
		req.SetUint32(uint32(mtu)) //nolint:gosec // the kernel checks the range
		return unix.IoctlIfreq(fd, unix.SIOCSIFMTU, req)
	})
}

// SetTxQueueLen sets how many packets wait for the device's reader.
func (n *NS) SetTxQueueLen(device string, packets int) error {
	return n.ifreq("set txqueuelen of", device, func(fd int, req *unix.Ifreq) error {
		req.SetUint32(uint32(packets)) //nolint:gosec // the kernel checks the range
		return unix.IoctlIfreq(fd, unix.SIOCSIFTXQLEN, req)
	})
}

// ifreq runs an interface ioctl on a socket of the namespace.
func (n *NS) ifreq(act, device string, fn func(fd int, req *unix.Ifreq) error) error {
	err := n.Do(func() error {
		req, err := unix.NewIfreq(device)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return errors.Join(fn(fd, req), unix.Close(fd))
	})
	if err != nil {
		return fmt.Errorf("netns: %s %s: %w", act, device, err)
	}
	return nil
}

// AddAddress gives the device an address. Nothing becomes reachable by it:
// see AddRoute.
func (n *NS) AddAddress(device string, address netip.Addr) error {
	err := n.onDevice(device, func(index uint32) error {
		msg := []byte{family(address), byte(address.BitLen()), unix.IFA_F_PERMANENT, unix.RT_SCOPE_UNIVERSE}
		msg = binary.NativeEndian.AppendUint32(msg, index)
		msg = appendAttr(msg, unix.IFA_LOCAL, address.AsSlice())
		msg = appendAttr(msg, unix.IFA_ADDRESS, address.AsSlice())
		return rtnetlink(unix.RTM_NEWADDR, msg)
	})
	if err != nil {
		return fmt.Errorf("netns: add address %s to %s: %w", address, device, err)
	}
	return nil
}

// Route says where packets leave the namespace.
type Route struct {
	To     netip.Prefix
	Device string
	// CongestionControl is that of TCP connections over this route, unless
	// their socket chooses its own; empty means the namespace's default. The
	// route is the place for it, and not the namespace, because a namespace
	// may only be given an algorithm that the whole machine has allowed.
	CongestionControl string
}

// AddRoute adds a route. There is no gateway: what comes out at the other end
// of a point-to-point device is for the other end to decide.
func (n *NS) AddRoute(r Route) error {
	err := n.onDevice(r.Device, func(index uint32) error {
		msg := []byte{
			family(r.To.Addr()), byte(r.To.Bits()), 0, 0, unix.RT_TABLE_MAIN,
			unix.RTPROT_STATIC, unix.RT_SCOPE_LINK, unix.RTN_UNICAST, 0, 0, 0, 0,
		}
		msg = appendAttr(msg, unix.RTA_DST, r.To.Masked().Addr().AsSlice())
		msg = appendAttr(msg, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, index))
		if r.CongestionControl != "" {
			algorithm := appendAttr(nil, unix.RTAX_CC_ALGO, append([]byte(r.CongestionControl), 0))
			msg = appendAttr(msg, unix.RTA_METRICS, algorithm)
		}
		return rtnetlink(unix.RTM_NEWROUTE, msg)
	})
	if err != nil {
		return fmt.Errorf("netns: add route %s through %s: %w", r.To, r.Device, err)
	}
	return nil
}

// Dropped returns how many packets the kernel itself threw away on the way
// out of the device, because its reader was too slow.
func (n *NS) Dropped(device string) (packets uint64, err error) {
	err = n.Do(func() error {
		table, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		packets, err = droppedIn(string(table), device)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("netns: counters of %s: %w", device, err)
	}
	return packets, nil
}

// droppedIn finds a device's transmit drops in the table of proc(5)'s
// /proc/net/dev: eight columns for receive, eight for transmit, the fourth of
// each for drops.
func droppedIn(table, device string) (uint64, error) {
	for line := range strings.Lines(table) {
		name, counters, ok := strings.Cut(line, ":")
		if !ok || strings.TrimSpace(name) != device {
			continue
		}
		fields := strings.Fields(counters)
		if len(fields) < 12 {
			break
		}
		return strconv.ParseUint(fields[11], 10, 64)
	}
	return 0, fmt.Errorf("no counters of device %q", device)
}

// onDevice runs fn inside the namespace with the device's index.
func (n *NS) onDevice(device string, fn func(index uint32) error) error {
	return n.Do(func() error {
		d, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		return fn(uint32(d.Index)) //nolint:gosec // indexes are positive
	})
}

// rtnetlink sends one request to the kernel's routing socket (rtnetlink(7))
// and waits for its verdict. The calling thread is inside the namespace.
func rtnetlink(kind uint16, body []byte) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing is buffered in it

	order := binary.NativeEndian
	msg := order.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body))) //nolint:gosec // some dozen bytes
	msg = order.AppendUint16(msg, kind)
	msg = order.AppendUint16(msg, unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	msg = order.AppendUint32(msg, 1) // sequence
	msg = order.AppendUint32(msg, 0) // port: the kernel fills it in
	msg = append(msg, body...)
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	got, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return err
	}
	if got < unix.SizeofNlMsghdr+4 || order.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return errors.New("unexpected answer from the kernel")
	}
	if code := int32(order.Uint32(answer[unix.SizeofNlMsghdr:])); code != 0 { //nolint:gosec // a negative errno
		return unix.Errno(-code)
	}
	return nil
}

// appendAttr appends a netlink attribute, padded to four bytes.
func appendAttr(msg []byte, kind uint16, value []byte) []byte {
	msg = binary.NativeEndian.AppendUint16(msg, uint16(unix.SizeofRtAttr+len(value))) //nolint:gosec // an address or a number
	msg = binary.NativeEndian.AppendUint16(msg, kind)
	msg = append(msg, value...)
	for len(msg)%unix.RTA_ALIGNTO != 0 {
		msg = append(msg, 0)
	}
	return msg
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
