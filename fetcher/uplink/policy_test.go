package uplink

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func at(t *testing.T, zone, text string) time.Time {
	t.Helper()
	loc, err := time.LoadLocation(zone)
	if err != nil {
		t.Skip(err)
	}
	when, err := time.ParseInLocation("Mon 2006-01-02 15:04", text, loc)
	if err != nil {
		t.Fatal(err)
	}
	return when
}

func TestWindows(t *testing.T) {
	night := Window{From: 22 * time.Hour, To: 6 * time.Hour}
	weekend := Window{From: 0, To: day, Days: [7]bool{time.Saturday: true, time.Sunday: true}}
	friday := Window{From: 23 * time.Hour, To: time.Hour, Days: [7]bool{time.Friday: true}}
	for name, c := range map[string]struct {
		windows []Window
		zone    string
		now     string
		open    bool
		until   string // "": never
	}{
		"none":                          {nil, "UTC", "Mon 2026-11-16 12:00", true, ""},
		"before":                        {[]Window{night}, "UTC", "Mon 2026-11-16 12:00", false, "Mon 2026-11-16 22:00"},
		"in, before midnight":           {[]Window{night}, "UTC", "Mon 2026-11-16 23:00", true, "Tue 2026-11-17 06:00"},
		"in, after midnight":            {[]Window{night}, "UTC", "Tue 2026-11-17 05:59", true, "Tue 2026-11-17 06:00"},
		"at its end":                    {[]Window{night}, "UTC", "Tue 2026-11-17 06:00", false, "Tue 2026-11-17 22:00"},
		"other days":                    {[]Window{weekend}, "UTC", "Mon 2026-11-16 00:00", false, "Sat 2026-11-21 00:00"},
		"two days are one window":       {[]Window{weekend}, "UTC", "Sat 2026-11-21 10:00", true, "Mon 2026-11-23 00:00"},
		"begun on its day":              {[]Window{friday}, "UTC", "Sat 2026-11-21 00:30", true, "Sat 2026-11-21 01:00"},
		"not on the day after":          {[]Window{friday}, "UTC", "Sat 2026-11-21 23:30", false, "Fri 2026-11-27 23:00"},
		"overlapping are one":           {[]Window{night, {From: 5 * time.Hour, To: 8 * time.Hour}}, "UTC", "Tue 2026-11-17 05:30", true, "Tue 2026-11-17 08:00"},
		"always":                        {[]Window{{From: 0, To: 0}}, "UTC", "Tue 2026-11-17 05:30", true, ""},
		"the clock on the wall, spring": {[]Window{{From: 6 * time.Hour, To: 7 * time.Hour}}, "Europe/Berlin", "Sun 2026-03-29 01:00", false, "Sun 2026-03-29 06:00"},
	} {
		t.Run(name, func(t *testing.T) {
			p := Policy{Windows: c.windows}
			if err := p.Validate(); err != nil {
				t.Fatal(err)
			}
			open, until := p.open(at(t, c.zone, c.now))
			var want time.Time
			if c.until != "" {
				want = at(t, c.zone, c.until)
			}
			if open != c.open || !until.Equal(want) {
				t.Errorf("open %v until %v, want %v until %v", open, until, c.open, want)
			}
		})
	}
}

func TestImpossiblePoliciesAreRefused(t *testing.T) {
	for name, p := range map[string]Policy{
		"rate":      {Rate: -1},
		"budget":    {DailyBytes: -1},
		"class":     {ClassBytes: [NumClasses]int64{Prefetch: -1}},
		"reserve":   {Reserve: 1},
		"too much":  {DailyBytes: 1, Reserve: 2},
		"no class":  {Outside: Class(NumClasses)},
		"too late":  {Windows: []Window{{From: day}}},
		"too early": {Windows: []Window{{From: -1}}},
	} {
		if p.Validate() == nil {
			t.Errorf("%s: %+v is taken", name, p)
		}
	}
}

func TestWindowHoldsUpWhatNobodyWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // begins at midnight UTC, 2000-01-01
		time.Sleep(12*time.Hour + time.Until(time.Now().Truncate(day)))
		m := newMeter(&bytes.Buffer{})
		m.SetPolicy(Policy{Windows: []Window{{From: 22 * time.Hour, To: 6 * time.Hour}}, Outside: Hot})
		for c := range Class(NumClasses) {
			ok, again, why := m.Admit(c)
			if want := c <= Hot; ok != want {
				t.Errorf("%v outside the window: %v", c, ok)
			}
			if !ok && (!strings.Contains(why, "until 22:00") || time.Until(again) != askAgain) {
				t.Errorf("%v: %q, again in %v", c, why, time.Until(again))
			}
		}
		if next := m.State().NextWindow; time.Until(next) != 10*time.Hour {
			t.Errorf("next window %v", next)
		}
		time.Sleep(10 * time.Hour)
		if ok, _, why := m.Admit(Background); !ok {
			t.Errorf("inside: %s", why)
		}
		if next := m.State().NextWindow; !next.IsZero() {
			t.Errorf("next window %v while one is open", next)
		}
	})
}

