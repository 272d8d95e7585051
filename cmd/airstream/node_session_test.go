package main

import (
	"net/http"
	"testing"
	"time"

	"github.com/airstream-io/airstream/config"
	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/fetcher/uplink"
)

// What comes from a proxy shows the link's rate and delay, counts for the day by class,
// and a proxy that is gone leaves the link dark.
func TestTheLinksMeterLearnsFromTheProxy(t *testing.T) {
	f := newFar(t)
	p := startProxy(t, "[limits]\nrate = \"800kbit\"\n[registry.\"far.example\"]\nurl = \"http://"+f.host+"\"\n")
	dir, _ := p.enrol(t, "vessel-1")
	n := openNode(t, dir, p, false, "", time.Minute)
	if _, code := n.get(t, "far.example", "1"); code != http.StatusOK {
		t.Fatalf("the mirror said %d", code)
	}
	f.want(t, n, "bin/app")
	if err := n.fetcher.Complete(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	s := n.meter.State()
	if !s.Known.Rate || !s.Known.RTT || !s.Known.Min {
		t.Errorf("known is %+v", s.Known)
	}
	if s.Peak < 50_000 || s.Peak > 200_000 { // 100 kB/s, in rounds of 200 ms
		t.Errorf("a link of 100 kB/s was taken for %.0f B/s", s.Peak)
	}
	var today int64
	for _, b := range s.Today {
		today += b
	}
	if today < s.Bytes || s.Bytes < 300_000 || s.Today[fetcher.Prefetch] < 100_000 || s.Today[fetcher.Hot]+s.Today[fetcher.Demand] < 90_000 {
		t.Errorf("%d bytes were counted, %d for the day: %v", s.Bytes, today, s.Today)
	}
	p.stop()
	eventually(t, "the dark", func() bool { return n.meter.State().Phase == uplink.Dark })
	p.start(t)
	eventually(t, "the light", func() bool { return n.meter.State().Phase == uplink.Up })
}

// A budget that is used up stops what nobody waits for in the middle of a push, and a
// change of the policy lets it go on.
func TestABudgetStopsWhatIsPushed(t *testing.T) {
	f := newFar(t)
	p := startProxy(t, "[limits]\nrate = \"400kbit\"\n[registry.\"far.example\"]\nurl = \"http://"+f.host+"\"\n")
	dir, _ := p.enrol(t, "vessel-1")
	n := openNode(t, dir, p, false, "", time.Minute)
	l := config.Default().Limits
	l.Daily = 60_000
	n.tuning.mu.Lock()
	n.setLimits(l)
	n.tuning.mu.Unlock()
	if _, code := n.get(t, "far.example", "1"); code != http.StatusOK {
		t.Fatalf("the mirror said %d", code)
	}
	here := func() int64 {
		c, err := n.fetcher.Completeness(1)
		if err != nil {
			return 0
		}
		return c.Total - c.Missing
	}
	time.Sleep(3 * time.Second) // all of bin/app would be here in 2
	stopped := here()
	if stopped >= 200_000 {
		t.Errorf("%d bytes are here: the budget held nothing", stopped)
	}
	l.Daily = 0
	n.tuning.mu.Lock()
	n.setLimits(l)
	n.tuning.mu.Unlock()
	eventually(t, "the hot set", func() bool { return here() >= 200_000 })
}
