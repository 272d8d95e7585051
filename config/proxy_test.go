package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The example says what is in force without a file.
func TestTheProxysExampleIsTheDefault(t *testing.T) {
	got, err := LoadProxy(filepath.Join("..", "deploy", "proxy.toml"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(DefaultProxy(), got); diff != "" {
		t.Errorf("deploy/proxy.toml differs from the default (-default +file):\n%s", diff)
	}
}

func TestAProxysMistakesNameTheirLine(t *testing.T) {
	for text, want := range map[string]string{
		"rot = \"/x\"":           "line 1: unknown key rot",
		"\n[cache]\nlimit = 20":  "line 3: cache.limit: 20 needs quotes and a unit",
		"root = \"here\"":        "line 1: root: \"here\" is not an absolute path",
		"listen = \"7075\"":      "line 1: listen: \"7075\" is not an address with a port",
		"[limits]\nsessions = 0": "line 2: limits.sessions: 0: a node needs one",
		"[registry.\"r.example\"]\nmirrors = [\"https://m.example\"]": "a proxy asks one address; set url",
		"[log]\nlevel = \"loud\"":                                     "line 2: log.level: \"loud\" is none of",
	} {
		name := filepath.Join(t.TempDir(), "proxy.toml")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadProxy(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if _, err := LoadProxy(filepath.Join(t.TempDir(), "none.toml")); err == nil {
		t.Error("a file that isn't there was read")
	}
}
