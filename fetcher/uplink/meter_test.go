package uplink

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"
)

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

func TestGuessesAreNotKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeter(&bytes.Buffer{})
		if s := m.State(); s.Known != (Known{}) || s.Rate == 0 || s.RTT == 0 {
			t.Errorf("nothing was measured yet: %+v", s)
		}
		m.FirstByte(50 * time.Millisecond)
		if s := m.State(); s.Known != (Known{RTT: true, Min: true}) {
			t.Errorf("after an answer: %+v", s.Known)
		}
		st := m.Stream(Demand, nil)
		for range 20 {
			time.Sleep(100 * time.Millisecond)
			st.Arrived(2500)
		}
		st.End()
		if s := m.State(); !s.Known.Rate {
			t.Errorf("after two seconds of bytes: %+v", s.Known)
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
