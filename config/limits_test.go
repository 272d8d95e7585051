package config

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const metered = `
[limits]
rate = "1.5mbit"
daily = "500MB"
reserve = "50MB"
[limits.class]
background = "100MB"
[[limits.window]]
from = "22:00"
to = "06:00"
days = ["mon", "sun"]
[[limits.window]]
from = "12:00"
to = "24:00"
[cache]
limit = "50GB"
reserve = "512MiB"
[mirror]
refresh = false
[[mirror.rewrite]]
from = "registry.example/team"
to = "harbor.example:8443/proxy/team"
[registry."harbor.example:8443"]
mirrors = ["http://10.0.0.3:5000", "https://b.example/"]
username = "node"
password_file = "/etc/airstream/password"
`

func TestLimitsAreReadWithTheirUnits(t *testing.T) {
	got, err := load(t, metered, "AIRSTREAM_LIMITS_CLASS_PREFETCH=7MB", "AIRSTREAM_LIMITS_RATE=256kbit")
	if err != nil {
		t.Fatal(err)
	}
	want := Limits{
		Rate: 256_000, Daily: 500e6, Reserve: 50e6, Outside: "demand", Class: ClassLimits{Prefetch: 7e6, Background: 100e6},
		Window: []Window{
			{From: TimeOfDay(22 * time.Hour), To: TimeOfDay(6 * time.Hour), Days: []Weekday{1, 0}},
			{From: TimeOfDay(12 * time.Hour), To: TimeOfDay(24 * time.Hour)},
		},
	}
	if diff := cmp.Diff(want, got.Limits); diff != "" {
		t.Error(diff)
	}
	if got.Cache != (Cache{Limit: 50e9, Reserve: 512 << 20}) {
		t.Errorf("cache %+v", got.Cache)
	}
	if got, err := load(t, metered, "AIRSTREAM_LIMITS_DAILY=none", "AIRSTREAM_LIMITS_RESERVE=none"); err != nil || got.Limits.Daily != 0 {
		t.Errorf("none in the environment: %v, %v", got.Limits.Daily, err)
	}
}

func TestBadLimitsNameTheLine(t *testing.T) {
	for text, want := range map[string][]string{
		"[limits]\nrate = 256000\n":                             {"line 2: limits.rate: 256000 needs quotes and a unit"},
		"[limits]\nrate = \"256\"\n":                            {"line 2, column 8", "unit"},
		"[limits]\ndaily = \"0B\"\n":                            {"line 2", "for no limit say none"},
		"[limits]\n\nreserve = \"5MB\"\n":                       {"airstream.toml: line 3: limits.reserve: it is a part of limits.daily"},
		"[limits]\ndaily=\"5MB\"\nreserve = \"5MB\"\n":          {"line 3: limits.reserve: 5MB leaves nothing"},
		"[limits.class]\nbackdrop = \"5MB\"\n":                  {"line 2: unknown key limits.class.backdrop"},
		"[[limits.window]]\nfrom = \"22:00\"\nto = \"25:00\"\n": {"line 3", "25:00", "not a time of day"},
		"[[limits.window]]\nfrom = 22\nto = \"6:00\"\n":         {"line 3", "not a time of day"},
		"[[limits.window]]\nfrom = 22\nto = \"06:00\"\n":        {"line 2: limits.window[0].from: 22 needs quotes"},
		"[[limits.window]]\nfrom = \"06:00\"\nto = \"06:00\"\n": {"line 3: limits.window[0].to: a window from 06:00 to 06:00 is empty"},
		"[[limits.window]]\ndays = [\"monday\"]\n":              {"line 2", "monday", "sun, mon, tue"},
		"[[limits.window]]\nfrom=\"01:00\"\nto=\"02:00\"\n[[limits.window]]\nfrom=\"24:00\"\nto=\"02:00\"\n": {"line 5: limits.window[1].from"},
		"[mirror]\npatience = 10\n":                                                            {"line 2: mirror.patience: 10 needs quotes"},
		"[mirror]\ndefault = \"https://a\"\n":                                                  {"line 2: mirror.default"},
		"[[mirror.rewrite]]\nfrom = \"https://a/b\"\nto = \"c\"\n":                             {"line 2: mirror.rewrite[0].from"},
		"[[mirror.rewrite]]\nfrom = \"a/b\"\nto = \"c//d\"\n":                                  {"line 3: mirror.rewrite[0].to"},
		"[[mirror.rewrite]]\nfrom=\"a\"\nto=\"a\"\n":                                           {"it is where the images are already"},
		"[[mirror.rewrite]]\nfrom=\"a\"\nto=\"b\"\n[[mirror.rewrite]]\nfrom=\"a\"\nto=\"c\"\n": {"line 5: mirror.rewrite[1].from: \"a\" has a rule already"},
		"[registry.\"a\"]\nmirrors = [\"http://me:secret@b/\"]\n":                              {"line 2: registry.\"a\".mirrors", "without a password"},
		"[registry.\"https://a\"]\ninsecure = true\n":                                          {"line 1: registry.\"https://a\"", "like registry.example:5000"},
		"[registry.a.example]\ninsecure = true\n":                                              {"registry"},
		"[limits]\noutside = \"bulk\"\n":                                                       {"line 2: limits.outside: \"bulk\" is none of demand"},
		"limits = {rate = 5}\n":                                                                {"limits.rate: 5 needs quotes"},
	} {
		_, err := load(t, text)
		for _, w := range want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%q: got %v, want %q", text, err, w)
			}
		}
	}
}

