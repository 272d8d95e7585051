package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/internal/units"
)

// mirrorWait is how long the mirror may take to answer on loopback.
const mirrorWait = 5 * time.Second

// mirror asks the registry endpoint whether it is there.
func (p *patient) mirror(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, mirrorWait)
	defer cancel()
	url := "http://" + p.cfg.Mirror.Address + "/v2/"
	status := 0
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err == nil {
		var resp *http.Response
		// No proxy of the environment: it is on loopback.
		if resp, err = (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req); err == nil {
			status = resp.StatusCode
			err = resp.Body.Close()
		}
	}
	bad := fmt.Sprintf("%s answers %d: is it another program's?", url, status)
	if err != nil {
		bad = err.Error()
	}
	p.check(err == nil && status == http.StatusOK, verdictFail, "mirror", url, bad, "start the node, or set mirror.address to a free one, in hosts.toml too")
}

// containerdConfig looks whether containerd is told of the node. It reads for
// what must be there, and leaves the rest to containerd.
func (p *patient) containerdConfig() {
	i := slices.IndexFunc(p.containerd, func(name string) bool { _, err := os.Stat(name); return err == nil })
	if i < 0 {
		p.note(verdictFail, "containerd", "no configuration in "+strings.Join(p.containerd, ", "), "deploy/containerd.toml has what it needs; --containerd-config names another place")
		return
	}
	name := p.containerd[i]
	text, err := readContainerdConfig(name)
	if err != nil {
		p.note(verdictFail, "containerd", err.Error(), "")
		return
	}
	const next = "merge deploy/containerd.toml into it and restart containerd"
	plugin := pluginName(text, p.cfg.Snapshotter.Address)
	p.check(plugin != "", verdictFail, "containerd", fmt.Sprintf("%s has the snapshotter %s", name, plugin),
		fmt.Sprintf("%s has no proxy_plugins with address = %q", name, p.cfg.Snapshotter.Address), next)
	if plugin != "" {
		used := regexp.MustCompile(`(?m)^\s*snapshotter\s*=\s*["']` + regexp.QuoteMeta(plugin) + `["']`)
		p.check(len(used.FindAllString(text, -1)) > 0, verdictWarn, "containerd", "it is used for pulls",
			"nothing there says snapshotter = "+plugin+": only what names it on the command line is lazy", next)
	}
	p.check(strings.Contains(text, "image_pull_progress_timeout"), verdictWarn, "containerd", "image_pull_progress_timeout is set",
		"image_pull_progress_timeout is not set: containerd gives up pulls that wait for 5 minutes", next)
	p.hosts(text)
}

// maxConfig bounds what is read of a configuration file, in bytes.
const maxConfig = 4 << 20

var importLine = regexp.MustCompile(`(?ms)^\s*imports\s*=\s*\[(.*?)\]`)

// readContainerdConfig returns containerd's configuration with what it imports,
// without comments.
func readContainerdConfig(name string) (string, error) {
	var all strings.Builder
	seen := map[string]bool{}
	var read func(name string) error
	read = func(name string) error {
		if seen[name] || all.Len() > maxConfig {
			return nil
		}
		seen[name] = true
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		var text strings.Builder
		for line := range strings.Lines(string(b)) {
			if !strings.HasPrefix(strings.TrimSpace(line), "#") {
				text.WriteString(line)
			}
		}
		all.WriteString(text.String() + "\n")
		for _, list := range importLine.FindAllStringSubmatch(text.String(), -1) {
			for pattern := range strings.SplitSeq(list[1], ",") {
				pattern = strings.Trim(strings.TrimSpace(pattern), `"'`)
				if pattern != "" && !filepath.IsAbs(pattern) {
					pattern = filepath.Join(filepath.Dir(name), pattern)
				}
				files, err := filepath.Glob(pattern)
				if err != nil {
					return err
				}
				for _, f := range files {
					if err := read(f); err != nil {
						return err
					}
				}
			}
		}
		return nil
	}
	err := read(name)
	return all.String(), err
}

