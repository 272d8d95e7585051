package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/airstream-io/airstream/config"
	"github.com/airstream-io/airstream/fetcher/uplink"
)

// tuning is what can be changed while the node runs.
type tuning struct {
	mu     sync.Mutex
	file   config.Node   // guarded by mu; what the configuration says
	limits config.Limits // guarded by mu; what is in force
	level  slog.LevelVar
}

// start puts the configuration in force.
func (n *node) tune(cfg config.Node) {
	n.tuning.mu.Lock()
	defer n.tuning.mu.Unlock()
	n.tuning.file = cfg
	n.setLimits(cfg.Limits)
	n.store.SetLimit(int64(cfg.Cache.Limit), int64(cfg.Cache.Reserve))
}

// setLimits puts limits in force. n.tuning.mu is held.
func (n *node) setLimits(l config.Limits) {
	n.tuning.limits = l
	n.meter.SetPolicy(policy(&l))
}

// policy turns limits as they are configured into the meter's.
func policy(l *config.Limits) uplink.Policy {
	p := uplink.Policy{
		Rate: l.Rate.BytesPerSecond(), DailyBytes: int64(l.Daily), Reserve: int64(l.Reserve), Hard: l.Hard, Outside: classNamed(l.Outside),
	}
	for name, size := range classLimits(&l.Class) {
		p.ClassBytes[classNamed(name)] = int64(*size)
	}
	for _, w := range l.Window {
		u := uplink.Window{From: time.Duration(w.From), To: time.Duration(w.To)}
		for _, d := range w.Days {
			u.Days[d] = true
		}
		p.Windows = append(p.Windows, u)
	}
	return p
}

// classNamed returns the class of a name that the configuration has checked.
func classNamed(name string) uplink.Class {
	for c := range uplink.Class(uplink.NumClasses) {
		if c.String() == name {
			return c
		}
	}
	return uplink.Demand
}

// classLimits returns the limits of classes by their names.
func classLimits(c *config.ClassLimits) map[string]*config.Size {
	return map[string]*config.Size{"demand": &c.Demand, "hot": &c.Hot, "ahead": &c.Ahead, "prefetch": &c.Prefetch, "background": &c.Background}
}

func (n *node) getLimits(w http.ResponseWriter, r *http.Request) {
	n.tuning.mu.Lock()
	s := n.limitStatus()
	n.tuning.mu.Unlock()
	s.Link = n.linkStatus()
	n.answer(w, r, s, nil)
}

// limitStatus says what is in force. n.tuning.mu is held.
func (n *node) limitStatus() limitStatus {
	l := n.tuning.limits
	with := n.tuning.file
	with.Limits = l
	s := limitStatus{
		Rate: l.Rate, Daily: l.Daily, Reserve: l.Reserve, Hard: l.Hard, Outside: l.Outside,
		Class: map[string]config.Size{}, Windows: []limitWindow{}, Changed: len(config.Changed(&with, &n.tuning.file)) > 0,
	}
	for name, size := range classLimits(&l.Class) {
		if *size > 0 {
			s.Class[name] = *size
		}
	}
	for _, w := range l.Window {
		s.Windows = append(s.Windows, limitWindow(w))
	}
	return s
}

func (n *node) postLimits(w http.ResponseWriter, r *http.Request) {
	change, err := order[limitChange](r)
	if err == nil {
		err = n.changeLimits(r.Context(), change)
	}
	if err != nil {
		n.answer(w, r, nil, err)
		return
	}
	n.getLimits(w, r)
}

// changeLimits puts a change in force, all of it or nothing.
func (n *node) changeLimits(ctx context.Context, change limitChange) error {
	n.tuning.mu.Lock()
	defer n.tuning.mu.Unlock()
	l := n.tuning.limits
	if change.Reset {
		l = n.tuning.file.Limits
	}
	set(&l.Rate, change.Rate)
	set(&l.Daily, change.Daily)
	set(&l.Reserve, change.Reserve)
	set(&l.Hard, change.Hard)
	if change.Always {
		l.Window = nil
	}
	classes := classLimits(&l.Class)
	for _, name := range slices.Sorted(maps.Keys(change.Class)) {
		to, ok := classes[name]
		if !ok {
			return exitWith(exitUsage, fmt.Errorf("class %q is none of %s", name, strings.Join(slices.Sorted(maps.Keys(classes)), ", ")))
		}
		*to = change.Class[name]
	}
	if l.Daily == 0 && change.Reserve == nil {
		l.Reserve = 0 // it was a part of what is not limited any more
	}
	if err := l.Validate(); err != nil {
		return exitWith(exitUsage, err)
	}
	n.setLimits(l)
	n.log.InfoContext(ctx, "limits changed until the next restart", slog.String("rate", l.Rate.String()), slog.String("daily", l.Daily.String()))
	return nil
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

func (n *node) postReload(w http.ResponseWriter, r *http.Request) {
	done, err := n.reload(r.Context())
	n.answer(w, r, done, err)
}

// reload reads the configuration again and puts in force what can be while the
// node runs. If the configuration is wrong, nothing changes.
func (n *node) reload(ctx context.Context) (reloaded, error) {
	cfg, err := config.Load(n.configFile, os.Environ())
	if err != nil {
		return reloaded{}, exitWith(exitUsage, err)
	}
	n.tuning.mu.Lock()
	defer n.tuning.mu.Unlock()
	done := reloaded{Applied: []string{}, Restart: []string{}}
	for _, key := range config.Changed(&n.tuning.file, &cfg) {
		section, _, _ := strings.Cut(key, ".")
		if section == "limits" || section == "cache" || key == "log.level" {
			done.Applied = append(done.Applied, key)
		} else {
			done.Restart = append(done.Restart, key)
		}
	}
	// What needs a restart stays as it was, so that the next reload says so
	// again.
	n.tuning.file.Limits, n.tuning.file.Cache, n.tuning.file.Log.Level = cfg.Limits, cfg.Cache, cfg.Log.Level
	n.setLimits(cfg.Limits)
	n.store.SetLimit(int64(cfg.Cache.Limit), int64(cfg.Cache.Reserve))
	err = n.tuning.level.UnmarshalText([]byte(cfg.Log.Level))
	n.log.InfoContext(ctx, "configuration read again", slog.Any("applied", done.Applied), slog.Any("needsRestart", done.Restart))
	return done, err
}
