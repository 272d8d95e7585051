package link

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	geo, _ := ProfileNamed("geo-vsat")
	limited := geo
	limited.Down, limited.Outages = 1*Mbit, []Outage{{For: 30 * time.Second, Every: 10 * time.Minute, After: 9*time.Minute + 30*time.Second}}
	for text, want := range map[string]Profile{
		"geo-vsat":          geo,
		"geo-vsat-lossless": geo.Lossless(),
		"geo-vsat,down=1mbit,outage=none,outage=30s/10m": limited,
		"rtt=600ms,down=2mbit,up=512kbit,loss=1%/3,queue=64KiB,mtu=1400": {
			RTT: 600 * time.Millisecond, Down: 2 * Mbit, Up: 512 * Kbit, Loss: Loss{0.01, 3}, Queue: 65536, MTU: 1400,
		},
		"rtt=8s-20s, down=2.4kbit, up=none, loss=0.05, outage=20s@5s": {
			RTT: 8 * time.Second, RTTMax: 20 * time.Second, Down: 2400, Loss: Loss{Mean: 0.05},
			Outages: []Outage{{For: 20 * time.Second, After: 5 * time.Second}}, MTU: 1500,
		},
		"direct": Direct(),
	} {
		got, err := Parse(text)
		if err != nil {
			t.Error(err)
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q: %s", text, diff)
		}
	}
}

func TestParseNamesWhatIsWrong(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "geo-vsat", // lists what there is
		"geovsat":                   "geo-vsat",
		"mtu=1500,geo-vsat":         "geo-vsat",
		"speed=3":                   "unknown setting",
		"rtt=600":                   "rtt",
		"rtt=2s-1s":                 "rtt",
		"rtt=-1s":                   "rtt",
		"down=2":                    "down",
		"down=2Mb":                  "down",
		"down=0bit":                 "down",
		"down=-1kbit":               "down",
		"down=1e300gbit":            "down",
		"up=NaNbit":                 "up",
		"loss=100%":                 "loss",
		"loss=-1%":                  "loss",
		"loss=NaN":                  "loss",
		"loss=90%/1":                "loss",
		"loss=1%/0.5":               "loss",
		"loss=1%/many":              "loss",
		"outage=30s":                "",
		"outage=11m/10m":            "outage",
		"outage=-1s/10m":            "outage",
		"outage=1s/0s":              "outage",
		"outage=often":              "outage",
		"queue=64":                  "queue",
		"queue=100B":                "queue",
		"queue=2048MiB":             "queue",
		"queue=9223372036854775MiB": "queue",
		"mtu=67":                    "mtu",
		"mtu=70000":                 "mtu",
		"mtu=big":                   "mtu",
	} {
		_, err := Parse(text)
		if want == "" {
			if err != nil {
				t.Errorf("%q: %v", text, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v does not say %q", text, err, want)
		}
	}
}

func TestProfilesAreValidAndSurviveText(t *testing.T) {
	seen := make(map[string]bool)
	for _, p := range append(Profiles(), Direct()) {
		for _, p := range []Profile{p, p.Lossless()} {
			if seen[p.Name] || p.Name == "" {
				t.Errorf("name %q is taken", p.Name)
			}
			seen[p.Name] = true
			if err := p.Validate(); err != nil {
				t.Errorf("%s: %v", p.Name, err)
			}
			text, err := json.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			var got Profile
			if err := json.Unmarshal(text, &got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(p, got); diff != "" {
				t.Errorf("%s: %s", text, diff)
			}
			if named, ok := ProfileNamed(p.Name); !ok || !cmp.Equal(named, p) {
				t.Errorf("%s is not found by its name", p.Name)
			}
		}
	}
	if len(seen) != 20 {
		t.Errorf("%d profiles", len(seen))
	}
}

func FuzzParse(f *testing.F) {
	for _, p := range Profiles() {
		f.Add(p.Name)
		f.Add(p.String())
		f.Add(p.Lossless().String())
	}
	f.Add("rtt=600ms,down=2mbit,up=512kbit,loss=1%/3,queue=64KiB,mtu=1400")
	f.Add("geo-vsat,outage=none,outage=30s/10m@1m,outage=5s@1h,name=mine")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(p.String())
		if err != nil {
			t.Fatalf("%q parses, its String %q does not: %v", text, p, err)
		}
		if diff := cmp.Diff(p, again); diff != "" {
			t.Errorf("%q: %s", text, diff)
		}
		// Whatever parses must run.
		b := newBench(p, p.Down, 1)
		for i := range 50 {
			b.send(p.MTU, byte(i))
			b.until(b.now + time.Duration(i)*time.Second)
		}
		b.conserved(t)
	})
}
