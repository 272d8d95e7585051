package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/airstream-io/airstream/config"
	"github.com/airstream-io/airstream/fetcher/uplink"
)

func TestLimitsBecomeThePolicy(t *testing.T) {
	l := config.Limits{
		Rate: 256_000, Daily: 500e6, Reserve: 50e6, Hard: true, Outside: "hot",
		Class:  config.ClassLimits{Demand: 1, Hot: 2, Ahead: 3, Prefetch: 4, Background: 5},
		Window: []config.Window{{From: config.TimeOfDay(22 * time.Hour), To: config.TimeOfDay(6 * time.Hour), Days: []config.Weekday{0, 6}}, {To: config.TimeOfDay(time.Hour)}},
	}
	want := uplink.Policy{
		Rate: 32_000, DailyBytes: 500e6, Reserve: 50e6, Hard: true, Outside: uplink.Hot,
		ClassBytes: [uplink.NumClasses]int64{1, 2, 3, 4, 5},
		Windows:    []uplink.Window{{From: 22 * time.Hour, To: 6 * time.Hour, Days: [7]bool{0: true, 6: true}}, {To: time.Hour}},
	}
	got := policy(&l)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
	// Every class has a limit of its own by its name.
	for c := range uplink.Class(uplink.NumClasses) {
		if classLimits(&l.Class)[c.String()] == nil || classNamed(c.String()) != c {
			t.Errorf("class %v has no limit in the configuration", c)
		}
	}
	if diff := cmp.Diff(uplink.Policy{}, policy(&config.Limits{Outside: "demand"})); diff != "" {
		t.Errorf("no limits are a policy: %s", diff)
	}
}

func TestLimitsForPeople(t *testing.T) {
	now := time.Date(2026, 11, 21, 21, 0, 0, 0, time.Local)
	opens := now.Add(time.Hour)
	var b bytes.Buffer
	err := printLimits(&b, &limitStatus{
		Rate: 256_000, Daily: 500e6, Reserve: 50e6, Outside: "demand", Changed: true,
		Class:   map[string]config.Size{"prefetch": 5e6, "background": 20e6},
		Windows: []limitWindow{{From: config.TimeOfDay(22 * time.Hour), To: config.TimeOfDay(6 * time.Hour), Days: []config.Weekday{1, 2}}},
		Link:    linkStatus{BudgetLeft: 123e6, Today: map[string]int64{"background": 7e6}, NextWindow: &opens},
	}, now)
	const want = `rate              256kbit
daily             500MB, 123 MB left today
reserve           50MB
hard              no
class background  20MB, 7 MB used today
class prefetch    5MB, 0 B used today
window            22:00 to 06:00 mon tue
                  it opens in 1h00m; outside of it: demand
                  changed until the next restart; airstream limit --reset takes it back
`
	if diff := cmp.Diff(want, b.String()); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}
