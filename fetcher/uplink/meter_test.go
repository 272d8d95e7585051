package uplink

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func newMeter(words *bytes.Buffer) *Meter {
	return NewMeter(slog.New(slog.NewTextHandler(words, nil)))
}

func TestRateIsMeasuredWhileSomethingStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeter(&bytes.Buffer{})
		for range 20 { // a second of 25 kB/s, then a silence that says nothing
			st := m.Stream(Demand, nil)
			for range 10 {
				time.Sleep(100 * time.Millisecond)
				st.Arrived(2500)
			}
			st.End()
			time.Sleep(5 * time.Second)
		}
		if r := m.State().Rate; r < 24_000 || r > 26_000 {
			t.Errorf("rate %.0f B/s, want 25,000", r)
		}
	})
}

func TestTwoStreamsShareOneClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeter(&bytes.Buffer{})
		st1, st2 := m.Stream(Demand, nil), m.Stream(Demand, nil)
		for range 50 {
			time.Sleep(100 * time.Millisecond)
			st1.Arrived(1000)
			st2.Arrived(1000)
		}
		st1.End()
		st2.End()
		if r := m.State().Rate; r < 19_000 || r > 21_000 {
			t.Errorf("rate %.0f B/s, want 20,000", r)
		}
	})
}

func TestStallLimitFollowsTheLink(t *testing.T) {
	m := newMeter(&bytes.Buffer{})
	m.FirstByte(40 * time.Millisecond)
	if got := m.StallLimit(0); got != DefaultMinStall {
		t.Errorf("short link: %v, want %v", got, DefaultMinStall)
	}
	for range 50 {
		m.FirstByte(15 * time.Second)
	}
	if got := m.StallLimit(0); got < 50*time.Second || got > 61*time.Second {
		t.Errorf("HF link: %v, want 4 round trips of 15 s", got)
	}
	if more := m.StallLimit(1 << 20); more <= m.StallLimit(0) {
		t.Error("queued bytes don't count")
	}
}

func TestDarkAndUpAreSaidOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var words bytes.Buffer
		m := newMeter(&words)
		for range 5 {
			m.Failed(errors.New("no route"))
		}
		if s := m.State(); !s.Dark {
			t.Error("not dark")
		}
		time.Sleep(time.Hour)
		m.Alive()
		m.arrivedBytes(10)
		if s := m.State(); s.Dark || time.Since(s.Since) > time.Minute {
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
	m.Failed(errors.New("reset"))
	if m.State().Dark {
		t.Error("dark while something streams")
	}
	st.End()
}

func TestBandwidthDelayDoesNotCountTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeter(&bytes.Buffer{})
		st := m.Stream(Demand, nil)
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			st.Arrived(10_000)
		}
		st.End()
		m.FirstByte(600 * time.Millisecond)
		for range 10 {
			m.FirstByte(3 * time.Second) // behind a bulk transfer
		}
		if got := m.BandwidthDelay(); got < 58_000 || got > 62_000 {
			t.Errorf("%d bytes, want 600 ms at 100 kB/s", got)
		}
		if m.StallLimit(0) < 8*time.Second {
			t.Error("the stall limit must count it")
		}
	})
}
