package link

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/test/rig/netns"
)

// Device is the name of the TUN device at either end of the link.
const Device = "link0"

// txQueueLen is how many packets may wait for the emulator to fetch them. A
// window that TCP releases at once must fit, because what does not is lost
// outside the emulator's accounting; the queue that the profile asks for is
// the emulator's own. 10 000 full packets are 15 MB.
const txQueueLen = 10000

// tun is an open TUN device: reads and writes are whole IP packets.
type tun struct {
	ns *netns.NS
	fd int // non-blocking
}

// openTUN makes the device in the namespace and brings it up. It carries no
// offloads: the kernel cuts and sums every packet itself, as it would have to
// for a modem. The device goes away with the descriptor.
func openTUN(ns *netns.NS, mtu int) (*tun, error) {
	t := &tun{ns: ns, fd: -1}
	err := ns.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		req, err := unix.NewIfreq(Device)
		if err == nil {
			req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err != nil {
			unix.Close(fd) //nolint:errcheck // nothing is in it
			return fmt.Errorf("make device: %w", err)
		}
		t.fd = fd
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("link: device in %s: %w", ns.Name(), err)
	}
	for _, step := range []func() error{
		func() error { return ns.SetMTU(Device, mtu) },
		func() error { return ns.SetTxQueueLen(Device, txQueueLen) },
		func() error { return ns.SetUp(Device) },
	} {
		if err := step(); err != nil {
			t.close()
			return nil, err
		}
	}
	return t, nil
}

func (t *tun) close() { unix.Close(t.fd) } //nolint:errcheck // the device is gone either way
