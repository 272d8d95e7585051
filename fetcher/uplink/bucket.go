package uplink

import "time"

// bucket holds all classes together to a rate. What was read is taken out
// afterwards and may leave a debt: how much comes with one read isn't known
// before. Who is most urgent of those that wait reads first. It is guarded by
// Meter.mu.
type bucket struct {
	tokens  float64 // bytes
	filled  time.Time
	waiting [NumClasses]int
}

const (
	// overhead is what headers of IP, TCP and TLS add to the bytes of a body.
	overhead = 1.05
	// burst is how long a rate may be saved up.
	burst = 250 * time.Millisecond
)

// fill adds what the rate has brought since the last time.
func (b *bucket) fill(now time.Time, rate int64) {
	if b.filled.IsZero() {
		b.filled = now
	}
	r := float64(rate)
	b.tokens = min(b.tokens+r*now.Sub(b.filled).Seconds(), r*burst.Seconds())
	b.filled = now
}

// take takes n bytes of a body out.
func (b *bucket) take(now time.Time, n int, rate int64) {
	if rate <= 0 {
		b.tokens, b.filled = 0, time.Time{}
		return
	}
	b.fill(now, rate)
	b.tokens -= overhead * float64(n)
}

// wait returns how long a stream should wait before it asks again, and counts
// it among those that wait until it does or leaves; 0: it may read.
func (b *bucket) wait(now time.Time, s *Stream, rate int64) time.Duration {
	b.leave(s)
	if rate <= 0 {
		return 0
	}
	b.fill(now, rate)
	debt := -b.tokens
	for c := range s.class {
		if b.waiting[c] > 0 { // it takes what comes next
			debt = max(debt, float64(rate)*burst.Seconds()/4)
		}
	}
	if debt <= 0 {
		return 0
	}
	b.waiting[s.class]++
	s.waits = int(s.class) + 1
	return max(time.Duration(debt/float64(rate)*float64(time.Second)), time.Millisecond)
}

// leave takes a stream out of those that wait.
func (b *bucket) leave(s *Stream) {
	if s.waits > 0 {
		b.waiting[s.waits-1]--
		s.waits = 0
	}
}
