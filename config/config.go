// Package config reads what a node is told: a TOML file, then AIRSTREAM_*
// variables of the environment over it. The result is typed and valid; nothing
// else in Airstream reads TOML or the environment of a node.
//
// A node needs no file. Unknown keys are errors that name their line, because
// a misspelt limit that is silently ignored costs money on a metered link; and
// for the same reason a rate, a size or a duration without its unit is one.
package config

import (
	"time"

	"github.com/airstream-io/airstream/internal/units"
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
	Proxy       NodeProxy           `toml:"proxy"`
	Fetch       Fetch               `toml:"fetch"`
	Limits      Limits              `toml:"limits"`
	Cache       Cache               `toml:"cache"`
	Bundle      Bundle              `toml:"bundle"`
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
	Address   string    `toml:"address"`   // host:port, loopback
	Patience  Duration  `toml:"patience"`  // how long a registry may take before a cached tag is used
	Default   string    `toml:"default"`   // registry host of requests that name none; "": the first part of their path
	Refresh   bool      `toml:"refresh"`   // tags answered from the cache are asked again when the link is back
	Referrers bool      `toml:"referrers"` // registries are asked for an image's signatures and SBOMs
	Rewrite   []Rewrite `toml:"rewrite"`
}

// Rewrite has the images below From fetched from below To. Both are "HOST" or
// "HOST/PATH"; names as containerd knows them stay.
type Rewrite struct {
	From string `toml:"from"`
	To   string `toml:"to"`
}

// NodeProxy is the proxy on shore that the node has enrolled with.
type NodeProxy struct {
	Address    string   `toml:"address"`    // HOST:PORT; "": none
	Patience   Duration `toml:"patience"`   // how long it may be out of reach before registries are asked
	Registries bool     `toml:"registries"` // they are asked then; if not, the node waits for the proxy
	// Unconverted says that the proxy is believed what is in layers that were never
	// converted, until they are here whole and can be compared with the image.
	Unconverted bool `toml:"unconverted"`
}

// Fetch says what crosses the link unasked.
type Fetch struct {
	Background bool     `toml:"background"` // images become complete in idle time
	IdleAfter  Duration `toml:"idle_after"` // what counts as idle: nobody has waited for so long
	FailFast   bool     `toml:"fail_fast"`  // reads of what is not here fail while the link is dark, and don't wait
}

// Limits say what may cross the link, how fast and when.
type Limits struct {
	Rate    Rate        `toml:"rate"`
	Daily   Size        `toml:"daily"`   // from midnight to midnight, local time
	Reserve Size        `toml:"reserve"` // part of Daily that only waiting readers may use
	Hard    bool        `toml:"hard"`    // what somebody waits for stops at Daily, too
	Outside string      `toml:"outside"` // the least urgent class that windows don't concern
	Class   ClassLimits `toml:"class"`
	Window  []Window    `toml:"window"` // when the link may be used by what nobody waits for; none: always
}

// ClassLimits are the bytes that each class may bring in a day.
type ClassLimits struct {
	Demand     Size `toml:"demand"`     // somebody waits for it
	Hot        Size `toml:"hot"`        // a start will read it
	Ahead      Size `toml:"ahead"`      // somebody may read it next
	Prefetch   Size `toml:"prefetch"`   // airstream prefetch, and layers that are not lazy
	Background Size `toml:"background"` // fills idle time
}

// Window is a time of the day, on some days of the week. One whose To is not
// after From ends on the next day.
type Window struct {
	From TimeOfDay `toml:"from"`
	To   TimeOfDay `toml:"to"`
	Days []Weekday `toml:"days,omitempty"` // on which it begins; none: every day
}

// Cache bounds what is kept on disk.
type Cache struct {
	Limit   Size `toml:"limit"`   // of all cached content; 0: what the disk has
	Reserve Size `toml:"reserve"` // of the disk that is left free
}

// Bundle says which bundles are taken in.
type Bundle struct {
	// KeysFile holds the minisign public keys of those who may have signed one, each on
	// a line of its own; empty: whoever is root here may take in any.
	KeysFile string `toml:"keys_file"`
}

// Registry says how to reach a registry. What is empty is as everywhere:
// HTTPS, the system's certificates, docker's credentials.
type Registry struct {
	URL          string   `toml:"url,omitempty"`      // "https://mirror.example/", if it is elsewhere
	Mirrors      []string `toml:"mirrors,omitempty"`  // URLs of others that have the same repositories, asked first
	CAFile       string   `toml:"ca_file,omitempty"`  // PEM
	Insecure     bool     `toml:"insecure,omitempty"` // the certificate is not checked; content is, always
	Username     string   `toml:"username,omitempty"`
	PasswordFile string   `toml:"password_file,omitempty"` // its first line
}

// Default returns the configuration of a node that was told nothing.
func Default() Node {
	return Node{
		Root:   "/var/lib/airstream",
		State:  "/run/airstream",
		Log:    Log{Level: "info", Format: "text"},
		Mirror: Mirror{Address: "127.0.0.1:5075", Patience: Duration(10 * time.Second), Refresh: true, Referrers: true},
		Proxy:  NodeProxy{Patience: Duration(time.Minute), Registries: true, Unconverted: true},
		Fetch:  Fetch{Background: true, IdleAfter: Duration(15 * time.Second)},
		Limits: Limits{Outside: "demand"},
		Cache:  Cache{Reserve: Size(256 * units.MB)},
	}
}
