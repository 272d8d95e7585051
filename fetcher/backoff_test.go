package fetcher

import (
	"testing"
	"time"
)

func TestPausesGrowAndAreBounded(t *testing.T) {
	b := backoff{max: 30 * time.Second}
	now := time.Now()
	for i := range 40 {
		d := b.failed(now, 0)
		longest := min(30*time.Second, firstPause<<min(i, 10))
		if d < longest/2 || d > longest {
			t.Fatalf("pause %d: %v, want between %v and %v", i, d, longest/2, longest)
		}
		now = now.Add(d)
	}
	b.succeeded()
	if d := b.failed(now, 0); d > firstPause {
		t.Errorf("after a success: %v", d)
	}
	now = now.Add(time.Minute)
	if d := b.failed(now, 90*time.Second); d != 90*time.Second {
		t.Errorf("a registry asked for 90 s and got %v", d)
	}
}

// All requests under way fail when the link is cut. That is one failure, and
// the first retry comes soon.
func TestFailuresAtOnceAreOne(t *testing.T) {
	b := backoff{max: 30 * time.Second}
	now := time.Now()
	for range 20 {
		b.failed(now, 0)
	}
	if left := b.until.Sub(now); left > firstPause {
		t.Errorf("20 failures at once pause for %v", left)
	}
}