var proxyPlugin = regexp.MustCompile(`(?m)^\s*\[\s*proxy_plugins\.["']?([A-Za-z0-9_.-]+?)["']?\s*\]`)

// pluginName returns the proxy plugin that has an address, or "".
func pluginName(text, address string) string {
	tables := proxyPlugin.FindAllStringSubmatchIndex(text, -1)
	for i, t := range tables {
		end := len(text)
		if i+1 < len(tables) {
			end = tables[i+1][0]
		}
		if strings.Contains(text[t[1]:end], `"`+address+`"`) || strings.Contains(text[t[1]:end], `'`+address+`'`) {
			return text[t[2]:t[3]]
		}
	}
	return ""
}

var configPath = regexp.MustCompile(`(?m)^\s*config_path\s*=\s*["']([^"']+)["']`)

// hosts looks whether containerd asks the mirror.
func (p *patient) hosts(text string) {
	dirs := map[string]bool{}
	for _, m := range configPath.FindAllStringSubmatch(text, -1) {
		for dir := range strings.SplitSeq(m[1], ":") {
			dirs[dir] = true
		}
	}
	if len(dirs) == 0 {
		p.note(verdictFail, "hosts.toml", "containerd's configuration has no config_path, so it asks registries itself", "merge deploy/containerd.toml into it and restart containerd")
		return
	}
	points, around := "", []string{}
	for dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*", "hosts.toml"))
		if err != nil {
			continue // the pattern is well-formed unless the directory is not
		}
		for _, name := range files {
			b, err := os.ReadFile(name)
			host := filepath.Base(filepath.Dir(name))
			switch here := err == nil && strings.Contains(string(b), p.cfg.Mirror.Address); {
			case here && host == "_default":
				points = name
			case !here && host != "_default":
				around = append(around, host)
			}
		}
	}
	p.check(points != "", verdictFail, "hosts.toml", points+" points to the mirror",
		"no _default/hosts.toml names http://"+p.cfg.Mirror.Address, "copy deploy/hosts.toml to /etc/containerd/certs.d/_default/")
	if slices.Sort(around); len(around) > 0 {
		p.note(verdictWarn, "hosts.toml", "images of "+strings.Join(around, ", ")+" go around the mirror: they are not lazy, and their tags don't resolve when the link is dark", "remove their directories, or point them to the mirror too")
	}
}

// lowDisk is how much free space is worth a warning, in bytes: an image or two.
const lowDisk = 2e9

func (p *patient) disk() {
	var st unix.Statfs_t
	dir := p.cfg.Root
	for dir != "/" && unix.Statfs(dir, &st) != nil {
		dir = filepath.Dir(dir)
	}
	free := int64(st.Bavail) * st.Bsize
	text := fmt.Sprintf("%s free for %s", units.Short(free), p.cfg.Root)
	switch {
	case free < int64(p.cfg.Cache.Reserve):
		p.note(verdictFail, "disk", fmt.Sprintf("%s, %v are kept back", text, p.cfg.Cache.Reserve), "free some: airstream gc")
	case free < lowDisk && p.cfg.Cache.Limit == 0:
		p.note(verdictWarn, "disk", text, "set cache.limit, or move root to a larger disk")
	default:
		p.note(verdictOK, "disk", text, "")
	}
}

// clock looks whether the clock is behind what is certain.
func (p *patient) clock() {
	now := time.Now()
	latest := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, name := range []string{"catalog.db", "usage.json", "store/store.db"} {
		if info, err := os.Stat(filepath.Join(p.cfg.Root, name)); err == nil && info.ModTime().After(latest) {
			latest = info.ModTime()
		}
	}
	p.check(now.Add(time.Minute).After(latest), verdictWarn, "clock", now.Format("2006-01-02 15:04 MST"),
		fmt.Sprintf("it says %s, and it was %s before", now.Format(time.DateTime), latest.Format(time.DateTime)), "set it: with a wrong clock certificates of registries are refused, and daily budgets are not those of the day")
}
