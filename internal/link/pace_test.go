package link

import (
	"testing"
	"time"
)

// Without BBR a connection is held below what is delivered while a queue stands, and
// looks for more once none does.
func TestTheBrakeHoldsWhileAQueueStands(t *testing.T) {
	var b brake
	now := time.Now()
	at := func(rtt time.Duration, rate int64) int64 {
		now = now.Add(lookEvery)
		return b.rate(now, TCP{Control: "cubic", RTT: rtt, MinRTT: 600 * time.Millisecond, Rate: rate}, 0)
	}
	if held := at(610*time.Millisecond, 250_000); held != 0 {
		t.Errorf("held to %d without a queue", held)
	}
	if held := at(900*time.Millisecond, 250_000); held < 200_000 || held >= 250_000 {
		t.Errorf("held to %d with a queue, at 250,000", held)
	}
	if held := at(610*time.Millisecond, 240_000); held < 250_000 {
		t.Errorf("held to %d once the queue has gone", held)
	}
}

// A bucket lets no more go than its rate, whatever is taken at once.
func TestBucket(t *testing.T) {
	var b bucket
	now := time.Now()
	b.set(now, 100_000)
	sent := 0
	for end := now.Add(10 * time.Second); now.Before(end); {
		if d := b.wait(now); d > 0 {
			now = now.Add(d)
			continue
		}
		b.take(now, 16<<10)
		sent += 16 << 10
	}
	if all := overhead * float64(sent); all < 980_000 || all > 1_040_000 {
		t.Errorf("%.0f bytes in 10 s at 100,000", all)
	}
}

// What a connection has delivered since a pause, or since it began, is not what the
// link carries: BBR is not held to it.
func TestBBRIsNotHeldToWhatItBeganWith(t *testing.T) {
	at := time.Now()
	slow := TCP{Control: "bbr", RTT: 600 * time.Millisecond, MinRTT: 600 * time.Millisecond, Rate: 30_000}
	b := brake{rested: at}
	at = at.Add(time.Second)
	if !b.renew(at, slow, 0) || b.rate(at, slow, 0) != 0 {
		t.Errorf("a connection that has just begun is held to %d bytes/s", b.rate(at, slow, 0))
	}
	at = at.Add(renewEvery)
	if !b.renew(at, slow, 0) || b.rate(at, slow, 0) == 0 {
		t.Error("one that has been sending for long is not held")
	}
	at = at.Add(renewEvery)
	if !b.renew(at, slow, time.Second) || b.rate(at, slow, 0) != 0 {
		t.Errorf("after a pause it is held to %d bytes/s", b.rate(at, slow, 0))
	}
}
