package main

import (
	"net/http"
	"testing"
	"time"
)

// A daemon ends in the middle of a push. The next one is sent what had not come, from the
// byte on at which it broke off, without asking for it.
func TestTheNextDaemonIsSentTheRest(t *testing.T) {
	f := newFar(t)
	p := startProxy(t, "[limits]\nrate = \"400kbit\"\n[registry.\"far.example\"]\nurl = \"http://"+f.host+"\"\n")
	dir, _ := p.enrol(t, "vessel-1")
	n := openNode(t, dir, p, false, "", time.Minute)
	if _, code := n.get(t, "far.example", "1"); code != http.StatusOK {
		t.Fatalf("the mirror said %d", code)
	}
	eventually(t, "the first chunks", func() bool { return n.fetcher.Counts().Chunks >= 2 })
	time.Sleep(300 * time.Millisecond) // a part of the next is here
	if err := n.close(); err != nil {
		t.Fatal(err)
	}
	first, before := n.fetcher.Counts().Chunks, n.meter.State().Bytes
	n = openNode(t, dir, p, false, "", time.Minute)
	if err := n.resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the hot set", func() bool {
		c, err := n.fetcher.Completeness(1)
		return err == nil && c.Total-c.Missing >= 200_000
	})
	counts := n.fetcher.Counts()
	t.Logf("%d chunks and %d bytes, then %d and %d", first, before, counts.Chunks, n.meter.State().Bytes)
	if first+counts.Chunks != 4 {
		t.Errorf("%d chunks came of 4 that are hot", first+counts.Chunks)
	}
	if counts.Requests > 0 {
		t.Errorf("the node asked %d times for what the proxy goes on with", counts.Requests)
	}
	f.want(t, n, "bin/app")
	f.want(t, n, "lib/cold")
}
