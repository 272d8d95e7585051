package proxy

import (
	"errors"
	"testing"
	"time"

	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/internal/link/wire"
)

// A rate cap holds: the kernel sends no faster, and a demand still overtakes.
func TestARateCapHolds(t *testing.T) {
	const rate = 250_000
	s := newShore(t)
	img := app(t, s)
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{Limits: Limits{Rate: rate}})
	r := newRelay(t, p.addr, 0, 0)
	sess := dial(t, r.addr(), "vessel-1", nil)
	n := newNode()
	began := time.Now()
	pull := sess.Pull(all(img), n)
	await(t, "the first chunk", func() bool { return n.count() > 0 })
	asked := time.Now()
	pull.Demand(link.Demand, 1, 4) // the last of the plan
	await(t, "the demand", func() bool { n.mu.Lock(); defer n.mu.Unlock(); return n.chunks[[2]int{1, 4}] != nil })
	waited := time.Since(asked)
	wait(t, pull)
	took := time.Since(began)
	down, _ := r.crossed()
	got := float64(down) / took.Seconds()
	t.Logf("%d bytes in %v, %.0f bytes/s; a demand took %v", down, took, got, waited)
	if got > 1.2*rate || got < 0.6*rate {
		t.Errorf("%.0f bytes/s at a cap of %d", got, rate)
	}
	if waited > took/2 {
		t.Errorf("a demand took %v of %v", waited, took)
	}
}

// A node that opens session after session keeps the latest ones.
func TestTheOldestSessionEndsForANewOne(t *testing.T) {
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{Limits: Limits{Sessions: 2}})
	var all []*link.Session
	for range 3 {
		sess := dial(t, p.addr, "vessel-1", func(o *link.Options) { o.MaxPause = time.Hour })
		await(t, "a session", func() bool { st, _ := sess.State(); return st.Up })
		all = append(all, sess)
	}
	await(t, "the end of the oldest", func() bool { st, _ := all[0].State(); return st.Err != nil })
	st, _ := all[0].State()
	var r *link.Refusal
	if !errors.As(st.Err, &r) || r.Reason != wire.Reason_REASON_LIMIT || !r.Temporary() {
		t.Errorf("it was told %v", st.Err)
	}
	if st, _ := all[2].State(); !st.Up {
		t.Errorf("the newest is %+v", st)
	}
}
