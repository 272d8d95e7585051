package fetcher

import (
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/internal/catalog"
)

// Registries fail one by one, and with the link all at once. What fails is
// remembered in two places: by host, for what would befall any request to it,
// and by source of one thing, for what is said of that alone. A host that has
// failed is tried again by one request at a time, after pauses that grow; the
// rest of the node doesn't notice.

// kind says what a request is for; each has its own limit at one host, so that
// none waits for its turn behind another.
type kind uint8

const (
	forChunks kind = iota
	forTable
	forBlob
)

// How many requests may be under way at one host: for waiting readers, for
// tables, and for whole blobs. Eight connections keep a satellite link full at
// 1% of loss (facts: links); the others are guesses.
const (
	maxDemands = 8
	maxTables  = 4
	maxBlobs   = 8
)

// host is a registry as requests to it have shown it. Guarded by Fetcher.mu.
type host struct {
	name    string
	pause   backoff
	err     error // what it failed with; nil: it answers
	dark    bool  // it failed while the link was dark
	tickets map[*ticket]struct{}
	heard   atomic.Int64 // when bytes came from it last, as in ticket

	complained time.Time // when it was last said that it doesn't give what it should
}

// ticket is leave for one request.
type ticket struct {
	f     *Fetcher
	host  *host
	src   catalog.Source
	kind  kind
	class Class
	began time.Time
	heard atomic.Int64 // when bytes came last, in nanoseconds since the fetcher began; 0: none did

	// guarded by Fetcher.mu
	answered bool // the answer has begun
	idle     bool // it waits for a blob that has a ticket of its own
}

// origins are where a thing can be had, and how asking there went. Guarded by
// Fetcher.mu.
type origins struct {
	cover   cover            // who brings it in place of sources
	sources []catalog.Source // the best first
	trouble map[catalog.Source]*trouble
}

// trouble is what came of asking one source for one thing.
type trouble struct {
	pause    backoff
	since    time.Time // of the first failure in a row
	refusals int       // in a row, with nothing of use between
	err      error
}

func (f *Fetcher) host(name string) *host {
	h := f.hosts[name]
	if h == nil {
		h = &host{name: name, pause: backoff{max: f.opts.MaxPause}, tickets: map[*ticket]struct{}{}}
		f.hosts[name] = h
	}
	return h
}

// retry is when to look again at what something else is to end. A guess: the
// end itself is told, so this is for what is left.
const retry = 2 * time.Second

// room tells whether a request may be made at a host now; if not, when to look
// again, which is zero if that is when one ends. f.mu is held.
func (h *host) room(k kind, class Class, now time.Time) (ok bool, at time.Time) {
	if h.pause.until.After(now) {
		return false, h.pause.until
	}
	n, limit := 0, maxDemands
	switch k {
	case forChunks:
	case forTable:
		limit = maxTables
	case forBlob:
		limit = maxBlobs
	}
	for t := range h.tickets {
		if h.err != nil && !t.answered && t.class <= class {
			return false, now.Add(retry) // it is being tried; whatever comes of that is told
		}
		if t.kind == k && (k != forChunks || t.class == Demand) {
			n++
		}
	}
	return n < limit || k == forChunks && class != Demand, at
}

// pick returns where a thing is to be asked for now, or nil and when to look
// again. f.mu is held.
func (f *Fetcher) pick(o *origins, k kind, class Class, r *round) (*host, catalog.Source) {
	for _, src := range o.sources {
		if t := o.trouble[src]; t != nil && t.pause.until.After(r.now) {
			r.later(t.pause.until)
			continue
		}
		h := f.host(src.Host)
		ok, at := h.room(k, class, r.now)
		if ok {
			return h, src
		}
		if at.IsZero() {
			return nil, src // it has enough to do; the next one is for when it fails
		}
		r.later(at)
	}
	return nil, catalog.Source{}
}

// issue makes a ticket. f.mu is held.
func (f *Fetcher) issue(h *host, src catalog.Source, k kind, class Class) *ticket {
	t := &ticket{f: f, host: h, src: src, kind: k, class: class, began: time.Now()}
	h.tickets[t] = struct{}{}
	return t
}

// discard takes a ticket back that was not used. f.mu is held.
func (t *ticket) discard() { delete(t.host.tickets, t) }

