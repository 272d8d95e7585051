package link

import "math/rand/v2"

// noise decides which packets are lost. It is not safe for concurrent use.
type noise struct {
	random *rand.Rand
	enter  float64 // probability of going from good to bad
	leave  float64 // and back
	bad    bool
}

// transitions returns the probabilities that make both figures of l hold.
// The share of time in the bad state is enter / (enter + leave) = Mean, the
// mean stay there 1 / leave = Burst.
func (l Loss) transitions() (enter, leave float64) {
	if l.Mean == 0 {
		return 0, 1
	}
	burst := l.Burst
	if burst == 0 {
		burst = 1 / (1 - l.Mean)
	}
	return l.Mean / (burst * (1 - l.Mean)), 1 / burst
}

// set changes the figures and keeps the state.
func (n *noise) set(l Loss) { n.enter, n.leave = l.transitions() }

// lost decides the fate of the next packet.
func (n *noise) lost() bool {
	switch {
	case n.bad:
		n.bad = n.random.Float64() >= n.leave
	case n.enter > 0:
		n.bad = n.random.Float64() < n.enter
	}
	return n.bad
}
