package fetcher

import (
	"context"
	"math/rand/v2"
	"time"
)

// DefaultMaxPause and firstPause are how long to pause after failures. The first retry comes soon, because most
// outages on satellite links last less than a second; the longest pause is
// what a crew waits for after the link is back. Guesses.
const (
	firstPause      = 250 * time.Millisecond
	DefaultMaxPause = 30 * time.Second
)

// backoff is the pause between attempts at one thing.
type backoff struct {
	max      time.Duration
	failures int
	until    time.Time
}

// failed begins a pause, at least as long as the other side asked for. Failures
// during a pause are the same one: requests that were under way at once fail at
// once.
func (b *backoff) failed(now time.Time, atLeast time.Duration) time.Duration {
	if left := b.until.Sub(now); left > 0 && left >= atLeast {
		return left
	}
	d := b.max
	if b.failures < 10 {
		d = min(d, firstPause<<b.failures)
	}
	b.failures++
	d = d/2 + rand.N(d/2) //nolint:gosec // jitter, no secret
	d = max(d, min(atLeast, time.Hour))
	b.until = now.Add(d)
	return d
}

func (b *backoff) succeeded() { *b = backoff{max: b.max} }

// sleep waits for d, or less if ctx ends; it tells whether it waited.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
