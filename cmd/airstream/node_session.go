package main

import (
	"errors"
	"net"
	"time"

	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/link"
)

// What the session shows of the link goes to the node's meter, as if requests had
// shown it; what the node's policy has goes to the proxy, which sees to it.

// traffic counts a connection to the proxy.
func (s *onShore) traffic(conn net.Conn) link.Traffic {
	m := s.n.meter.Session(conn)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.meter = m
	return m
}

// failed tells the meter of an attempt to reach the proxy. One that turns the node
// away is in reach.
func (s *onShore) failed(err error) {
	if _, ok := errors.AsType[*link.Refusal](err); ok {
		s.n.meter.Alive(s.cfg.Address)
		return
	}
	s.n.meter.Failed(s.cfg.Address, err)
}

// alive tells the link's meter that something came, of a class: what the session
// brought since the last time.
func (p *shorePull) alive(class fetcher.Class) {
	s := p.s
	s.n.meter.Alive(s.cfg.Address)
	state, _ := s.session.State()
	s.mu.Lock()
	n := max(0, state.Bytes-s.spent)
	s.spent += n
	m := s.meter
	s.mu.Unlock()
	if m != nil {
		m.Came(class, n)
	}
}

// counted notes that the meter knows of n bytes of the session.
func (s *onShore) counted(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spent += int64(n)
}

// begin tells the meter of something that comes on the session, beside pulls.
func (s *onShore) beginStream(class uplink.Class) *uplink.Stream {
	s.mu.Lock()
	m := s.meter
	s.mu.Unlock()
	if m == nil {
		return s.n.meter.Begin(class)
	}
	return m.Begin(class)
}

const (
	// budgetEvery is how often it is looked whether a budget is used up, while
	// there is one: at 10 Mbit/s that much more crosses than was allowed.
	budgetEvery = time.Second
	// termsEvery is how often it is looked whether a window has opened or closed, at
	// least: clocks on the wall are set.
	termsEvery = time.Minute
)

// keepTerms tells the proxy what the node's policy has, whenever that changes.
func (s *onShore) keepTerms() {
	for {
		changed := s.n.meter.Changed()
		p := s.n.meter.Policy()
		next := termsEvery
		if p.DailyBytes > 0 || p.ClassBytes != [uplink.NumClasses]int64{} {
			next = budgetEvery
		}
		var held []link.Lane
		for lane, class := range [link.NumLanes]fetcher.Class{link.Demand: fetcher.Demand, link.Hot: fetcher.Hot, link.Rest: fetcher.Prefetch} {
			ok, again, _ := s.n.meter.Admit(class)
			if !ok {
				held = append(held, link.Lane(lane)) //nolint:gosec // few
				next = min(next, max(time.Until(again), budgetEvery))
			}
		}
		if _, until := s.n.meter.Window(); !until.IsZero() {
			next = min(next, max(time.Until(until), budgetEvery/10))
		}
		s.session.Terms(p.Rate, held...)
		t := time.NewTimer(next)
		select {
		case <-t.C:
		case <-changed:
		case <-s.run.Done():
		}
		t.Stop()
		if s.run.Err() != nil {
			return
		}
	}
}