// silent tells whether a host has said nothing for longer than a healthy one
// takes, with something to say: what is under way there doesn't count against
// any limit. f.mu is held.
func (f *Fetcher) silent(h *host, now time.Time) bool {
	if len(h.tickets) == 0 {
		return h.err != nil
	}
	heard, oldest := h.heard.Load(), now
	for t := range h.tickets {
		if t.began.Before(oldest) {
			oldest = t.began
		}
	}
	limit := f.patience()
	return now.Sub(oldest) >= limit && now.Sub(f.at(heard)) >= limit
}

// patience is how long a request may say nothing before it is left out of
// account. It is far below what ends it. A guess.
func (f *Fetcher) patience() time.Duration {
	return max(2*time.Second, 2*f.meter.State().RTT)
}

// last returns when the other side was heard last, or the request was made.
func (t *ticket) last() time.Time {
	if n := t.heard.Load(); n > 0 {
		return t.f.at(n)
	}
	return t.began
}

// at returns when hear noted n.
func (f *Fetcher) at(n int64) time.Time { return f.began.Add(time.Duration(n)) }

// hear notes that bytes came.
func (t *ticket) hear() {
	n := int64(time.Since(t.f.began))
	t.heard.Store(n)
	t.host.heard.Store(n)
}

// answer notes that the other side answered with what was asked for: the host
// is well, and whoever waited for that goes on.
func (t *ticket) answer() {
	t.hear()
	f := t.f
	f.mu.Lock()
	defer f.mu.Unlock()
	t.answered = true
	f.wellAgain(t.host)
}

// wellAgain ends a host's pause, and tries the others that failed while the
// link was dark. f.mu is held.
func (f *Fetcher) wellAgain(h *host) {
	if h.err == nil {
		return
	}
	h.pause.succeeded()
	h.err, h.dark = nil, false
	now := time.Now()
	for _, o := range f.hosts {
		if o.dark && o.pause.until.After(now) {
			o.pause.until, o.dark = now, false
		}
	}
	f.dispatch()
}

// giveBack ends a ticket with what came of it: err, and whether anything of
// use arrived. f.mu is held.
func (f *Fetcher) giveBack(t *ticket, o *origins, err error, progress bool) {
	delete(t.host.tickets, t)
	if f.run.Err() != nil {
		return
	}
	now := time.Now()
	if err == nil || progress {
		delete(o.trouble, t.src)
	}
	switch blameFor(err, t.answered) {
	case nothing, theNode:
	case theHost:
		t.host.pause.failed(now, registry.RetryAfter(err))
		t.host.err, t.host.dark = err, f.meter.State().Dark
	case theThing:
		f.troubled(t, o, err, progress, now)
	}
}

// troubled notes that a source did not give a thing as it should. f.mu is held.
func (f *Fetcher) troubled(t *ticket, o *origins, err error, progress bool, now time.Time) {
	tr := o.trouble[t.src]
	if tr == nil {
		tr = &trouble{pause: backoff{max: f.opts.MaxPause}, since: now}
		if o.trouble == nil {
			o.trouble = map[catalog.Source]*trouble{}
		}
		o.trouble[t.src] = tr
	}
	tr.err = err
	if isRefusal(err) && !progress {
		tr.refusals++
		if now.Sub(t.host.complained) > time.Minute || t.host.complained.IsZero() {
			t.host.complained = now
			f.log.Warn("a source does not give what it should; trying again", slog.String("repo", t.src.Host+"/"+t.src.Repo), slog.Any("error", err))
		}
		if i := slices.Index(o.sources, t.src); i >= 0 { // the others first, next time
			o.sources = append(slices.Delete(slices.Clone(o.sources), i, i+1), t.src)
		}
	}
	tr.pause.failed(now, registry.RetryAfter(err))
}

// maxRefusals is how often a source may refuse a thing before whoever can do
// without is told. Registries do refuse for a moment what they have.
const maxRefusals = 3

// hopeless returns an error if every source has refused a thing for so long
// that it is more than a moment. f.mu is held.
func (f *Fetcher) hopeless(o *origins, patience time.Duration) error {
	var err error
	for _, src := range o.sources {
		t := o.trouble[src]
		if t == nil || t.refusals < maxRefusals || time.Since(t.since) < patience {
			return nil
		}
		err = t.err
	}
	return err
}
