package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func load(t *testing.T, text string, environ ...string) (Node, error) {
	t.Helper()
	return Load(writeFile(t, text), environ)
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "airstream.toml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestAnEmptyFileIsTheDefault(t *testing.T) {
	got, err := load(t, "")
	want := Default()
	want.Snapshotter.Address = "/run/airstream/snapshotter.sock"
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}

func TestFileThenEnvironment(t *testing.T) {
	got, err := load(t, `
root = "/data/airstream"
[mirror]
address = "127.0.0.1:6000"
patience = "3s"
[fetch]
background = false
[registry."registry.example:5000"]
url = "http://10.0.0.2:5000"
`, "AIRSTREAM_MIRROR_PATIENCE=90s", "AIRSTREAM_STATE=/run/other", "UNRELATED=1")
	want := Default()
	want.Root, want.State = "/data/airstream", "/run/other"
	want.Snapshotter.Address = "/run/other/snapshotter.sock"
	want.Mirror.Address, want.Mirror.Patience = "127.0.0.1:6000", Duration(90*time.Second)
	want.Fetch.Background = false
	want.Registry = map[string]Registry{"registry.example:5000": {URL: "http://10.0.0.2:5000"}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}

func TestErrorsNameTheThing(t *testing.T) {
	for text, want := range map[string]string{
		"root = \"/a\"\nrooot = \"/b\"\n":              "line 2: unknown key rooot",
		"[mirror]\n\npatient = \"x\"\n":                "line 3: unknown key mirror.patient",
		"root = \n":                                    "line 1, column",
		"[mirror]\npatience = \"soon\"\n":              "soon",
		"root = \"a\"":                                 `root: "a" is not an absolute path`,
		"[mirror]\naddress = \"0.0.0.0:80\"":           "not a loopback address",
		"[log]\nlevel = \"loud\"":                      "log.level",
		"[registry.\"a\"]\nurl = \"ftp://b\"":          `registry."a".url`,
		"[registry.\"a\"]\nusername = \"b\"":           "password_file go together",
		"[snapshotter]\naddress = \"relative.sock\"\n": "snapshotter.address",
	} {
		if _, err := load(t, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
	if _, err := load(t, "", "AIRSTREAM_FETCH_BACKGROUND=perhaps"); err == nil || !strings.Contains(err.Error(), "AIRSTREAM_FETCH_BACKGROUND") {
		t.Errorf("environment: %v", err)
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none.toml"), nil); err == nil {
		t.Error("a named file that is missing was no error")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("root = \"/a\"\n[mirror]\npatience = \"3s\"\n"))
	f.Add([]byte("[registry.\"a\"]\nurl = 3\n"))
	f.Add([]byte("[limits]\nrate = \"256kbit\"\n[[limits.window]]\nfrom = \"22:00\"\nto = \"06:00\"\ndays = [\"sat\"]\n"))
	f.Add([]byte("limits = {rate = 1, window = [{from = 2}]}\nmirror.rewrite = 3\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := Settings{Node: Default(), from: map[string]string{}}
		lines, err := s.decode(b)
		if err == nil {
			err = s.validate(lines)
		}
		if err != nil && err.Error() == "" {
			t.Error("an error without words")
		}
	})
}

// What is shipped as an example is valid, and says nothing but the defaults.
func TestExampleIsTheDefault(t *testing.T) {
	b, err := os.ReadFile("../deploy/airstream.toml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := load(t, string(b))
	want := Default()
	want.Snapshotter.Address = "/run/airstream/snapshotter.sock"
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	var uncommented strings.Builder
	for line := range strings.Lines(string(b)) {
		if text, ok := strings.CutPrefix(line, "# "); ok && (strings.Contains(text, " = ") || strings.HasPrefix(text, "[")) {
			line = text
		}
		uncommented.WriteString(line)
	}
	full, err := Read(writeFile(t, uncommented.String()), nil)
	if err != nil {
		t.Fatalf("with every line in force: %v", err)
	}
	// Every key there is stands in it.
	for _, l := range full.leaves() {
		if full.from[l.key] == "" && l.key != "root" {
			t.Errorf("deploy/airstream.toml does not say %s", l.key)
		}
	}
	for name, v := range map[string]any{"mirror.rewrite": full.Mirror.Rewrite[0], "limits.window": full.Limits.Window[0], "registry": full.Registry["registry.example:5000"]} {
		for i := range reflect.TypeOf(v).NumField() {
			key := tomlName(reflect.TypeOf(v).Field(i))
			if f := reflect.ValueOf(v).Field(i); f.IsZero() && f.Kind() != reflect.Bool {
				t.Errorf("deploy/airstream.toml does not say %s of %s", key, name)
			}
		}
	}
}
