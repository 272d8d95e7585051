package netns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

// Dial connects from inside the namespace. The address must be numeric:
// names would be resolved outside. It has the shape of
// http.Transport.DialContext.
func (n *NS) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	if err := numeric(address); err != nil {
		return nil, err
	}
	err = n.Do(func() error {
		var d net.Dialer
		d.SetMultipathTCP(false)
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens on a stream address inside the namespace.
func (n *NS) Listen(ctx context.Context, network, address string) (l net.Listener, err error) {
	if err := numeric(address); err != nil {
		return nil, err
	}
	err = n.Do(func() error {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		l, err = lc.Listen(ctx, network, address)
		return err
	})
	return l, err
}

// ListenPacket listens on a datagram address inside the namespace.
func (n *NS) ListenPacket(ctx context.Context, network, address string) (c net.PacketConn, err error) {
	if err := numeric(address); err != nil {
		return nil, err
	}
	err = n.Do(func() error {
		var lc net.ListenConfig
		c, err = lc.ListenPacket(ctx, network, address)
		return err
	})
	return c, err
}

func numeric(address string) error {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return fmt.Errorf("netns: address %q: want IP:port", address)
	}
	return nil
}
