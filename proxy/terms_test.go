package proxy

import (
	"testing"
	"time"

	"github.com/airstream-io/airstream/internal/link"
)

// The rate that a node says holds, at once when it is changed, and after its
// connection broke.
func TestANodesRateHolds(t *testing.T) {
	s := newShore(t)
	img := app(t, s)
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{})
	r := newRelay(t, p.addr, 0, 0)
	sess := dial(t, r.addr(), "vessel-1", nil)
	await(t, "the session", func() bool { st, _ := sess.State(); return st.Up })
	const rate = 200_000
	sess.Terms(rate)
	n := newNode()
	pull := sess.Pull(all(img), n)
	await(t, "the first chunks", func() bool { return n.count() > 1 })
	var most float64
	for range 3 { // a busy machine may take its time; it never makes more of it
		before, _ := r.crossed()
		began := time.Now()
		time.Sleep(time.Second)
		after, _ := r.crossed()
		got := float64(after-before) / time.Since(began).Seconds()
		if got > 1.1*rate {
			t.Errorf("%.0f bytes/s at a cap of %d", got, rate)
		}
		if most = max(most, got); most > 0.7*rate {
			break
		}
	}
	if most < 0.7*rate {
		t.Errorf("at most %.0f bytes/s at a cap of %d", most, rate)
	}
	asked := time.Now()
	pull.Demand(link.Demand, 1, 4) // the last of the plan
	await(t, "the demand", func() bool { n.mu.Lock(); defer n.mu.Unlock(); return n.chunks[[2]int{1, 4}] != nil })
	if took := time.Since(asked); took > time.Second { // 64 KiB take a third of it
		t.Errorf("a demand took %v", took)
	}
	sess.Terms(0)
	began := time.Now()
	wait(t, pull)
	if took := time.Since(began); took > time.Second {
		t.Errorf("without a cap the rest took %v", took)
	}
	n.everything(t, img)
}

// What a node holds back does not come until it says so; what somebody waits for does,
// and what an image is.
func TestWhatANodeHoldsBackWaits(t *testing.T) {
	s := newShore(t)
	img := app(t, s)
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{})
	sess := dial(t, p.addr, "vessel-1", nil)
	sess.Terms(0, link.Hot, link.Rest)
	n := newNode()
	pull := sess.Pull(all(img), n)
	await(t, "the tables", func() bool { n.mu.Lock(); defer n.mu.Unlock(); return len(n.tables) == 2 })
	pull.Demand(link.Demand, 0, 3)
	await(t, "the demand", func() bool { return n.count() > 0 })
	time.Sleep(300 * time.Millisecond)
	if got := n.count(); got != 1 {
		t.Errorf("%d chunks came while they were held back", got-1)
	}
	names := all(img)
	names.Depth = link.Names
	wait(t, sess.Pull(names, newNode())) // what an image is comes all the same
	sess.Terms(0)
	wait(t, pull)
	n.everything(t, img)
}
