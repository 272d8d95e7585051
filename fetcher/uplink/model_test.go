package uplink

import (
	"bytes"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// model is a link with a first-in first-out queue before it, and senders that
// have all that they are granted on their way: the least polite ones there
// are. Time is the test's; nothing runs but step.
type model struct {
	m    *Meter
	rate float64 // bytes/s
	rtt  time.Duration
	most int64 // bytes that a connection has on its way at most, as the kernel's buffers have it

	pace  float64 // bytes/s that a server sends on each connection at most; 0: any
	whole float64 // bytes/s that it sends on all of them together; 0: any
	lossy bool    // some packets come late because others were lost

	mu    sync.Mutex // the meter looks when it likes
	free  time.Time  // when the link has sent what waits
	next  time.Time  // when the server sends its next packet on any connection
	conns []*modelConn
}

// modelConn is one connection and its reader. It is a tap.
type modelConn struct {
	*model
	st      *Stream
	c       counters
	window  int64
	edge    int64     // how far it may send, as this end has said
	said    []granted // on their way to the other end
	known   int64     // edge there
	sent    int64
	coming  []arrival
	read    int64
	got     int64 // all that was read
	limit   int64 // ends there; 0: never
	stopped bool
	next    time.Time // when the server sends its next packet at the earliest
}

type (
	granted struct {
		at   time.Time
		edge int64
	}
	arrival struct {
		at    time.Time
		delay time.Duration
	}
)

const modelPacket = 1460

// modelTap makes a modelConn a tap: its field names stand in the way.
type modelTap struct{ c *modelConn }

func (t modelTap) read() (counters, bool) {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	return t.c.c, true
}

func (t modelTap) clamp(n int64) {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	t.c.window = min(n, t.c.most)
	t.c.grant()
}

func newModel(t *testing.T, rate float64, rtt time.Duration) *model {
	t.Helper()
	return &model{m: newMeter(&bytes.Buffer{}), rate: rate, rtt: rtt, most: 1 << 20}
}

// open begins a transfer of a class; it ends after limit bytes, or never.
func (l *model) open(class Class, limit int64) *modelConn {
	c := &modelConn{model: l, window: l.most, limit: limit}
	c.c.mss, c.c.minRTT = modelPacket, l.rtt
	c.st = l.m.Begin(class)
	l.m.mu.Lock()
	c.st.sock = modelTap{c}
	l.m.divide()
	l.m.mu.Unlock()
	l.mu.Lock()
	c.grant()
	l.mu.Unlock()
	c.st.Answered()
	l.conns = append(l.conns, c)
	return c
}

// grant tells the other end how far it may send. mu is held.
func (c *modelConn) grant() {
	if edge := c.read + c.window; edge > c.edge { // never taken back
		c.edge = edge
		c.said = append(c.said, granted{time.Now().Add(c.rtt / 2), edge})
	}
}

func (c *modelConn) close() { c.stopped = true; c.st.End() }

// run lets d pass.
func (l *model) run(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
		l.step(time.Now())
	}
}

func (l *model) step(now time.Time) {
	l.carry(now)
	for _, c := range l.conns {
		if wait, _, err := c.st.mayRead(); c.stopped || err != nil || wait > 0 {
			continue
		}
		if n := c.c.received - c.read; n > 0 {
			n = int64(c.st.Piece(int(n)))
			c.got += n
			c.st.Arrived(int(n))
			l.mu.Lock()
			c.read += n
			c.grant()
			l.mu.Unlock()
		}
		if c.limit > 0 && c.read >= c.limit {
			c.close()
		}
	}
}

// carry sends what may be sent and hands over what arrives.
func (l *model) carry(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for more := true; more; { // senders take turns, a packet each
		more = false
		for _, c := range l.conns {
			for len(c.said) > 0 && !c.said[0].at.After(now) {
				c.known, c.said = c.said[0].edge, c.said[1:]
			}
			if c.stopped || c.sent+modelPacket > c.known || c.limit > 0 && c.sent >= c.limit || c.next.After(now) || l.next.After(now) {
				continue
			}
			c.sent += modelPacket
			c.next, l.next = after(c.next, now, l.pace), after(l.next, now, l.whole)
			if l.free.Before(now) {
				l.free = now
			}
			l.free = l.free.Add(time.Duration(modelPacket / l.rate * float64(time.Second)))
			c.coming = append(c.coming, arrival{l.free.Add(l.rtt / 2), l.free.Sub(now) + l.rtt})
			more = true
		}
	}
	for _, c := range l.conns {
		for len(c.coming) > 0 && !c.coming[0].at.After(now) {
			c.c.received += modelPacket
			if c.c.segments++; l.lossy && c.c.segments%20 == 0 {
				c.c.late++
			}
			if c.c.rtt == 0 {
				c.c.rtt = c.coming[0].delay
			}
			c.c.rtt += (c.coming[0].delay - c.c.rtt) / 8
			c.coming = c.coming[1:]
		}
	}
}

// after returns when the packet after one that is sent now may be, at a rate.
func after(last, now time.Time, rate float64) time.Time {
	if rate == 0 {
		return now
	}
	if last.Before(now.Add(-10 * time.Millisecond)) {
		last = now
	}
	return last.Add(time.Duration(modelPacket / rate * float64(time.Second)))
}

// queue is how long what is sent now waits.
func (l *model) queue() time.Duration { return max(0, time.Until(l.free)) }

func (l *model) end() {
	for _, c := range l.conns {
		if !c.stopped {
			c.close()
		}
	}
}

