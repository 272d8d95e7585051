package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/airstream-io/airstream/internal/units"
)

// DefaultProxyFile is read by the proxy if it is there and no other was named.
const DefaultProxyFile = "/etc/airstream/proxy.toml"

// Proxy is the configuration of `airstream proxy`.
type Proxy struct {
	// Root is the directory of the cache.
	Root string `toml:"root"`
	// Authority is the directory of what proxy init makes.
	Authority string `toml:"authority"`
	// Listen is where nodes come to, Status where /healthz and /metrics are.
	Listen   string              `toml:"listen"`
	Status   string              `toml:"status"`
	Log      Log                 `toml:"log"`
	Cache    ProxyCache          `toml:"cache"`
	Limits   ProxyLimits         `toml:"limits"`
	Registry map[string]Registry `toml:"registry"` // by host, as image references have it
}

// ProxyCache bounds what is kept of registries.
type ProxyCache struct {
	Limit Size `toml:"limit"`
}

// ProxyLimits bound what one node may take.
type ProxyLimits struct {
	Rate     Rate `toml:"rate"`     // of each session
	Sessions int  `toml:"sessions"` // of one node at a time
	Images   int  `toml:"images"`   // that a session asks for at a time
}

// DefaultProxy returns the configuration of a proxy that was told nothing.
func DefaultProxy() Proxy {
	return Proxy{
		Root: "/var/lib/airstream-proxy", Authority: "/etc/airstream/authority", Listen: ":7075", Status: "127.0.0.1:7076",
		Log: Log{Level: "info", Format: "text"}, Cache: ProxyCache{Limit: Size(20_000 * units.MB)}, Limits: ProxyLimits{Sessions: 4, Images: 64},
	}
}

// LoadProxy returns the configuration in file, or in DefaultProxyFile if file is
// empty. A named file that isn't there is an error; DefaultProxyFile may be
// missing.
func LoadProxy(file string) (Proxy, error) {
	p := DefaultProxy()
	name := file
	if name == "" {
		name = DefaultProxyFile
	}
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) && file == "" {
		return p, nil
	}
	if err != nil {
		return p, fmt.Errorf("config: %w", err)
	}
	lines, err := decode(b, &p)
	if err == nil {
		err = p.validate(lines)
	}
	if err != nil {
		return p, fmt.Errorf("config: %s: %w", name, err)
	}
	return p, nil
}

func (p *Proxy) validate(lines map[string]int) error {
	var errs []error
	check := func(ok bool, key, format string, args ...any) {
		if ok {
			return
		}
		where := key
		if line, ok := lines[key]; ok {
			where = fmt.Sprintf("line %d: %s", line, key)
		}
		errs = append(errs, fmt.Errorf("%s: "+format, append([]any{where}, args...)...))
	}
	check(filepath.IsAbs(p.Root), "root", "%q is not an absolute path", p.Root)
	check(filepath.IsAbs(p.Authority), "authority", "%q is not an absolute path", p.Authority)
	for key, address := range map[string]string{"listen": p.Listen, "status": p.Status} {
		_, _, err := net.SplitHostPort(address)
		check(err == nil || address == "" && key == "status", key, "%q is not an address with a port", address)
	}
	check(slices.Contains([]string{"debug", "info", "warn", "error"}, p.Log.Level), "log.level", "%q is none of debug, info, warn, error", p.Log.Level)
	check(slices.Contains([]string{"text", "json"}, p.Log.Format), "log.format", "%q is neither text nor json", p.Log.Format)
	check(p.Limits.Sessions > 0, "limits.sessions", "%d: a node needs one", p.Limits.Sessions)
	check(p.Limits.Images > 0, "limits.images", "%d: a session needs one", p.Limits.Images)
	for host, r := range p.Registry {
		key := join("registry", host)
		r.validate(key, host, check)
		check(len(r.Mirrors) == 0, key+".mirrors", "a proxy asks one address; set url")
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}
