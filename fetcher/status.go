package fetcher

import (
	"cmp"
	"slices"
	"time"

	"github.com/airstream-io/airstream/fetcher/uplink"
)

// QueueStatus is what the scheduler does at one moment.
type QueueStatus struct {
	Waiting     int                       // reads and look-ups that wait now
	Oldest      time.Duration             // how long the first of them has waited
	Active      [uplink.NumClasses]int    // requests under way
	Queued      [uplink.NumClasses]int64  // bytes of layers, compressed, that are wanted and not here; of Ahead 0
	Held        [uplink.NumClasses]string // why requests of the class may not begin now, for people; empty: they may
	PausedHosts []PausedHost              // registries that failed and are tried again later, by name
	Full        bool                      // the disk took nothing more when it was tried last
}

// PausedHost is a registry host that does not answer.
type PausedHost struct {
	Host  string
	Until time.Time // it is left alone until then; one that has passed: it is being tried
	Err   string    // what it failed with last
}

// Queue tells what the scheduler does now. It is cheap.
func (f *Fetcher) Queue() QueueStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	s := QueueStatus{Waiting: len(f.queue.waits), Full: f.fullUntil.After(now)}
	for c := range s.Held {
		_, _, s.Held[c] = f.meter.Admit(Class(c))
	}
	for w := range f.queue.waits {
		s.Oldest = max(s.Oldest, now.Sub(w.since))
	}
	for _, h := range f.hosts {
		for t := range h.tickets {
			s.Active[t.class]++
		}
		if h.err != nil {
			s.PausedHosts = append(s.PausedHosts, PausedHost{h.name, h.pause.until, h.err.Error()})
		}
	}
	slices.SortFunc(s.PausedHosts, func(a, b PausedHost) int { return cmp.Compare(a.Host, b.Host) })
	for _, fl := range f.queue.waiting {
		s.Queued[Demand] += memberSize(fl.origins[0].l.tree, fl.origins[0].member())
	}
	for _, h := range f.queue.hot {
		if h.first < h.end {
			s.Queued[Hot] += h.l.tree.Member(h.end-1).End - h.l.tree.Member(h.first).Offset
		}
	}
	for _, w := range f.queue.walks {
		s.Queued[w.class] += w.l.census.wire
	}
	return s
}
