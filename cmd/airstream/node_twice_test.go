package main

import (
	"net/http"
	"testing"
	"time"
)

// A tag is asked for again, and its image made complete, while what its start reads is
// still on its way: each chunk comes once.
func TestWhatIsOnItsWayDoesNotComeTwice(t *testing.T) {
	f := newFar(t)
	p := startProxy(t, "[limits]\nrate = \"800kbit\"\n[registry.\"far.example\"]\nurl = \"http://"+f.host+"\"\n")
	dir, _ := p.enrol(t, "vessel-1")
	n := openNode(t, dir, p, false, "", time.Minute)
	d, code := n.get(t, "far.example", "1")
	if code != http.StatusOK {
		t.Fatalf("the mirror said %d", code)
	}
	eventually(t, "the first chunks", func() bool { return n.fetcher.Counts().Chunks > 0 })
	for range 2 {
		if _, code := n.get(t, "far.example", "1"); code != http.StatusOK {
			t.Fatalf("the mirror said %d", code)
		}
	}
	if err := n.fetcher.Complete(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"bin/app", "lib/cold", "lib/other"} {
		f.want(t, n, path)
	}
	tree, err := n.fetcher.TreeHere(1)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // whatever else is on its way
	if got := n.fetcher.Counts().Chunks; got != int64(tree.NumChunks()) {
		t.Errorf("%d chunks came of an image of %d", got, tree.NumChunks())
	}
	_ = d
}
