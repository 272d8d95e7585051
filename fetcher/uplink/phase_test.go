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

var errNoRoute = errors.New("no route")

func TestDarkAndUpAreSaidOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var words bytes.Buffer
		m := newMeter(&words)
		for range 5 {
			m.Failed("shore", errNoRoute)
		}
		if s := m.State(); !s.Dark || s.Phase != Dark {
			t.Error("not dark")
		}
		time.Sleep(time.Hour)
		m.Alive("shore")
		m.Stream(Demand, nil).End()
		if s := m.State(); s.Dark || s.Phase != Up || time.Since(s.Since) > time.Minute {
			t.Errorf("still dark: %+v", s)
		}
		if n := strings.Count(words.String(), "\n"); n != 2 || !strings.Contains(words.String(), "1h0m0s") {
			t.Errorf("%d lines, want one down and one up that says how long:\n%s", n, &words)
		}
	})
}

func TestOneFailureAmongStreamsIsNoDarkLink(t *testing.T) {
	m := newMeter(&bytes.Buffer{})
	st := m.Stream(Demand, nil)
	m.Failed("shore", errors.New("reset"))
	if m.State().Dark {
		t.Error("dark while something streams")
	}
	st.End()
}

// A registry that is down makes no dark link while another one answers, and
// says nothing once none does.
func TestOneHostsTroubleIsNotTheLinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var words bytes.Buffer
		m := newMeter(&words)
		for range 20 {
			m.Failed("dead", errNoRoute)
			time.Sleep(15 * time.Second)
			m.Alive("well")
			time.Sleep(15 * time.Second)
		}
		if m.State().Dark {
			t.Error("dark, though a host answers")
		}
		if n := strings.Count(words.String(), "\n"); n > 2 {
			t.Errorf("%d lines of one host's trouble:\n%s", n, &words)
		}
		m.Failed("dead", errNoRoute)
		m.Failed("well", errNoRoute)
		if !m.State().Dark {
			t.Error("up, though no host answers any more")
		}
	})
}

// A host's old answers are no evidence for ever.
func TestAnAlibiEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeter(&bytes.Buffer{})
		m.Failed("a", errNoRoute)
		m.Alive("b")
		time.Sleep(time.Minute)
		if m.Failed("a", errNoRoute); m.State().Dark {
			t.Error("dark, though b answered a minute ago")
		}
		time.Sleep(time.Hour)
		if m.Failed("a", errNoRoute); !m.State().Dark {
			t.Error("up, though nothing answered for an hour")
		}
	})
}

func TestFlappingIsSaidSparingly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var words bytes.Buffer
		m := newMeter(&words)
		for range 500 {
			time.Sleep(5 * time.Second)
			m.Failed("shore", errNoRoute)
			time.Sleep(5 * time.Second)
			m.Alive("shore")
		}
		if n := strings.Count(words.String(), "\n"); n < 4 || n > 60 {
			t.Errorf("%d lines in 80 minutes of 1000 changes", n)
		}
		if !strings.Contains(words.String(), "changes_not_logged") {
			t.Error("what was left out is not said")
		}
	})
}

func TestWaitUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeter(&bytes.Buffer{})
		if err := m.WaitUp(t.Context()); err != nil {
			t.Errorf("up: %v", err)
		}
		m.Failed("shore", errNoRoute)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := m.WaitUp(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dark: %v", err)
		}
		up := make(chan error)
		go func() { up <- m.WaitUp(t.Context()) }()
		time.Sleep(time.Hour)
		select {
		case err := <-up:
			t.Fatalf("dark, and told that it is up: %v", err)
		default:
		}
		m.Alive("shore")
		if err := <-up; err != nil {
			t.Error(err)
		}
	})
}

func TestSlowIsFarBelowTheBest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var words bytes.Buffer
		m := newMeter(&words)
		m.FirstByte(600 * time.Millisecond)
		stream := func(rate int, d time.Duration) {
			st := m.Stream(Prefetch, nil)
			defer st.End()
			for range d / (100 * time.Millisecond) {
				time.Sleep(100 * time.Millisecond)
				st.Arrived(rate / 10)
			}
		}
		phase := func(want Phase) {
			t.Helper()
			if s := m.State(); s.Phase != want {
				t.Errorf("%s at %.0f B/s, want %s", s.Phase, s.Rate, want)
			}
		}
		stream(200_000, time.Minute)
		phase(Up)
		stream(15_000, 8*time.Second)
		phase(Up) // a moment is no phase
		stream(15_000, time.Minute)
		phase(Slow)
		stream(30_000, time.Minute) // better, and not well
		phase(Slow)
		stream(100_000, time.Minute)
		phase(Up)
		if n := strings.Count(words.String(), "\n"); n != 2 {
			t.Errorf("%d lines:\n%s", n, &words)
		}
		for range 70 { // what it was an hour ago is not lately
			stream(15_000, time.Minute)
		}
		phase(Up)
		m.Failed("shore", errNoRoute)
		phase(Up) // something came just now
		time.Sleep(time.Minute)
		m.Failed("shore", errNoRoute)
		phase(Dark)
		m.Alive("shore")
		phase(Up)
	})
}