// A clock that was a year ahead doesn't leave a window shut for a year.
func TestWindowsFollowAClockThatIsSet(t *testing.T) {
	var r rules
	r.policy = Policy{Windows: []Window{{From: 0, To: time.Hour, Days: [7]bool{time.Monday: true}}}}
	monday := time.Date(2026, 11, 16, 0, 30, 0, 0, time.UTC)
	for _, now := range []time.Time{monday, monday.Add(365 * day), monday, monday.Add(-365 * day), monday} {
		if open, _ := r.window(now); open != (now.Weekday() == time.Monday) {
			t.Errorf("%v: open %v", now, open)
		}
	}
}

// What is under way obeys a new policy, and a closing window.
func TestStreamsUnderWayObey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeter(&bytes.Buffer{})
		st := m.Stream(Prefetch, nil)
		defer st.End()
		if err := st.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		changed := m.Changed()
		m.SetPolicy(Policy{Windows: []Window{{From: time.Hour, To: 2 * time.Hour}}})
		select {
		case <-changed:
		default:
			t.Error("nobody is told that the policy changed")
		}
		var no *NotNow
		if err := st.Wait(t.Context()); !errors.As(err, &no) || no.Class != Prefetch || no.Again.IsZero() {
			t.Fatalf("error %v, want NotNow and when", err)
		}
		st.SetClass(Demand)
		if err := st.Wait(t.Context()); err != nil {
			t.Errorf("somebody waits for it now: %v", err)
		}
	})
}

func TestDailyBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var words bytes.Buffer
		m := newMeter(&words)
		m.rules.usage = newUsage(time.Now, sinceStart())
		m.SetPolicy(Policy{DailyBytes: 1000, Reserve: 200, ClassBytes: [NumClasses]int64{Background: 300}})
		spend := func(c Class, n int) {
			st := m.Stream(c, nil)
			st.Arrived(n)
			st.End()
		}
		check := func(when string, want [NumClasses]bool) {
			t.Helper()
			for c := range Class(NumClasses) {
				if ok, _, why := m.Admit(c); ok != want[c] {
					t.Errorf("%s: %v may begin: %v %s", when, c, ok, why)
				}
			}
		}
		check("new day", [NumClasses]bool{true, true, true, true, true})
		spend(Background, 300)
		check("background's part used up", [NumClasses]bool{true, true, true, true, false})
		if _, again, why := m.Admit(Background); why != "daily budget for background is used up until 00:00" || time.Until(again) != askAgain {
			t.Errorf("%q, again %v", why, again)
		}
		spend(Prefetch, 500)
		check("down to the reserve", [NumClasses]bool{Demand: true})
		if s := m.State(); s.BudgetLeft != 200 || s.Today[Background] != 300 {
			t.Errorf("%+v", s)
		}
		if words.Len() > 0 {
			t.Errorf("said: %s", &words)
		}
		spend(Demand, 900)
		check("nothing left: demand goes on", [NumClasses]bool{Demand: true})
		check("and it is said once", [NumClasses]bool{Demand: true})
		if n := strings.Count(words.String(), "a daily budget is used up"); n != 1 {
			t.Errorf("said %d times: %s", n, &words)
		}
		p := m.Policy()
		p.Hard = true
		m.SetPolicy(p)
		check("hard", [NumClasses]bool{})
		time.Sleep(time.Until(midnightAfter(time.Now())))
		check("next day", [NumClasses]bool{true, true, true, true, true})
	})
}

// sinceStart is a boot clock that runs with the test's time.
func sinceStart() func() time.Duration {
	start := time.Now()
	return func() time.Duration { return time.Since(start) }
}

func TestRateCap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeter(&bytes.Buffer{})
		m.SetPolicy(Policy{Rate: 10_000})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		// read reads as fast as it may, in pieces of the size that it is told.
		read := func(c Class) func() int {
			st := m.Stream(c, nil)
			done := make(chan struct{})
			n := 0
			go func() {
				defer close(done)
				for st.Wait(ctx) == nil {
					k := st.Piece(4096)
					st.Arrived(k)
					n += k
					time.Sleep(time.Millisecond)
				}
				st.End()
			}()
			return func() int { <-done; return n }
		}
		bulk, background := read(Prefetch), read(Background)
		time.Sleep(60 * time.Second)
		demand := read(Demand)
		time.Sleep(30 * time.Second)
		cancel()
		total := bulk() + background() + demand()
		if want := 90 * 10_000; total > want || float64(total) < 0.9*float64(want) {
			t.Errorf("%d bytes in 90 s, want up to %d", total, want)
		}
		if n := demand(); n < 250_000 {
			t.Errorf("of 30 s demand got %d bytes of 300,000", n)
		}
	})
}
