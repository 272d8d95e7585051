package registry

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/airstream-io/airstream/fetcher/uplink"
)

// callers notes which connection each request came on.
func (s *shore) callers() func() []string {
	var mu sync.Mutex
	var from []string
	s.setMood(func(_ http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		from = append(from, r.RemoteAddr)
		return false
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return from
	}
}

func drain(t *testing.T, c *Client, s *shore, class uplink.Class) {
	t.Helper()
	rc, _, err := c.Blob(t.Context(), class, s.src(), s.digest(), 0, 50_000)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(io.Discard, rc)
	if err := errors.Join(err, rc.Close()); err != nil {
		t.Fatal(err)
	}
}

// Bulk takes no connection that is kept for whoever waits: with bulk under way
// a demand needs no handshake.
func TestDemandFindsAWarmConnection(t *testing.T) {
	for _, tls := range []bool{false, true} {
		s := newShore(t, tls)
		c := client(t, s, nil)
		from := s.callers()
		drain(t, c, s, uplink.Demand)
		bulk, _, err := c.Blob(t.Context(), uplink.Prefetch, s.src(), s.digest(), 0, 50_000)
		if err != nil {
			t.Fatal(err)
		}
		drain(t, c, s, uplink.Demand)
		drain(t, c, s, uplink.Hot)
		if err := bulk.Close(); err != nil {
			t.Fatal(err)
		}
		if f := from(); len(f) != 4 || f[0] == f[1] || f[0] != f[2] || f[0] != f[3] {
			t.Errorf("requests came from %v, want the first, third and fourth to share a connection", f)
		}
	}
}

// A transfer whose time has come to an end says so, and blames nobody for it.
func TestPolicyEndsATransferAndBlamesNobody(t *testing.T) {
	s := newShore(t, false)
	c := client(t, s, nil)
	rc, _, err := c.Blob(t.Context(), uplink.Background, s.src(), s.digest(), 0, 90_000)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(rc, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	inAnHour := time.Duration(time.Now().Add(time.Hour).Hour()) * time.Hour
	c.opts.Meter.SetPolicy(uplink.Policy{Windows: []uplink.Window{{From: inAnHour, To: inAnHour + time.Minute}}})
	_, err = io.ReadAll(rc)
	var no *uplink.NotNow
	if !errors.As(err, &no) || !strings.Contains(no.Why, "outside the contact window") {
		t.Errorf("error %v", err)
	}
	if err := rc.Close(); err != nil {
		t.Error(err)
	}
	if c.opts.Meter.State().Dark {
		t.Error("the link was taken for dark")
	}
	drain(t, c, s, uplink.Demand)
}

// What comes and goes is counted as the kernel sees it: headers, handshakes
// and requests are paid for, too.
func TestTheDaysCountHasHeadersAndHandshakes(t *testing.T) {
	s := newShore(t, true)
	c := client(t, s, nil)
	drain(t, c, s, uplink.Demand)
	st := c.opts.Meter.State()
	if n := st.ByClass[uplink.Demand]; n != 50_000 {
		t.Errorf("%d bytes of bodies", n)
	}
	if n := st.Today[uplink.Demand]; n < 51_500 || n > 70_000 {
		t.Errorf("%d bytes for a TLS handshake, a request and 50,000 bytes", n)
	}
}
