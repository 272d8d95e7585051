package uplink

import "time"

// Bounds of the number of connections of a class that nobody waits for. More
// than 8 were never better on the emulated links (Nov 2026), and are not
// polite.
const (
	minCrowd = 4
	maxCrowd = 8

	// cappedCrowd is minCrowd where a rate cap is in force. Few connections are
	// enough for less than the link carries, and each more brings 64 KiB that the
	// kernel grants before it is asked, whatever the cap says.
	cappedCrowd = 2

	crowdRounds = 3                // between two steps up
	calmRounds  = 16               // between two steps down
	crowdRest   = 60 * time.Second // after a step up that brought nothing
)

// crowd is how many connections bulk uses. One connection gives way at each
// loss, and half of it is gone for many round trips; of several the others go
// on. It is guarded by Meter.mu.
type crowd struct {
	n      int
	rounds int       // since the last step
	under  int       // of these, in which the link could have carried more
	sum    float64   // bytes/s, over them
	before float64   // bytes/s before the last step up that no loss explains; 0: none is on trial
	rest   time.Time // no such step before
}

// Parallel returns how many requests of class c pay at a time now. Of what is
// bulk it is 4 while that fills the link, so that three go on between two
// requests of the fourth; more, up to 8, while losses or something unexplained keep it
// from that; under a rate cap 2, and more while less than the cap comes. Urgent
// requests are small, and wait most of their time for the first byte: 8 of them.
func (m *Meter) Parallel(c Class) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c <= Hot {
		return maxCrowd
	}
	return m.crowd.n
}

// gather decides at the end of a round r how many connections pay. m.mu is
// held.
func (m *Meter) gather(now time.Time, r round, rate, q float64, limited bool) {
	c := &m.crowd
	bulk := 0
	for _, s := range m.streams {
		if s.body && s.class >= Prefetch && !s.pushed {
			bulk++
		}
	}
	if r.held || bulk == 0 || !m.est.settled || m.share.drain > 0 {
		return // says nothing of how many it takes
	}
	c.rounds++
	c.sum += rate
	if !limited && !r.capped && q < 1.25 {
		c.under++
	}
	mean := c.sum / float64(c.rounds)
	lossy := m.lossy()
	switch {
	case c.rounds < crowdRounds:
		return
	case c.before > 0 && mean < 1.1*c.before: // the trial has failed
		m.gatherTo(c.n-1, 0)
		c.rest = now.Add(crowdRest)
	case c.under*4 >= c.rounds*3 && bulk >= c.n && lossy:
		m.gatherTo(2*c.n, 0)
	case c.under*4 >= c.rounds*3 && bulk >= c.n && now.After(c.rest):
		m.gatherTo(c.n+1, mean)
	case c.before > 0: // it has not
		m.gatherTo(c.n, 0)
	case c.rounds >= calmRounds:
		if c.under*4 < c.rounds && !lossy {
			m.gatherTo(c.n-1, 0)
		} else {
			m.gatherTo(c.n, 0)
		}
	}
}

// leastCrowd is how many connections there are at least, and at first.
func leastCrowd(p Policy) int {
	if p.Rate > 0 {
		return cappedCrowd
	}
	return minCrowd
}

// gatherTo makes the crowd one of n, as far as that is allowed. before is the
// rate if that is a trial. m.mu is held.
func (m *Meter) gatherTo(n int, before float64) {
	n = min(max(n, leastCrowd(m.rules.policy)), maxCrowd)
	if n == m.crowd.n {
		before = 0
	}
	m.crowd = crowd{n: n, before: before, rest: m.crowd.rest}
}
