// Package tools gets the programs that the rig runs: containerd and its
// companions, a registry, runc, debootstrap, npm. They are real programs of
// other projects, so none of them belongs in go.mod; this package keeps one
// table that says which version of what, and can put it there on a bare Debian
// machine that has only Go.
//
// Two kinds of programs are in the table. Those with a Go package are built by
// "go install" at the pinned version, without cgo, into Dir, which is
// $XDG_CACHE_HOME/airstream/bin (~/.cache/airstream/bin). The stamp that makes
// the second time instant is inside the binary itself: Go writes module, version
// and build settings there, so a stale or foreign binary can't pass for the
// pinned one. Those with a Debian package come from apt, in whatever version
// the distribution has, and are left alone where the machine has them already.
//
// Besides programs the rig needs things of the machine: root, /dev/fuse,
// /dev/net/tun, overlayfs, network namespaces. Check names both kinds of gaps,
// a line for each; Need turns them into one skip line of a test.
package tools

import (
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// ErrUnknown reports a name that is neither a program of the table nor a
// feature of the machine.
var ErrUnknown = errors.New("unknown tool")

// Program is a row of the table. Exactly one of Module and Debian is set.
type Program struct {
	Name    string // what the file is called
	Module  string // Go module that has the package, without version
	Package string // path of the main package below Module
	Version string // pinned version of Module
	Debian  string // Debian package, any version
	Only    bool   // wanted only by name: not part of what every rig needs
}

// programs is the table: the one place where a version is written.
var programs = []Program{
	{Name: "containerd", Module: "github.com/containerd/containerd/v2", Package: "cmd/containerd", Version: "v2.4.2"},
	{Name: "ctr", Module: "github.com/containerd/containerd/v2", Package: "cmd/ctr", Version: "v2.4.2"},
	{Name: "containerd-shim-runc-v2", Module: "github.com/containerd/containerd/v2", Package: "cmd/containerd-shim-runc-v2", Version: "v2.4.2"},
	{Name: "registry", Module: "github.com/distribution/distribution/v3", Package: "cmd/registry", Version: "v3.1.2"},
	{Name: "golangci-lint", Module: "github.com/golangci/golangci-lint/v2", Package: "cmd/golangci-lint", Version: "v2.15.0", Only: true},

	{Name: "runc", Debian: "runc"},
	{Name: "ip", Debian: "iproute2"},
	{Name: "nsenter", Debian: "util-linux"},
	{Name: "mount", Debian: "mount"},
	{Name: "debootstrap", Debian: "debootstrap"},
	{Name: "npm", Debian: "npm"}, // 400 small packages in Debian 12: only where there is no npm at all
}

// Programs returns a copy of the table.
func Programs() []Program { return slices.Clone(programs) }

// CacheDir returns the path of a folder below Airstream's cache folder, which
// it does not create: the rig's binaries, images and registry contents live
// there between runs.
func CacheDir(elem ...string) (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("tools: find cache folder: %w", err)
	}
	return filepath.Join(append([]string{base, "airstream"}, elem...)...), nil
}

// Dir returns the folder that holds the programs built by "go install".
func Dir() (string, error) { return CacheDir("bin") }

// Path returns the absolute path of a program of the table that is installed
// in the right version. The error of one that isn't is a Missing.
func Path(name string) (string, error) {
	i := slices.IndexFunc(programs, func(p Program) bool { return p.Name == name })
	if i < 0 {
		return "", fmt.Errorf("tools: %w: %q", ErrUnknown, name)
	}
	return programs[i].path()
}

func (p Program) path() (string, error) {
	if p.Module == "" {
		return p.lookup()
	}
	dir, err := Dir()
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, p.Name)
	return file, p.verify(file)
}

// lookup searches PATH, and the system folders that the PATH of a user who
// isn't root leaves out.
func (p Program) lookup() (string, error) {
	if file, err := exec.LookPath(p.Name); err == nil {
		return filepath.Abs(file)
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/bin", "/bin"} {
		file := filepath.Join(dir, p.Name)
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return file, nil
		}
	}
	return "", Missing{Name: p.Name, Problem: "not installed", Remedy: "apt-get install " + p.Debian}
}

// verify reads what the Go linker wrote into file and compares it with the
// table.
func (p Program) verify(file string) error {
	missing := Missing{Name: p.Name, Remedy: "go run ./test/cmd/rigtools install " + p.Name}
	info, err := buildinfo.ReadFile(file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		missing.Problem = "not installed"
		return missing
	case err != nil:
		missing.Problem = "not a Go program: " + err.Error()
		return missing
	}
	if info.Path != p.Module+"/"+p.Package {
		missing.Problem = "built from " + info.Path
		return missing
	}
	// Build metadata after a plus sign says how it was built, not what from.
	if version, _, _ := strings.Cut(info.Main.Version, "+"); version != p.Version {
		missing.Problem = fmt.Sprintf("is %s, wanted %s", info.Main.Version, p.Version)
		return missing
	}
	for _, s := range info.Settings {
		if s.Key == "CGO_ENABLED" && s.Value != "0" {
			missing.Problem = "built with cgo"
			return missing
		}
	}
	return nil
}
