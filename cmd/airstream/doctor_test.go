package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/airstream-io/airstream/config"
)

// host lays files out below a directory and returns a patient whose containerd
// is configured by etc/config.toml.
func host(t *testing.T, files map[string]string) *patient {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(strings.ReplaceAll(text, "DIR", dir)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p := &patient{cfg: config.Default(), containerd: []string{filepath.Join(dir, "etc/none.toml"), filepath.Join(dir, "etc/config.toml")}}
	p.cfg.Snapshotter.Address = "/run/airstream/snapshotter.sock"
	p.cfg.Root = dir
	return p
}

func verdicts(p *patient) []string {
	var all []string
	for _, f := range p.findings {
		all = append(all, f.Verdict+" "+f.Name)
	}
	return all
}

func TestDoctorKnowsTheShippedConfiguration(t *testing.T) {
	toml, err := os.ReadFile("../../deploy/containerd.toml")
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := os.ReadFile("../../deploy/hosts.toml")
	if err != nil {
		t.Fatal(err)
	}
	p := host(t, map[string]string{
		"etc/config.toml":               strings.ReplaceAll(string(toml), "/etc/containerd/certs.d", "DIR/certs.d"),
		"certs.d/_default/hosts.toml":   string(hosts),
		"certs.d/other:5000/notes.text": "",
	})
	p.containerdConfig()
	if diff := cmp.Diff([]string{"ok containerd", "ok containerd", "ok containerd", "ok hosts.toml"}, verdicts(p)); diff != "" {
		t.Errorf("%s\n%+v", diff, p.findings)
	}
}

func TestDoctorSaysWhatContainerdLacks(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  []string
		says  string
	}{
		"nothing there": {nil, []string{"fail containerd"}, "deploy/containerd.toml"},
		"a stock one": {
			map[string]string{"etc/config.toml": "version = 3\n"},
			[]string{"fail containerd", "warn containerd", "fail hosts.toml"},
			"no proxy_plugins",
		},
		"a comment is no setting": {
			map[string]string{"etc/config.toml": "#[proxy_plugins.air]\n# address = \"/run/airstream/snapshotter.sock\"\n"},
			[]string{"fail containerd", "warn containerd", "fail hosts.toml"},
			"no proxy_plugins",
		},
		"imported, not the default": {
			map[string]string{
				"etc/config.toml":                     "imports = [\n \"conf.d/*.toml\",\n]\nimage_pull_progress_timeout = \"0s\"\nconfig_path = \"DIR/certs.d\"\n",
				"etc/conf.d/a.toml":                   "[proxy_plugins]\n[proxy_plugins.\"other\"]\naddress=\"/x\"\n[proxy_plugins.air]\ntype = \"snapshot\"\naddress = \"/run/airstream/snapshotter.sock\"\n",
				"certs.d/registry.example/hosts.toml": "server = \"https://registry.example\"\n",
			},
			[]string{"ok containerd", "warn containerd", "ok containerd", "fail hosts.toml", "warn hosts.toml"},
			"images of registry.example go around",
		},
		"imports itself": {
			map[string]string{"etc/config.toml": "imports = [\"config.toml\"]\n"},
			[]string{"fail containerd", "warn containerd", "fail hosts.toml"},
			"no config_path",
		},
	} {
		p := host(t, c.files)
		p.containerdConfig()
		var said strings.Builder
		if err := printFindings(&said, p.findings); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.want, verdicts(p)); diff != "" || !strings.Contains(said.String(), c.says) {
			t.Errorf("%s: %s\n%s", name, diff, &said)
		}
	}
}

func TestDoctorFailsAFullDiskAndWarnsOfAClockThatWentBack(t *testing.T) {
	p := host(t, map[string]string{"catalog.db": ""})
	p.cfg.Cache.Reserve = 1 << 60
	p.disk()
	p.clock()
	p.cfg.Cache.Reserve = 0
	p.cfg.Root = filepath.Join(p.cfg.Root, "not/there/yet")
	p.disk()
	want := []string{"fail disk", "ok clock", "ok disk"}
	if got := verdicts(p); got[2] == "warn disk" {
		want[2] = "warn disk" // this machine has little left
	} else if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s\n%+v", diff, p.findings)
	}
}
