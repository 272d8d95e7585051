package proxy

import (
	"bytes"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/internal/link/wire"
)

func app(tb testing.TB, s *shore) *testImage {
	tb.Helper()
	return s.push(tb, "team/app", "1", []file{
		{name: "lib/big", content: noise(1, 300<<10)},
		{name: "lib/first", content: prose(2, 150<<10), hot: 2},
		{name: "etc/cold", content: prose(3, 100<<10)},
	}, []file{
		{name: "bin/app", content: prose(4, 200<<10), hot: 1},
		{name: "bin/other", content: noise(5, 100<<10)},
		{name: "bin/twin", content: noise(1, 300<<10)}, // as lib/big
	})
}

// What a start needs comes in the order in which it is read, and nothing else.
func TestAStartIsPushedInItsOrder(t *testing.T) {
	s := newShore(t)
	img := app(t, s)
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{})
	n := newNode()
	pull := dial(t, p.addr, "vessel-1", nil).Pull(link.Request{Reference: img.ref, Platform: "linux/amd64", Depth: link.Start}, n)
	wait(t, pull)
	if !bytes.Equal(n.manifest.Body, img.manifest) || !bytes.Equal(n.config, img.config) {
		t.Error("manifest or config are not the image's")
	}
	want := []string{"manifest", "config", "table 0", "table 1", "chunk 1/0", "chunk 1/1", "chunk 1/2", "chunk 1/3", "chunk 0/5", "chunk 0/6", "chunk 0/7"}
	if !slices.Equal(n.order, want) {
		t.Errorf("came: %q\nwant: %q", n.order, want)
	}
	n.want(t, img, 1, "bin/app")
	n.want(t, img, 0, "lib/first")
}

// On a warm session everything that a start needs follows from one message of the
// node: one round trip. Nothing else that the node says gets through here, not even
// an update of a window.
func TestAStartTakesOneMessage(t *testing.T) {
	s := newShore(t)
	img := app(t, s)
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{})
	r := newRelay(t, p.addr, 0, 0)
	sess := dial(t, r.addr(), "vessel-1", func(o *link.Options) { o.MinStall = time.Minute })
	await(t, "the session", func() bool { st, _ := sess.State(); return st.Up })
	time.Sleep(100 * time.Millisecond) // what HTTP/2 says at the beginning has been said
	r.freezeUp(1)
	n := newNode()
	wait(t, sess.Pull(link.Request{Reference: img.ref, Platform: "linux/amd64", Depth: link.Start}, n))
	n.want(t, img, 1, "bin/app")
	n.want(t, img, 0, "lib/first")
}

// The whole image comes, what two layers share once.
func TestTheRestFollows(t *testing.T) {
	s := newShore(t)
	img := app(t, s)
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{})
	n := newNode()
	wait(t, dial(t, p.addr, "vessel-1", nil).Pull(link.Request{Reference: img.ref, Platform: "linux/amd64", Depth: link.All}, n))
	n.want(t, img, 0, "lib/big")
	n.want(t, img, 0, "etc/cold")
	n.want(t, img, 1, "bin/other")
	if got := n.file(t, img, 1, "bin/twin"); len(got) > 0 || n.twice > 0 {
		t.Errorf("%d bytes of a file came that is in another layer, %d chunks twice", len(got), n.twice)
	}
}

// A demand brings any chunk, also one that the pull didn't ask for.
func TestADemandBringsAnyChunk(t *testing.T) {
	s := newShore(t)
	img := app(t, s)
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{})
	n := newNode()
	pull := dial(t, p.addr, "vessel-1", nil).Pull(link.Request{Reference: img.ref, Platform: "linux/amd64", Depth: link.Names}, n)
	wait(t, pull)
	if n.count() != 0 {
		t.Errorf("%d chunks came unasked", n.count())
	}
	first, end := img.trees[1].Chunks(entryOf(t, img.trees[1], "bin/other"))
	for c := first; c < end; c++ {
		pull.Demand(link.Demand, 1, c)
	}
	await(t, "a demand", func() bool { return n.count() == int(end-first) })
	n.want(t, img, 1, "bin/other")
	// It comes again if it is wanted again.
	pull.Demand(link.Demand, 1, first)
	await(t, "a second demand", func() bool { n.mu.Lock(); defer n.mu.Unlock(); return n.twice == 1 })
}

// What can't be served is refused in words: an image that there is not for good, a
// registry that is down for as long as it is.
func TestRefusalsSayWhatIsWrong(t *testing.T) {
	s := newShore(t)
	img := app(t, s)
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{})
	sess := dial(t, p.addr, "vessel-1", nil)
	for _, ref := range []string{s.host() + "/team/none:1", "not a reference"} {
		err := sess.Pull(link.Request{Reference: ref, Platform: "linux/amd64"}, newNode()).Wait(t.Context())
		var r *link.Refusal
		if !errors.As(err, &r) || r.Temporary() {
			t.Errorf("%s: %v", ref, err)
		}
	}
	s.setMood(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusBadGateway); return true })
	n := newNode()
	pull := sess.Pull(link.Request{Reference: img.ref, Platform: "linux/amd64", Depth: link.Start}, n)
	said := func() string {
		n.mu.Lock()
		defer n.mu.Unlock()
		return strings.Join(n.status, "\n")
	}
	await(t, "word of the registry", func() bool { return said() != "" })
	if !strings.Contains(said(), s.host()) || !strings.Contains(said(), "since 20") {
		t.Errorf("the node was told %q", said())
	}
	s.setMood(nil)
	wait(t, pull)
	n.want(t, img, 1, "bin/app")
}

// A node whose certificate was revoked is turned away, also while it is here.
func TestARevokedNodeIsTurnedAway(t *testing.T) {
	s := newShore(t)
	img := app(t, s)
	revoked := make(chan struct{})
	is := func(node string) bool {
		select {
		case <-revoked:
			return node == "vessel-1"
		default:
			return false
		}
	}
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{Revoked: is})
	sess := dial(t, p.addr, "vessel-1", nil)
	wait(t, sess.Pull(link.Request{Reference: img.ref, Platform: "linux/amd64"}, newNode()))
	close(revoked)
	p.Expel()
	await(t, "the end", func() bool { st, _ := sess.State(); return !st.Up })
	time.Sleep(100 * time.Millisecond) // it tries again
	st, _ := sess.State()
	var r *link.Refusal
	if !errors.As(st.Err, &r) || r.Reason != wire.Reason_REASON_NODE || !strings.Contains(r.Text, "vessel-1") {
		t.Errorf("the node was told %v", st.Err)
	}
}
