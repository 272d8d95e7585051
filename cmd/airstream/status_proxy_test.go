package main

import (
	"strings"
	"testing"
	"time"
)

func TestStatusTellsOfTheProxy(t *testing.T) {
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		p    *proxyStatus
		want string
	}{
		{nil, ""},
		{&proxyStatus{Address: "proxy.example:7075", Node: "vessel-1", Up: true, Since: now.Add(-time.Hour)}, "proxy.example:7075 for 1h00m, as vessel-1"},
		{&proxyStatus{Address: "proxy.example:7075", Since: now.Add(-time.Minute), Error: "connection refused", Instead: true}, "proxy.example:7075 out of reach for 1m00s, connection refused\nregistries are asked in its place"},
	} {
		if got := strings.Join(c.p.lines(now), "\n"); got != c.want {
			t.Errorf("got  %q\nwant %q", got, c.want)
		}
	}
}
