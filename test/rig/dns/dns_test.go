package dns

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/airstream-io/airstream/test/rig/netns"
	"github.com/airstream-io/airstream/test/rig/tools"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A name resolves in the namespace as long as the server is there, and other
// names don't.
func TestServerComesAndGoes(t *testing.T) {
	tools.Need(t, tools.Root, tools.NetNS)
	ns, err := netns.Create("dns", netns.Options{})
	must(t, err)
	t.Cleanup(func() { must(t, ns.Close()) })
	addr := netip.MustParseAddr("192.0.2.7")
	s, err := Start(t.Context(), ns, map[string]netip.Addr{"here.test": addr})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	// As a process in the namespace does it: the machine's resolv.conf, and
	// packets from inside.
	resolver := &net.Resolver{PreferGo: true, Dial: ns.Dial}
	lookup := func(name string, limit time.Duration) ([]netip.Addr, error) {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		return resolver.LookupNetIP(ctx, "ip4", name)
	}
	if got, err := lookup("here.test", 10*time.Second); err != nil || len(got) != 1 || got[0] != addr {
		t.Errorf("here.test: %v, %v", got, err)
	}
	if got, err := lookup("elsewhere.test", 10*time.Second); err == nil {
		t.Errorf("elsewhere.test: %v", got)
	}
	// A resolver would go on asking for a while after the test.
	ask := func() error {
		conn, err := ns.Dial(t.Context(), "udp", s.conns[0].LocalAddr().String())
		must(t, err)
		defer conn.Close() //nolint:errcheck // the answer counts
		question := dnsmessage.Message{Questions: []dnsmessage.Question{{
			Name: dnsmessage.MustNewName("here.test."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET,
		}}}
		b, err := question.Pack()
		must(t, err)
		must(t, conn.SetDeadline(time.Now().Add(500*time.Millisecond)))
		_, err = conn.Write(b)
		must(t, err)
		_, err = conn.Read(make([]byte, 500))
		return err
	}
	s.Vanish(true)
	if ask() == nil {
		t.Error("a server that has vanished answers")
	}
	s.Vanish(false)
	if err := ask(); err != nil {
		t.Errorf("a server that is back: %v", err)
	}
	if s.Asked() < 4 {
		t.Errorf("%d questions were counted", s.Asked())
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
