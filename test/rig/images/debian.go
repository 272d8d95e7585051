package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// buildUpper runs step i of the recipe in dir; what it changes is in dir/upper
// afterwards.
func (b *Builder) buildUpper(ctx context.Context, r *recipe, i int, dir string) error {
	s := &r.steps[i]
	if s.program != "" {
		return installProgram(ctx, dir, s.program)
	}
	d, err := b.debian(ctx)
	if err != nil {
		return err
	}
	if s.base {
		return d.bootstrap(ctx, dir)
	}
	st := &stage{dir: dir}
	for below := i - 1; below >= 0; below-- {
		st.lowers = append(st.lowers, filepath.Join(b.Dir, "steps", r.stepDir(below), "upper"))
	}
	if len(s.packages) > 0 {
		if err := d.install(ctx, st, s.packages, s.released); err != nil {
			return err
		}
	}
	if s.npm != "" {
		if err := npmInstall(ctx, st, s.npm); err != nil {
			return err
		}
	}
	if s.files != "" {
		if err := copyFiles(ctx, st, s.files); err != nil {
			return err
		}
	}
	if s.script != "" {
		return st.chroot(ctx, s.script, nil)
	}
	return nil
}

// debian is the machine's way to Debian: its mirror, its apt, a folder for what
// apt downloads.
type debian struct {
	dir     string
	mirror  string   // where the suite itself comes from
	sources []string // lines of a sources.list
}

