package uplink

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// clocks are a machine's: the one on the wall may be set, the other runs.
type clocks struct {
	wall time.Time
	boot time.Duration
	id   string // of the boot
}

func (c *clocks) pass(d time.Duration) { c.wall, c.boot = c.wall.Add(d), c.boot+d }

// reboot takes off of which the boot clock knows nothing.
func (c *clocks) reboot(off time.Duration) {
	c.wall, c.boot, c.id = c.wall.Add(off), time.Minute, c.id+"'"
}

func noon() *clocks {
	return &clocks{wall: time.Date(2026, 11, 16, 12, 0, 0, 0, time.Local), boot: 100 * time.Hour, id: "boot"}
}

func (c *clocks) open(t *testing.T, path string) *Usage {
	t.Helper()
	u, err := openUsage(path, slog.New(slog.DiscardHandler), func() time.Time { return c.wall }, func() time.Duration { return c.boot }, c.id)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func used(u *Usage) (sum int64) {
	b, _ := u.today()
	for _, n := range b {
		sum += n
	}
	return sum
}

func closed(t *testing.T, u *Usage) {
	t.Helper()
	if err := u.Close(); err != nil {
		t.Error(err)
	}
}

func TestUsageSurvivesRestart(t *testing.T) {
	path, c := filepath.Join(t.TempDir(), "usage.json"), noon()
	u := c.open(t, path)
	u.add(Demand, 100)
	u.add(Background, 11)
	closed(t, u)
	c.pass(time.Hour)
	u = c.open(t, path)
	if b, _ := u.today(); b[Demand] != 100 || b[Background] != 11 {
		t.Errorf("after a restart %v", b)
	}
	closed(t, u)
	c.reboot(time.Hour)
	u = c.open(t, path)
	if used(u) != 111 {
		t.Errorf("after a reboot %d", used(u))
	}
	closed(t, u)
	c.reboot(20 * time.Hour)
	u = c.open(t, path)
	defer closed(t, u)
	if used(u) != 0 {
		t.Errorf("%d on the next day", used(u))
	}
	if left, err := filepath.Glob(path + ".*"); err != nil || len(left) > 0 {
		t.Errorf("temporary files stay: %v %v", left, err)
	}
}

func TestUsageIsRenewedAtMidnight(t *testing.T) {
	c := noon()
	u := c.open(t, filepath.Join(t.TempDir(), "usage.json"))
	defer closed(t, u)
	for range 3 {
		u.add(Demand, 100)
		_, renewed := u.today()
		if want := midnightAfter(c.wall); !renewed.Equal(want) {
			t.Errorf("renewed at %v, want %v", renewed, want)
		}
		c.pass(renewed.Sub(c.wall) - time.Second)
		if used(u) != 100 {
			t.Errorf("%d before midnight", used(u))
		}
		c.pass(time.Second)
		if used(u) != 0 {
			t.Errorf("%d after midnight", used(u))
		}
	}
}

func TestClockJumpsNeitherRenewNorBlock(t *testing.T) {
	const year = 365 * day
	for name, jump := range map[string]time.Duration{"forward": year, "back": -year, "to just before midnight": 11*time.Hour + 59*time.Minute} {
		for _, restart := range []bool{false, true} {
			c, path := noon(), filepath.Join(t.TempDir(), "usage.json")
			u := c.open(t, path)
			u.add(Demand, 100)
			if restart {
				closed(t, u)
			}
			c.wall = c.wall.Add(jump)
			if restart {
				u = c.open(t, path)
			}
			for range 4 { // and right over the next midnight
				if used(u) != 100 {
					t.Errorf("%s (restart %v): the jump renewed the budget", name, restart)
				}
				c.pass(time.Minute)
			}
			if _, renewed := u.today(); renewed.Sub(c.wall) > 36*time.Hour {
				t.Errorf("%s (restart %v): blocked until %v", name, restart, renewed)
			}
			for range 36 {
				c.pass(time.Hour)
				used(u)
			}
			if used(u) != 0 {
				t.Errorf("%s (restart %v): not renewed after 36 hours", name, restart)
			}
			closed(t, u)
		}
	}
}

// A clock without a battery comes up in 1970 until it is set.
func TestClockThatForgets(t *testing.T) {
	c, path := noon(), filepath.Join(t.TempDir(), "usage.json")
	u := c.open(t, path)
	u.add(Demand, 100)
	closed(t, u)
	right := c.wall
	c.reboot(0)
	c.wall = time.Unix(60, 0)
	u = c.open(t, path)
	defer closed(t, u)
	if used(u) != 100 {
		t.Error("1970 renewed the budget")
	}
	c.pass(time.Minute)
	c.wall = right.Add(time.Hour)
	if used(u) != 100 {
		t.Error("setting the clock renewed the budget")
	}
	c.pass(24 * time.Hour)
	if used(u) != 0 {
		t.Error("the next day is not another")
	}
}

// The process ends without a word: what was counted is there but for the last
// bytes.
func TestUsageIsWrittenWhileItGrows(t *testing.T) {
	c, path := noon(), filepath.Join(t.TempDir(), "usage.json")
	u := c.open(t, path)
	defer closed(t, u)
	u.add(Prefetch, 5<<20)
	deadline := time.Now().Add(10 * time.Second)
	for {
		f, err := readUsage(path)
		if err != nil {
			t.Fatal(err)
		}
		if f.Bytes["prefetch"] == 5<<20 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the file says %v", f.Bytes)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestDamagedUsageIsReplaced(t *testing.T) {
	c, path := noon(), filepath.Join(t.TempDir(), "usage.json")
	for _, text := range []string{"", "{", `{"version":2,"day":"2026-11-16"}`, `{"version":1,"day":"x"}`, strings.Repeat(" ", maxUsageSize+1)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		u := c.open(t, path)
		if used(u) != 0 {
			t.Errorf("%.20q: %d bytes", text, used(u))
		}
		closed(t, u)
		if _, err := readUsage(path); err != nil {
			t.Errorf("%.20q is still there: %v", text, err)
		}
	}
}

func FuzzUsage(f *testing.F) {
	f.Add([]byte(`{"version":1,"day":"2026-11-16","bytes":{"demand":5},"written":"2026-11-16T12:00:00Z","boot":"boot","clock_ns":5,"renewed_ns":-7}`))
	f.Add([]byte(`{"version":1,"day":"9999-12-31","bytes":{"demand":-5},"written":"2999-11-16T12:00:00Z","boot":"other","clock_ns":-9223372036854775808,"renewed_ns":9223372036854775807}`))
	f.Add([]byte(`{"version":1,"day":"0000-01-01","written":"0001-01-01T00:00:00Z"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "usage.json")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		c := noon()
		u := c.open(t, path)
		defer closed(t, u)
		if n := used(u); n < 0 {
			t.Errorf("%d bytes", n)
		}
		for range 80 { // whatever it says, it ends
			c.pass(time.Hour)
			used(u)
		}
		if n := used(u); n != 0 {
			t.Errorf("%d bytes of %q block for ever", n, b)
		}
	})
}
