package registry

import (
	"context"
	"net"
	"strings"
	"testing"
)

// With no name server, a host is asked where it was last. One that does not
// exist any more is not.
func TestHostsAreFoundWithoutANameServer(t *testing.T) {
	s := newShore(t, false)
	at := s.Listener.Addr().String()
	var fault *net.DNSError
	dial := remembering(func(ctx context.Context, network, address string) (net.Conn, error) {
		if strings.HasPrefix(address, "shore.example:") {
			if fault != nil {
				return nil, &net.OpError{Op: "dial", Net: network, Err: fault}
			}
			address = at
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	})
	try := func() error {
		conn, err := dial(t.Context(), "tcp", "shore.example:443")
		if err != nil {
			return err
		}
		return conn.Close()
	}
	fault = &net.DNSError{Err: "server misbehaving", IsTemporary: true}
	if try() == nil {
		t.Error("found without ever having been")
	}
	fault = nil
	if err := try(); err != nil {
		t.Fatal(err)
	}
	fault = &net.DNSError{Err: "i/o timeout", IsTimeout: true}
	if err := try(); err != nil {
		t.Errorf("not found where it was: %v", err)
	}
	fault = &net.DNSError{Err: "no such host", IsNotFound: true}
	if try() == nil {
		t.Error("a host that does not exist was found")
	}
	fault = &net.DNSError{Err: "i/o timeout", IsTimeout: true}
	s.Close()
	if err := try(); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("nobody there, and no name server: %v", err)
	}
}
