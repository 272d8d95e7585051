// Package config reads what a node is told: a TOML file, then AIRSTREAM_*
// variables of the environment over it. The result is typed and valid; nothing
// else in Airstream reads TOML or the environment.
//
// A node needs no file. Unknown keys are errors that name their line, because
// a misspelt limit that is silently ignored costs money on a metered link.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// DefaultFile is read if it is there and no other file was named.
const DefaultFile = "/etc/airstream/airstream.toml"

// Node is the configuration of `airstream node`.
type Node struct {
	// Root is the directory of what must survive a reboot: cached content,
	// snapshots, and the mount point of the FUSE tree.
	Root string `toml:"root"`
	// State is the directory of sockets.
	State       string              `toml:"state"`
	Log         Log                 `toml:"log"`
	Snapshotter Snapshotter         `toml:"snapshotter"`
	Mirror      Mirror              `toml:"mirror"`
	Fetch       Fetch               `toml:"fetch"`
	Registry    map[string]Registry `toml:"registry"` // by host, as image references have it
}

// Log says what is logged on standard error.
type Log struct {
	Level  string `toml:"level"`  // debug, info, warn, error
	Format string `toml:"format"` // text, json
}

// Snapshotter is the gRPC endpoint that containerd's proxy_plugins names.
type Snapshotter struct {
	Address string `toml:"address"` // path of a unix socket; default: in State
}

// Mirror is the registry endpoint that containerd's hosts.toml names.
type Mirror struct {
	Address  string   `toml:"address"`  // host:port, loopback
	Patience Duration `toml:"patience"` // how long a registry may take before a cached tag is used
}

// Fetch says what crosses the link unasked.
type Fetch struct {
	Background bool     `toml:"background"` // images become complete in idle time
	IdleAfter  Duration `toml:"idle_after"` // what counts as idle: nobody has waited for so long
}

// Registry says how to reach a registry. What is empty is as everywhere:
// HTTPS, the system's certificates, docker's credentials.
type Registry struct {
	URL          string `toml:"url"`      // "https://mirror.example/", if it is elsewhere
	CAFile       string `toml:"ca_file"`  // PEM
	Insecure     bool   `toml:"insecure"` // the certificate is not checked; content is, always
	Username     string `toml:"username"`
	PasswordFile string `toml:"password_file"` // its first line
}

// Duration is a time.Duration that TOML has as a string: "90s", "15m".
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as 90s or 15m", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Default returns the configuration of a node that was told nothing.
func Default() Node {
	return Node{
		Root:   "/var/lib/airstream",
		State:  "/run/airstream",
		Log:    Log{Level: "info", Format: "text"},
		Mirror: Mirror{Address: "127.0.0.1:5075", Patience: Duration(10 * time.Second)},
		Fetch:  Fetch{Background: true, IdleAfter: Duration(15 * time.Second)},
	}
}

// Load returns the configuration in file, or in DefaultFile if file is empty,
// with the environment's variables over it. A named file that isn't there is
// an error; DefaultFile may be missing.
func Load(file string, environ []string) (Node, error) {
	n := Default()
	name := file
	if name == "" {
		name = DefaultFile
	}
	b, err := os.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist) && file == "":
	case err != nil:
		return n, fmt.Errorf("config: %w", err)
	default:
		if err := decode(b, &n); err != nil {
			return n, fmt.Errorf("config: %s: %w", name, err)
		}
	}
	if err := n.environment(environ); err != nil {
		return n, fmt.Errorf("config: %w", err)
	}
	if n.Snapshotter.Address == "" {
		n.Snapshotter.Address = filepath.Join(n.State, "snapshotter.sock")
	}
	if err := n.validate(); err != nil {
		return n, fmt.Errorf("config: %w", err)
	}
	return n, nil
}

func decode(b []byte, n *Node) error {
	d := toml.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	err := d.Decode(n)
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) && len(unknown.Errors) > 0 {
		var said []string
		for i := range unknown.Errors {
			e := &unknown.Errors[i]
			row, _ := e.Position()
			said = append(said, fmt.Sprintf("line %d: unknown key %s", row, strings.Join(e.Key(), ".")))
		}
		return errors.New(strings.Join(said, "; "))
	}
	if syntax, ok := errors.AsType[*toml.DecodeError](err); ok {
		row, col := syntax.Position()
		return fmt.Errorf("line %d, column %d: %s", row, col, strings.TrimPrefix(syntax.Error(), "toml: "))
	}
	return err
}

// variables are the settings that the environment can change.
func (n *Node) variables() map[string]func(string) error {
	text := func(to *string) func(string) error {
		return func(s string) error { *to = s; return nil }
	}
	return map[string]func(string) error{
		"AIRSTREAM_ROOT":                text(&n.Root),
		"AIRSTREAM_STATE":               text(&n.State),
		"AIRSTREAM_LOG_LEVEL":           text(&n.Log.Level),
		"AIRSTREAM_LOG_FORMAT":          text(&n.Log.Format),
		"AIRSTREAM_SNAPSHOTTER_ADDRESS": text(&n.Snapshotter.Address),
		"AIRSTREAM_MIRROR_ADDRESS":      text(&n.Mirror.Address),
		"AIRSTREAM_MIRROR_PATIENCE":     func(s string) error { return n.Mirror.Patience.UnmarshalText([]byte(s)) },
		"AIRSTREAM_FETCH_IDLE_AFTER":    func(s string) error { return n.Fetch.IdleAfter.UnmarshalText([]byte(s)) },
		"AIRSTREAM_FETCH_BACKGROUND": func(s string) error {
			if s != "true" && s != "false" {
				return fmt.Errorf("%q is neither true nor false", s)
			}
			n.Fetch.Background = s == "true"
			return nil
		},
	}
}

func (n *Node) environment(environ []string) error {
	vars := n.variables()
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		set, ok := vars[name]
		if !ok {
			continue
		}
		if err := set(value); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func (n *Node) validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(filepath.IsAbs(n.Root), "root: %q is not an absolute path", n.Root)
	check(filepath.IsAbs(n.State), "state: %q is not an absolute path", n.State)
	check(filepath.IsAbs(n.Snapshotter.Address), "snapshotter.address: %q is not the absolute path of a socket", n.Snapshotter.Address)
	check(slices.Contains([]string{"debug", "info", "warn", "error"}, n.Log.Level), "log.level: %q is none of debug, info, warn, error", n.Log.Level)
	check(slices.Contains([]string{"text", "json"}, n.Log.Format), "log.format: %q is neither text nor json", n.Log.Format)
	host, _, err := net.SplitHostPort(n.Mirror.Address)
	ip := net.ParseIP(host)
	check(err == nil && (host == "localhost" || ip != nil && ip.IsLoopback()), "mirror.address: %q is not a loopback address with a port, and the mirror serves whoever reaches it", n.Mirror.Address)
	check(n.Mirror.Patience >= 0, "mirror.patience: %v is negative", time.Duration(n.Mirror.Patience))
	check(n.Fetch.IdleAfter >= 0, "fetch.idle_after: %v is negative", time.Duration(n.Fetch.IdleAfter))
	for host, r := range n.Registry {
		if r.URL != "" {
			u, err := url.Parse(r.URL)
			check(err == nil && u.Host != "" && (u.Scheme == "http" || u.Scheme == "https"), "registry.%q.url: %q is not an http or https URL", host, r.URL)
		}
		check((r.Username == "") == (r.PasswordFile == ""), "registry.%q: username and password_file go together", host)
	}
	return errors.Join(errs...)
}
