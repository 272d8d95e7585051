package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/units"
)

func (n *node) getStatus(w http.ResponseWriter, r *http.Request) {
	images, err := n.images(r)
	s := nodeStatus{
		Version: version(), PID: os.Getpid(), Started: n.started, Now: time.Now(), Keeper: n.keeper(), Memory: resident(),
		Health: n.health(r.Context()), Link: n.linkStatus(), Proxy: n.shore.status(), Queue: n.queueStatus(), Images: images,
	}
	if err == nil {
		s.Cache, err = n.cacheStatus()
	}
	n.answer(w, r, s, err)
}

func (n *node) getHealth(w http.ResponseWriter, r *http.Request) {
	h := n.health(r.Context())
	if !h.Healthy {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	n.answer(w, r, h, nil)
}

// health looks whether the node does its work. A dark link is no illness.
func (n *node) health(ctx context.Context) health {
	h := health{Dark: n.meter.State().Dark, Problems: []string{}}
	problem := func(what string, err error) {
		if err != nil {
			what += ": " + err.Error()
		}
		h.Problems = append(h.Problems, what)
	}
	if n.tree != nil {
		select {
		case <-n.tree.Done():
			problem("the file system of lazy layers is gone; restart the daemon", nil)
		default:
		}
	}
	if n.sn != nil {
		if _, err := n.sn.Dirs(ctx); err != nil {
			problem("snapshots can't be read", err)
		}
	}
	if _, err := n.catalog.Pinned(); err != nil {
		problem("the catalog can't be read", err)
	}
	switch u, err := n.store.Usage(); {
	case err != nil:
		problem("the store can't be measured", err)
	case u.Free < u.Reserve/2:
		problem(fmt.Sprintf("the disk is full: %s free, %s are kept back; airstream gc --all frees what is not pinned", units.Short(u.Free), units.Short(u.Reserve)), nil)
	}
	h.Healthy = len(h.Problems) == 0
	return h
}

func (n *node) linkStatus() linkStatus {
	s, p := n.meter.State(), n.meter.Policy()
	l := linkStatus{
		Phase: string(s.Phase), Since: s.Since, Loss: s.Loss,
		Bytes: s.Bytes, ByClass: byClass(s.ByClass), Today: byClass(s.Today), Daily: p.DailyBytes, BudgetLeft: max(-1, s.BudgetLeft), Limit: float64(p.Rate),
	}
	if s.Known.Rate {
		l.Rate, l.Peak = s.Rate, s.Peak
	}
	if s.Known.Min {
		l.RTT, l.MinRTT = s.MinRTT.Seconds(), s.MinRTT.Seconds()
	}
	if s.Known.RTT {
		l.RTT = s.RTT.Seconds()
	}
	if !s.NextWindow.IsZero() {
		l.NextWindow = &s.NextWindow
	}
	return l
}

// byClass names what is counted for each class, and leaves out what is zero.
func byClass[T comparable](counts [uplink.NumClasses]T) map[string]T {
	var zero T
	named := map[string]T{}
	for c, v := range counts {
		if v != zero {
			named[uplink.Class(c).String()] = v
		}
	}
	return named
}

func (n *node) queueStatus() queueStatus {
	q := n.fetcher.Queue()
	s := queueStatus{
		Waiting: q.Waiting, Oldest: q.Oldest.Seconds(), Active: byClass(q.Active), Queued: byClass(q.Queued), Held: byClass(q.Held), Paused: []pausedHost{}, Full: q.Full,
	}
	for _, p := range q.PausedHosts {
		s.Paused = append(s.Paused, pausedHost{Host: p.Host, Until: p.Until, Error: p.Err})
	}
	return s
}

func (n *node) cacheStatus() (cacheStatus, error) {
	u, err := n.store.Usage()
	return cacheStatus{Bytes: u.Bytes, Limit: u.Limit, Free: u.Free, Reserve: u.Reserve}, err
}

// resident returns the memory of this process that is in RAM, in bytes; 0 if
// the kernel doesn't tell.
func resident() int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b))
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}

// unpacked returns the chain IDs of plain layers that containerd has unpacked,
// as far as that can be told.
func (n *node) unpacked(ctx context.Context) map[string]bool {
	if n.sn == nil {
		return nil
	}
	chains, err := n.sn.Unpacked(ctx)
	if err != nil {
		n.log.WarnContext(ctx, "snapshots can't be read", slog.Any("error", err))
	}
	return chains
}

// keeper says who keeps the file systems of containers over a restart of this
// process, in a word or two; "" is nobody.
func (n *node) keeper() string {
	switch {
	case !n.kept:
		return ""
	case os.Getenv("INVOCATION_ID") != "":
		return "systemd"
	}
	return "airstream supervise"
}
