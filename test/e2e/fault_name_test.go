package e2e

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/airstream-io/airstream/test/rig/dns"
	"github.com/airstream-io/airstream/test/rig/link"
	"github.com/airstream-io/airstream/test/rig/site"
)

// The name server goes away, and with it every connection: a new one needs the
// registry's address. It is an outage like any other.
func TestFaultNameServerGone(t *testing.T) {
	const host = "registry.airstream.test"
	sc := newScene(t, site.Options{Profile: profile(t, "rtt=40ms,down=48mbit,up=8mbit"), Name: host})
	names, err := dns.Start(t.Context(), sc.Link.Node, map[string]netip.Addr{host: link.ShoreAddr})
	must(t, err)
	t.Cleanup(func() { must(t, names.Close()) })
	sc.probe(t)
	sc.meet(t, fault{
		name: "name-server-gone", lasts: long(4*time.Second, time.Minute),
		begin: func(ctx context.Context) error {
			names.Vanish(true)
			// Connections that are open need no name.
			_, err := sc.Link.Reset(ctx)
			time.Sleep(time.Second)
			if err == nil {
				_, err = sc.Link.Restore(ctx)
			}
			return err
		},
		end: func(context.Context) error {
			names.Vanish(false)
			return nil
		},
	})
	if names.Asked() < 3 {
		t.Errorf("%d names were asked for: the daemon knows addresses that it should not", names.Asked())
	}
}