func TestBulkFillsTheLinkAndNotTheQueue(t *testing.T) {
	for _, rate := range []float64{30_000, 250_000, 2_500_000} {
		synctest.Test(t, func(t *testing.T) {
			l := newModel(t, rate, 600*time.Millisecond)
			defer l.end()
			a, b := l.open(Prefetch, 0), l.open(Prefetch, 0)
			l.run(20 * time.Second)
			before, worst := a.got+b.got, time.Duration(0)
			for range 200 {
				l.run(100 * time.Millisecond)
				worst = max(worst, l.queue())
			}
			if use := float64(a.got+b.got-before) / (20 * rate); use < 0.93 {
				t.Errorf("%.0f B/s: %.0f%% of the link is used", rate, 100*use)
			}
			if worst > 400*time.Millisecond {
				t.Errorf("%.0f B/s: %v stand in the queue, of a round trip of 600 ms", rate, worst)
			}
			if p := l.m.State().Peak; p < 0.9*rate || p > 1.1*rate {
				t.Errorf("%.0f B/s were taken for %.0f", rate, p)
			}
		})
	}
}

func TestRateFollowsTheLinkTenfold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newModel(t, 50_000, 600*time.Millisecond)
		defer l.end()
		a, b := l.open(Prefetch, 0), l.open(Prefetch, 0)
		l.run(20 * time.Second)
		l.rate = 500_000
		l.run(12 * time.Second) // 20 round trips
		before := a.got + b.got
		l.run(6 * time.Second)
		if use := float64(a.got+b.got-before) / (6 * l.rate); use < 0.8 {
			t.Errorf("after it became faster, %.0f%% of the link is used", 100*use)
		}
		l.rate = 50_000
		l.run(15 * time.Second) // what was on its way takes 6 s of it
		if q := l.queue(); q > time.Second {
			t.Errorf("after it became slower, %v stand in the queue", q)
		}
		if p := l.m.State().Peak; p > 60_000 {
			t.Errorf("after it became slower it was taken for %.0f B/s", p)
		}
		before = a.got + b.got
		l.run(6 * time.Second)
		if use := float64(a.got+b.got-before) / (6 * l.rate); use < 0.9 {
			t.Errorf("after it became slower, %.0f%% of the link is used", 100*use)
		}
	})
}

// A demand of 64 KiB under bulk, against an idle link.
func TestDemandUnderBulk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newModel(t, 250_000, 600*time.Millisecond)
		defer l.end()
		demand := func() time.Duration {
			begin := time.Now()
			for c := l.open(Demand, 64<<10); !c.stopped; {
				l.run(5 * time.Millisecond)
			}
			return time.Since(begin)
		}
		idle := demand()
		l.open(Prefetch, 0)
		l.open(Background, 0)
		l.run(20 * time.Second)
		for range 5 {
			if busy := demand(); busy > idle*3/2 {
				t.Errorf("%v under bulk, %v alone", busy, idle)
			}
			l.run(3 * time.Second)
		}
	})
}

// Pauses and small shares are no news of the link.
func TestRateSurvivesWhatThisEndHoldsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newModel(t, 250_000, 600*time.Millisecond)
		defer l.end()
		bulk := l.open(Prefetch, 0)
		l.run(20 * time.Second)
		for range 20 { // one demand after the other for a minute
			for c := l.open(Demand, 20<<10); !c.stopped; {
				l.run(5 * time.Millisecond)
			}
			l.run(time.Second)
		}
		if p := l.m.State().Peak; p < 220_000 || p > 280_000 {
			t.Errorf("the link was taken for %.0f B/s", p)
		}
		before := bulk.got
		l.run(3 * time.Second)
		if use := float64(bulk.got-before) / (3 * l.rate); use < 0.8 {
			t.Errorf("bulk does not come back: %.0f%%", 100*use)
		}
	})
}

// On a link so thin that two packets are many round trips, what is not urgent
// stands still, but not for ever.
func TestThinLinkIsLeftToDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newModel(t, 1000, 1500*time.Millisecond)
		l.most = 8 << 10
		defer l.end()
		bulk := l.open(Background, 0)
		l.run(2 * time.Minute)
		if bulk.got < 90_000 {
			t.Fatalf("%d bytes in 120 s", bulk.got)
		}
		demand := l.open(Demand, 1<<20)
		l.run(10 * time.Second) // what was on its way
		before, begun := bulk.got, demand.got
		l.run(2 * time.Minute)
		if n := demand.got - begun; n < 100_000 {
			t.Errorf("demand got %d bytes of 120,000", n)
		}
		if n := bulk.got - before; n == 0 || n > 20_000 {
			t.Errorf("bulk got %d bytes beside it", n)
		}
		demand.close()
		before = bulk.got
		l.run(10 * time.Second)
		if bulk.got == before {
			t.Error("bulk does not go on at once")
		}
	})
}

// One registry that says nothing holds up nobody else.
func TestSilentDemandHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newModel(t, 250_000, 600*time.Millisecond)
		defer l.end()
		bulk := l.open(Prefetch, 0)
		l.run(10 * time.Second)
		silent := l.m.Begin(Demand)
		defer silent.End()
		l.run(5 * time.Second)
		before := bulk.got
		l.run(5 * time.Second)
		if use := float64(bulk.got-before) / (5 * l.rate); use < 0.85 {
			t.Errorf("%.0f%% of the link is used", 100*use)
		}
	})
}