// debian finds out where the machine gets Debian from. The machine may have
// another release, other package sources, and settings for proxies: of these
// only the addresses of Debian's own archives and the settings of transport are
// taken over.
func (b *Builder) debian(ctx context.Context) (*debian, error) {
	d := &debian{dir: filepath.Join(b.Dir, "debian")}
	for _, sub := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(d.dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	if err := d.readSources(ctx); err != nil {
		return nil, err
	}
	if d.mirror == "" {
		// Origins are written in the archives' Release files, which a machine
		// that was just made hasn't fetched yet.
		if err := contain(ctx, exec.CommandContext(ctx, "apt-get", "-q", "update"), 0); err != nil {
			return nil, fmt.Errorf("apt-get update: %w", err)
		}
		if err := d.readSources(ctx); err != nil {
			return nil, err
		}
	}
	if d.mirror == "" {
		return nil, errors.New("apt knows no Debian archive: is this Debian?")
	}
	return d, d.configure(ctx)
}

// readSources finds the addresses of Debian's archives in apt's sources,
// however these are written.
func (d *debian) readSources(ctx context.Context) error {
	out, err := output(ctx, "apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages")
	if err != nil {
		return fmt.Errorf("read apt's sources: %w", err)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(out) {
		parts := strings.Split(strings.TrimSpace(line), "|")
		if len(parts) != 3 || parts[0] != "Debian" || seen[parts[2]] {
			continue
		}
		seen[parts[2]] = true
		const key = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
		switch parts[1] {
		case "Debian":
			if d.mirror == "" {
				d.mirror = parts[2]
				d.sources = append(d.sources,
					fmt.Sprintf("deb %s %s %s main", key, parts[2], suite),
					fmt.Sprintf("deb %s %s %s-updates main", key, parts[2], suite))
			}
		case "Debian-Security":
			d.sources = append(d.sources, fmt.Sprintf("deb %s %s %s-security main", key, parts[2], suite))
		}
	}
	return nil
}

// Lists of sources: all of them, and the suite alone.
const (
	sourcesList  = "sources.list"
	releasedList = "released.list"
)

// configure writes apt's configuration for the builds: the machine's settings
// of transport, and nothing else of it, as hooks of the machine must not run
// for us.
func (d *debian) configure(ctx context.Context) error {
	dump, err := output(ctx, "apt-config", "dump")
	if err != nil {
		return fmt.Errorf("read apt's configuration: %w", err)
	}
	var conf bytes.Buffer
	for line := range strings.Lines(dump) {
		if strings.HasPrefix(line, "Acquire::") && !strings.HasPrefix(line, "Acquire::IndexTargets") {
			conf.WriteString(line)
		}
	}
	fmt.Fprintf(&conf, `Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::sourcelist "%[1]s/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "%[1]s/lists";
Dir::Cache::archives "%[1]s/archives";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
`, d.dir)
	if err := os.WriteFile(filepath.Join(d.dir, "apt.conf"), conf.Bytes(), 0o644); err != nil {
		return err
	}
	for name, lines := range map[string][]string{sourcesList: d.sources, releasedList: d.sources[:1]} {
		if err := os.WriteFile(filepath.Join(d.dir, name), []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// baseScript makes the base as slim as base images are: no documentation but
// licences, now and for packages to come; no services started by packages; no
// address of a mirror; nothing that differs from machine to machine.
const baseScript = `
cat > /etc/dpkg/dpkg.cfg.d/slim <<-END
	path-exclude=/usr/share/doc/*
	path-include=/usr/share/doc/*/copyright
	path-exclude=/usr/share/man/*
	path-exclude=/usr/share/info/*
	path-exclude=/usr/share/locale/*
	path-exclude=/usr/share/lintian/*
END
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
find /usr/share/doc -mindepth 1 ! -type d ! -name copyright -delete
find /usr/share/doc -mindepth 1 -type d -empty -delete
rm -rf /usr/share/man/* /usr/share/info/* /usr/share/locale/* /usr/share/lintian/*
rm -rf /var/cache/apt/* /var/lib/apt/lists/* /var/cache/ldconfig/* /var/lib/dpkg/*-old /var/cache/debconf/*-old
find /var/log -type f -delete
mkdir -p /var/cache/apt/archives/partial /var/lib/apt/lists/partial /var/log/apt
: > /etc/apt/sources.list
: > /etc/machine-id
rm -f /etc/resolv.conf /etc/hostname
`

// bootstrap makes the base layer in dir/upper.
func (d *debian) bootstrap(ctx context.Context, dir string) error {
	upper := filepath.Join(dir, "upper")
	cmd := exec.CommandContext(ctx, "debootstrap", "--variant=minbase", suite, upper, d.mirror)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
	// debootstrap doesn't read apt's settings; a proxy is the one it can't do
	// without.
	if proxy, err := output(ctx, "apt-config", "shell", "x", "Acquire::http::Proxy"); err == nil {
		if _, value, ok := strings.Cut(strings.TrimSpace(proxy), "="); ok {
			cmd.Env = append(cmd.Env, "http_proxy="+strings.Trim(value, "'"))
		}
	}
	if err := contain(ctx, cmd, 0); err != nil {
		return fmt.Errorf("debootstrap: %w", err)
	}
	slim := exec.CommandContext(ctx, "chroot", upper, "/bin/sh", "-ec", baseScript)
	slim.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"}
	if err := contain(ctx, slim, 0); err != nil {
		return fmt.Errorf("slim the base: %w", err)
	}
	return nil
}

// install downloads packages with the machine's apt, and installs them with the
// image's own.
// Those that were released come without what was published since.
func (d *debian) install(ctx context.Context, st *stage, packages []string, released bool) error {
	list := sourcesList
	if released {
		list = releasedList
	}
	status, err := dpkgStatus(st)
	if err != nil {
		return err
	}
	from := []string{"-o", "Dir::State::status=" + status, "-o", "Dir::Etc::sourcelist=" + filepath.Join(d.dir, list)}
	download := slices.Concat(from, []string{"install", "-y", "--download-only"}, packages)
	// Packages that the lists name may be gone from the mirror: fetch the lists
	// again, but only then.
	if err := d.apt(ctx, download); err != nil {
		// All of them, whichever are used: apt deletes the others' lists.
		if err := d.apt(ctx, []string{"-o", "Dir::State::status=" + status, "update"}); err != nil {
			return err
		}
		if err := d.apt(ctx, download); err != nil {
			return err
		}
	}
	script := fmt.Sprintf(`
		apt-get -q -o APT::Install-Recommends=false -o APT::Sandbox::User=root -o Dpkg::Options::=--force-unsafe-io \
			-o Dir::Etc::sourcelist=/run/rig/sources.list -o Dir::State::lists=/run/rig/lists -o Dir::Cache::archives=/run/rig/archives \
			-o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Keep-Downloaded-Packages=true \
			install -y --no-download %s
		find /var/log -type f -delete
		rm -rf /var/cache/ldconfig/* /var/lib/dpkg/*-old /var/cache/debconf/*-old /var/lib/systemd
		`, strings.Join(packages, " "))
	return st.chroot(ctx, script, map[string]string{
		"sources.list": filepath.Join(d.dir, list),
		"lists":        filepath.Join(d.dir, "lists"),
		"archives":     filepath.Join(d.dir, "archives"),
	})
}

// apt runs the machine's apt-get with the configuration of the builds.
func (d *debian) apt(ctx context.Context, args []string) error {
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-q"}, args...)...)
	cmd.Env = append(os.Environ(), "APT_CONFIG="+filepath.Join(d.dir, "apt.conf"), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
	if err := contain(ctx, cmd, 0); err != nil {
		return fmt.Errorf("apt-get %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// dpkgStatus returns the list of what is installed in the stage's layers: a
// file in the topmost one that changed it.
func dpkgStatus(st *stage) (string, error) {
	for _, dir := range st.lowers {
		path := filepath.Join(dir, "var/lib/dpkg/status")
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", errors.New("no layer has a dpkg status")
}

// npmInstall installs the packages of a lock file with the machine's npm, and
// moves them to /srv/app. Install scripts don't run: they would be the only
// code of the packages that runs on the machine itself.
func npmInstall(ctx context.Context, st *stage, app string) error {
	dir := filepath.Join(st.dir, "npm")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // what stays is not part of the layer
	for _, name := range []string{"package.json", "package-lock.json"} {
		raw, err := apps.ReadFile("apps/" + app + "/" + name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o644); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, "npm", "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
	cmd.Dir = dir
	if err := contain(ctx, cmd, 0); err != nil {
		return fmt.Errorf("npm ci: %w", err)
	}
	return st.chroot(ctx, "mkdir -p /srv/app; cp -a --no-preserve=ownership /run/rig/app/. /srv/app/", map[string]string{"app": dir})
}

// copyFiles copies a folder of apps over /. What npm was given is there
// already.
func copyFiles(ctx context.Context, st *stage, app string) error {
	dir := filepath.Join(st.dir, "files")
	defer os.RemoveAll(dir) //nolint:errcheck // what stays is not part of the layer
	top := "apps/" + app
	err := fs.WalkDir(apps, top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(dir, strings.TrimPrefix(path, top))
		switch {
		case d.IsDir():
			return os.MkdirAll(to, 0o755)
		case filepath.Dir(path) == top:
			return nil
		}
		raw, err := apps.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(to, raw, 0o644)
	})
	if err != nil {
		return err
	}
	return st.chroot(ctx, "cp -rT /run/rig/files /", map[string]string{"files": dir})
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	return string(out), err
}
