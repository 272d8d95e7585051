package uplink

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// crowdAfter keeps as many bulk transfers open as pay, for d, and returns how
// many that is in the end and what share of the link they used in the last
// 20 s.
func (l *model) crowdAfter(d time.Duration) (n int, use float64) {
	var open []*modelConn
	got := func() (sum int64) {
		for _, c := range open {
			sum += c.got
		}
		return sum
	}
	var before int64
	for end := time.Now().Add(d); time.Now().Before(end); l.run(250 * time.Millisecond) {
		n = l.m.Parallel(Prefetch)
		for live := len(open); live < n; live++ {
			open = append(open, l.open(Prefetch, 0))
		}
		if time.Until(end) > 20*time.Second {
			before = got()
		}
	}
	use = float64(got()-before) / (20 * l.rate)
	for _, c := range open {
		c.close()
		l.conns = slices.DeleteFunc(l.conns, func(o *modelConn) bool { return o == c })
	}
	return n, use
}

func TestFewConnectionsWhereFewFillTheLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newModel(t, 250_000, 600*time.Millisecond)
		if n, use := l.crowdAfter(2 * time.Minute); n > minCrowd+1 || use < 0.9 {
			t.Errorf("%d connections use %.0f%%", n, 100*use)
		}
	})
}

func TestMoreConnectionsWhereTheyHelp(t *testing.T) {
	for name, lossy := range map[string]bool{"lost packets": true, "a server that sends slowly": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newModel(t, 250_000, 600*time.Millisecond)
				l.pace, l.lossy = 30_000, lossy
				n, use := l.crowdAfter(2 * time.Minute)
				if n < 6 || use < 0.85 {
					t.Errorf("%d connections use %.0f%%", n, 100*use)
				}
				l.pace, l.lossy = 0, false
				if n, _ = l.crowdAfter(3 * time.Minute); n > minCrowd+1 {
					t.Errorf("%d connections, though few would do again", n)
				}
			})
		})
	}
}

// A server that is slow as a whole is not asked on ever more connections.
func TestMoreConnectionsAreTakenBackWhereTheyDontHelp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newModel(t, 250_000, 600*time.Millisecond)
		l.whole = 60_000
		most := 0
		for range 6 {
			n, _ := l.crowdAfter(30 * time.Second)
			most = max(most, n)
		}
		if most > minCrowd+1 {
			t.Errorf("up to %d connections", most)
		}
	})
}

func TestUrgentRequestsAreMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newModel(t, 250_000, 600*time.Millisecond)
		for c, want := range map[Class]int{Demand: 8, Hot: 8, Ahead: 4, Prefetch: 4, Background: 4} {
			if n := l.m.Parallel(c); n != want {
				t.Errorf("%v: %d, want %d", c, n, want)
			}
		}
	})
}

// A cap keeps the link idle by itself: that is no reason for more connections.
func TestFewConnectionsUnderARateCap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newModel(t, 250_000, 600*time.Millisecond)
		l.m.SetPolicy(Policy{Rate: 50_000})
		if n, use := l.crowdAfter(2 * time.Minute); n > cappedCrowd || use < 0.9*0.2 || use > 1.05*0.2 {
			t.Errorf("%d connections use %.0f%%, where 20%% is allowed", n, 100*use)
		}
		l.m.SetPolicy(Policy{})
		if n := l.m.Parallel(Prefetch); n != minCrowd {
			t.Errorf("%d connections when the cap is gone, want %d", n, minCrowd)
		}
	})
}

// Where losses keep less than the cap coming, more are worth it.
func TestMoreConnectionsWhereLessThanTheCapComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newModel(t, 250_000, 600*time.Millisecond)
		l.pace, l.lossy = 10_000, true
		l.m.SetPolicy(Policy{Rate: 50_000})
		if n, use := l.crowdAfter(3 * time.Minute); n < 4 || use < 0.7*0.2 || use > 1.05*0.2 {
			t.Errorf("%d connections use %.0f%%, where 20%% is allowed", n, 100*use)
		}
	})
}