func TestEnvironmentErrorsNameTheVariable(t *testing.T) {
	for variable, want := range map[string]string{
		"AIRSTREAM_LIMITS_RAET=1mbit":        "AIRSTREAM_LIMITS_RAET: there is no such setting",
		"AIRSTREAM_LIMITS_RATE=1":            "AIRSTREAM_LIMITS_RATE: \"1\" is not a rate",
		"AIRSTREAM_LIMITS_RESERVE=1MB":       "AIRSTREAM_LIMITS_RESERVE: limits.reserve",
		"AIRSTREAM_MIRROR_ADDRESS=0.0.0.0:1": "AIRSTREAM_MIRROR_ADDRESS: mirror.address",
		"AIRSTREAM_MIRROR_REFRESH=yes":       "AIRSTREAM_MIRROR_REFRESH: \"yes\" is neither",
	} {
		if _, err := load(t, "", variable); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", variable, err, want)
		}
	}
	if _, err := load(t, "", "AIRSTREAM_SOMETHING=1", "AIRSTREAM_OUTPUT=json"); err != nil {
		t.Errorf("variables that are for others: %v", err)
	}
}

func TestShownConfigurationIsTheConfiguration(t *testing.T) {
	for _, text := range []string{"", metered} {
		want, err := load(t, text, "AIRSTREAM_FETCH_BACKGROUND=false")
		if err != nil {
			t.Fatal(err)
		}
		s, err := Read(writeFile(t, text), []string{"AIRSTREAM_FETCH_BACKGROUND=false"})
		if err != nil {
			t.Fatal(err)
		}
		shown, err := s.TOML()
		if err != nil {
			t.Fatal(err)
		}
		got, err := load(t, shown)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%v\n%s\nof\n%s", err, diff, shown)
		}
		if !strings.Contains(shown, "# AIRSTREAM_FETCH_BACKGROUND\n") || !strings.Contains(shown, "# default\n") {
			t.Errorf("it does not say where settings come from:\n%s", shown)
		}
		if text != "" && !strings.Contains(shown, "# line 3\n") {
			t.Errorf("it does not name the line:\n%s", shown)
		}
		m, err := s.Map()
		if limits, ok := m["limits"].(map[string]any); err != nil || !ok || limits["rate"] != want.Limits.Rate.String() {
			t.Errorf("%v: %v", err, m)
		}
		if keys := Changed(&want, &got); len(keys) > 0 {
			t.Errorf("%v changed", keys)
		}
	}
}

func TestChangedNamesKeys(t *testing.T) {
	a, err := load(t, metered)
	if err != nil {
		t.Fatal(err)
	}
	b, err := load(t, strings.NewReplacer(`"50GB"`, `"60GB"`, `"24:00"`, `"23:00"`, "b.example", "c.example", "team\"", "crew\"").Replace(metered))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"cache.limit", "mirror.rewrite", "limits.window", "registry"}, Changed(&a, &b)); diff != "" {
		t.Error(diff)
	}
}
