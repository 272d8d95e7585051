package config

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// validate checks what types can't. lines are those of the file's keys.
func (s *Settings) validate(lines map[string]int) error {
	var errs []error
	check := func(ok bool, key, format string, args ...any) {
		if ok {
			return
		}
		where := key
		if line, inFile := lines[key]; inFile && !strings.HasPrefix(s.from[key], "AIRSTREAM_") {
			where = fmt.Sprintf("%s: line %d: %s", s.File, line, key)
		} else if name := s.from[key]; name != "" {
			where = name + ": " + key
		}
		errs = append(errs, fmt.Errorf("%s: "+format, append([]any{where}, args...)...))
	}
	n := &s.Node
	for key, path := range map[string]string{"root": n.Root, "state": n.State, "snapshotter.address": n.Snapshotter.Address} {
		check(filepath.IsAbs(path), key, "%q is not an absolute path", path)
	}
	check(slices.Contains([]string{"debug", "info", "warn", "error"}, n.Log.Level), "log.level", "%q is none of debug, info, warn, error", n.Log.Level)
	check(slices.Contains([]string{"text", "json"}, n.Log.Format), "log.format", "%q is neither text nor json", n.Log.Format)
	check(n.Fetch.IdleAfter >= 0, "fetch.idle_after", "%v is negative", time.Duration(n.Fetch.IdleAfter))
	check(n.Bundle.KeysFile == "" || filepath.IsAbs(n.Bundle.KeysFile), "bundle.keys_file", "%q is not an absolute path", n.Bundle.KeysFile)
	n.Mirror.validate(check)
	host, _, err := net.SplitHostPort(n.Proxy.Address)
	check(n.Proxy.Address == "" || err == nil && host != "", "proxy.address", "%q is not HOST:PORT", n.Proxy.Address)
	check(n.Proxy.Patience >= 0, "proxy.patience", "%v is negative", time.Duration(n.Proxy.Patience))
	n.Limits.validate(check)
	for _, host := range slices.Sorted(maps.Keys(n.Registry)) {
		r := n.Registry[host]
		r.validate(join("registry", host), host, check)
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// checker notes that a key's value is wrong unless ok.
type checker func(ok bool, key, format string, args ...any)

func (m *Mirror) validate(check checker) {
	host, _, err := net.SplitHostPort(m.Address)
	ip := net.ParseIP(host)
	check(err == nil && (host == "localhost" || ip != nil && ip.IsLoopback()), "mirror.address", "%q is not a loopback address with a port, and the mirror serves whoever reaches it", m.Address)
	check(m.Patience >= 0, "mirror.patience", "%v is negative", time.Duration(m.Patience))
	check(m.Default == "" || isHost(m.Default), "mirror.default", "%q is not a registry's host as image references have it", m.Default)
	seen := map[string]bool{}
	for i, r := range m.Rewrite {
		key := fmt.Sprintf("mirror.rewrite[%d]", i)
		check(isPlace(r.From), key+".from", "%q is not HOST or HOST/PATH, without https://", r.From)
		check(isPlace(r.To), key+".to", "%q is not HOST or HOST/PATH, without https://", r.To)
		check(r.From != r.To, key+".to", "it is where the images are already")
		check(!seen[r.From], key+".from", "%q has a rule already", r.From)
		seen[r.From] = true
	}
}

// Validate checks limits that come from elsewhere than a file.
func (l *Limits) Validate() error {
	var errs []error
	l.validate(func(ok bool, key, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("%s: "+format, append([]any{key}, args...)...))
		}
	})
	return errors.Join(errs...)
}

func (l *Limits) validate(check checker) {
	check(l.Reserve == 0 || l.Daily > 0, "limits.reserve", "it is a part of limits.daily, which is not set")
	check(l.Reserve == 0 || l.Daily == 0 || l.Reserve < l.Daily, "limits.reserve", "%v leaves nothing of limits.daily, %v, for what nobody waits for; use windows or fetch.background for that", l.Reserve, l.Daily)
	check(slices.Contains([]string{"demand", "hot", "ahead", "prefetch", "background"}, l.Outside), "limits.outside", "%q is none of demand, hot, ahead, prefetch, background", l.Outside)
	for i, w := range l.Window {
		key := fmt.Sprintf("limits.window[%d]", i)
		check(w.From != w.To, key+".to", "a window from %v to %v is empty; for the whole day say 00:00 to 24:00", w.From, w.To)
		check(time.Duration(w.From) < 24*time.Hour, key+".from", "a window can't begin at 24:00")
	}
}

func (r *Registry) validate(key, host string, check checker) {
	check(isHost(host), key, "%q is not a registry's host as image references have it, like registry.example:5000", host)
	check(r.URL == "" || isURL(r.URL), key+".url", "%q is not an http or https URL without a password", r.URL)
	for _, u := range r.Mirrors {
		check(isURL(u), key+".mirrors", "%q is not an http or https URL without a password", u)
	}
	check((r.Username == "") == (r.PasswordFile == ""), key, "username and password_file go together")
}

func isURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Host != "" && u.User == nil && (u.Scheme == "http" || u.Scheme == "https")
}

// isHost tells whether s can stand before the first slash of an image
// reference.
func isHost(s string) bool {
	u, err := url.Parse("https://" + s)
	return err == nil && u.Host == s && u.Hostname() != "" && !strings.HasSuffix(s, ":")
}

// isPlace tells whether s is a host, or a host and a path.
func isPlace(s string) bool {
	host, path, deep := strings.Cut(s, "/")
	return isHost(host) && (!deep || !slices.Contains(strings.Split(path, "/"), ""))
}
