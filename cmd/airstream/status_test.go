package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// busyNode is a node in the middle of its work.
func busyNode() *nodeStatus {
	now := time.Date(2026, 11, 21, 21, 0, 0, 0, time.Local)
	window := now.Add(time.Hour)
	return &nodeStatus{
		Version: "v0.3.0 0123456789abcdef0123", Started: now.Add(-76 * time.Hour), Now: now, Keeper: "systemd", Memory: 61e6, Health: health{Healthy: true},
		Link: linkStatus{
			Phase: "up", Since: now.Add(-3*time.Hour - 12*time.Minute), Rate: 230_000, RTT: 0.612, Loss: 0.012, Limit: 256_000,
			Daily: 500e6, BudgetLeft: 357e6, Today: map[string]int64{"demand": 43e6, "background": 100e6}, NextWindow: &window,
		},
		Queue: queueStatus{
			Waiting: 2, Oldest: 1.3, Active: map[string]int{"demand": 2, "hot": 3}, Queued: map[string]int64{"hot": 12.3e6, "background": 340e6},
			Held:   map[string]string{"hot": "no contact window is open", "background": "no contact window is open", "prefetch": "the budget of 5 MB a day for this class is used up until midnight, local time"},
			Paused: []pausedHost{{Host: "registry.example", Until: now.Add(12 * time.Second), Error: "503 Service Unavailable"}},
		},
		Cache: cacheStatus{Bytes: 3.2e9, Limit: 50e9, Free: 120e9, Reserve: 256e6},
		Images: []imageStatus{
			{Names: []string{"registry.example/crew/app:1.0"}, Size: 75.7e6, Lazy: 5, Layers: 5, Tables: 5, Total: 240e6, Missing: 139e6, HotTotal: 30e6, Dark: "hot"},
			{Names: []string{"registry.example/crew/db:16.4", "registry.example/crew/db:16"}, Size: 151e6, Lazy: 7, Layers: 7, Tables: 7, Total: 400e6, Complete: true, Pinned: true, Dark: "yes"},
			{Names: []string{"a-registry-with-a-long-name.example:5000/a/long/way/to/the/image:2026-11-21-rc1"}, Size: 12e6, Lazy: 3, Layers: 3, Tables: 2, Dark: "no", Why: "1 table missing"},
			{Manifest: "sha256:" + strings.Repeat("7", 64), Size: 250e6, Layers: 4, Plain: 2, Dark: "no", Why: "2 layers to pull"},
		},
	}
}

func TestStatusInEightyColumns(t *testing.T) {
	dark := busyNode()
	dark.Link = linkStatus{Phase: "dark", Since: dark.Now.Add(-60 * 24 * time.Hour), Today: map[string]int64{}}
	dark.Queue = queueStatus{Waiting: 1, Oldest: 100}
	dark.Keeper, dark.Images = "", nil
	dark.Health.Problems = []string{"the disk is full"}
	for name, s := range map[string]*nodeStatus{"busy": busyNode(), "dark": dark} {
		var b bytes.Buffer
		if err := printStatus(&b, s, statusWidth); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(b.String()) {
			if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > statusWidth {
				t.Errorf("%s: %d columns: %s", name, n, line)
			}
		}
		want, err := os.ReadFile(filepath.Join("testdata", "status", name+".txt"))
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(string(want), b.String()); diff != "" {
			t.Errorf("%s: %s\ngot:\n%s", name, diff, &b)
		}
	}
}

func TestDarknessSaysWhatLacks(t *testing.T) {
	for want, s := range map[string]imageStatus{
		"yes":                  {Complete: true},
		"hot":                  {Lazy: 2, Tables: 2, Total: 100, Missing: 50, HotTotal: 20},
		"no: hot set 25%":      {Lazy: 2, Tables: 2, Total: 100, Missing: 50, HotTotal: 20, HotMissing: 15},
		"no: 50 B missing":     {Lazy: 2, Tables: 2, Total: 100, Missing: 50},
		"no: 2 tables missing": {Lazy: 3, Tables: 1, Total: 100, Missing: 0, HotTotal: 20},
		"no: 1 layer to pull":  {Lazy: 3, Tables: 3, Total: 100, HotTotal: 20, Plain: 1},
		"no: 999 kB missing":   {Lazy: 1, Tables: 1, Total: 1e9, Missing: 999_000},
		"no: 1 table missing":  {Lazy: 1},
		"no: hot set 99%":      {Lazy: 1, Tables: 1, Total: 1e9, Missing: 1, HotTotal: 1e9, HotMissing: 1},
	} {
		if s.Dark, s.Why = s.darkness(nil); s.dark() != want {
			t.Errorf("got %q, want %q", s.dark(), want)
		}
	}
}
