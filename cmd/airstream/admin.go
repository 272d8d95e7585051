package main

import (
	"path/filepath"
	"time"

	"github.com/airstream-io/airstream/config"
)

// The admin socket: HTTP with JSON on a unix socket that only root can open.
// It serves the verbs of this binary, of the same version, and makes no promise
// to others; what verbs print with -o json is what scripts may rely on.
//
//	GET  /healthz              200 or 503, with health
//	GET  /v1/status            nodeStatus
//	GET  /v1/images            []imageStatus
//	GET  /v1/trace?ref=REF     a trace file
//	POST /v1/prefetch          prefetchOrder; a stream of prefetchEvent, the last one final
//	POST /v1/pin               refsOrder; []string, names of images
//	POST /v1/unpin             the same
//	POST /v1/remove            removeOrder; removed
//	POST /v1/gc                gcOrder; gcResult
//	POST /v1/verify            verifyOrder; a stream of verifyEvent, the last one final
//	GET  /v1/limits            limitStatus
//	POST /v1/limits            limitChange; limitStatus
//	POST /v1/reload            reloaded
//	POST /v1/bundle?activate&partial&key=KEY&identity=FILE
//	                           a bundle as the body, from its manifest on; bundleReply
//	GET  /v1/bundles           []receive.Result, those that wait
//	POST /v1/bundles/forget    refsOrder, IDs of bundles; []string
//	GET  /v1/inventory         []inventory.Image
//	POST /v1/rollback          refsOrder; []rolledBack
//	     /debug/pprof/         as net/http/pprof has it
//
// An error is answered with apiError and a status of 400 and up.
func adminSocket(state string) string { return filepath.Join(state, "admin.sock") }

// apiError is an error and the exit code that it means.
type apiError struct {
	Error string `json:"error"`
	Code  int    `json:"code"`
}

// health tells whether the node does its work. A dark link is no illness.
type health struct {
	Healthy  bool     `json:"healthy"`
	Dark     bool     `json:"dark"`
	Problems []string `json:"problems"` // what is broken, for people
}

// nodeStatus is what airstream status prints.
type nodeStatus struct {
	Version string        `json:"version"`
	PID     int           `json:"pid"`
	Started time.Time     `json:"started"`
	Now     time.Time     `json:"now"`
	Keeper  string        `json:"keeper"` // who keeps the file system over a restart of the daemon; "": nobody
	Memory  int64         `json:"memory"` // bytes resident
	Health  health        `json:"health"`
	Link    linkStatus    `json:"link"`
	Proxy   *proxyStatus  `json:"proxy,omitempty"` // on shore; absent if there is none
	Queue   queueStatus   `json:"queue"`
	Cache   cacheStatus   `json:"cache"`
	Images  []imageStatus `json:"images"`
}

// linkStatus is what is known of the link.
type linkStatus struct {
	Phase      string           `json:"phase"` // up, slow, dark
	Since      time.Time        `json:"since"`
	Rate       float64          `json:"rate"` // bytes/s, as it arrives; 0, as in the next three: not known yet
	Peak       float64          `json:"peak"` // bytes/s that the link could bring
	RTT        float64          `json:"rtt"`  // s
	MinRTT     float64          `json:"minRTT"`
	Loss       float64          `json:"loss"`  // share of packets
	Bytes      int64            `json:"bytes"` // that arrived since the daemon started
	ByClass    map[string]int64 `json:"byClass"`
	Today      map[string]int64 `json:"today"`                // bytes since midnight
	Daily      int64            `json:"daily"`                // bytes allowed in a day; 0: no limit
	BudgetLeft int64            `json:"budgetLeft"`           // bytes; -1: no limit
	Limit      float64          `json:"limit"`                // bytes/s allowed; 0: no limit
	NextWindow *time.Time       `json:"nextWindow,omitempty"` // when the next contact window opens, if it is closed
}

// queueStatus is what the fetcher is doing.
type queueStatus struct {
	Waiting int               `json:"waiting"` // reads that wait for content
	Oldest  float64           `json:"oldest"`  // s that the first of them has waited
	Active  map[string]int    `json:"active"`  // requests under way, by class
	Queued  map[string]int64  `json:"queued"`  // bytes wanted, compressed, by class
	Held    map[string]string `json:"held"`    // why a class's requests don't begin
	Paused  []pausedHost      `json:"paused"`
	Full    bool              `json:"full"` // the disk took nothing more when it was tried last
}

type pausedHost struct {
	Host  string    `json:"host"`
	Until time.Time `json:"until"`
	Error string    `json:"error"`
}

// cacheStatus is what cached content takes, in bytes of disk.
type cacheStatus struct {
	Bytes   int64 `json:"bytes"`
	Limit   int64 `json:"limit"` // 0: none
	Free    int64 `json:"free"`
	Reserve int64 `json:"reserve"`
}

// imageStatus is what the node has of an image. Sizes are bytes; those of files
// are not compressed.
type imageStatus struct {
	Names      []string  `json:"names"`
	Former     []string  `json:"formerNames,omitempty"` // of Names, those that mean another image by now
	Coming     string    `json:"comingName,omitempty"`  // that it gets when its prefetch is complete
	Manifest   string    `json:"manifest"`
	Platform   string    `json:"platform"`
	Layers     int       `json:"layers"`
	Lazy       int       `json:"lazyLayers"`
	Size       int64     `json:"size"`    // compressed, as the registry has it
	Total      int64     `json:"total"`   // in files of the lazy layers whose table is here
	Missing    int64     `json:"missing"` // of these
	Tables     int       `json:"tables"`  // lazy layers whose table of contents is here
	Complete   bool      `json:"complete"`
	HotTotal   int64     `json:"hotTotal"` // of Total, what a recorded start reads; 0: none was recorded
	HotMissing int64     `json:"hotMissing"`
	Plain      int       `json:"plainMissing"` // layers that are not lazy and not here
	Pinned     bool      `json:"pinned"`
	Learned    time.Time `json:"learned"`
	// Dark tells whether a container starts from it without a link: "yes",
	// "hot" (as far as the recorded start goes), or "no", and Why not.
	Dark string `json:"runnableDark"`
	Why  string `json:"why,omitempty"`
}

// prefetchOrder asks for images to be complete.
type prefetchOrder struct {
	Refs     []string `json:"refs"`
	Platform string   `json:"platform,omitempty"` // "": the node's
	Hot      bool     `json:"hot,omitempty"`      // their hot sets alone
	DryRun   bool     `json:"dryRun,omitempty"`
	Wait     bool     `json:"wait,omitempty"` // for the link, a budget or a window
	Pin      bool     `json:"pin,omitempty"`
}

// prefetchEvent is how far a prefetch has come.
type prefetchEvent struct {
	Images []prefetchImage `json:"images"`
	Wire   int64           `json:"wire"` // bytes that were to cross for all images, once that is known; what they share counts once
	Left   int64           `json:"left"` // of these
	Link   linkStatus      `json:"link"`
	Held   string          `json:"held,omitempty"` // why nothing crosses now
	Done   bool            `json:"done"`
	Error  string          `json:"error,omitempty"`
	Code   int             `json:"code,omitempty"` // exit code that Error means
}

// prefetchImage is one image of a prefetch.
type prefetchImage struct {
	Ref      string `json:"ref"`
	Name     string `json:"name,omitempty"` // written out
	Manifest string `json:"manifest,omitempty"`
	State    string `json:"state"`  // waiting, resolving, fetching, complete, failed
	Wire     int64  `json:"wire"`   // bytes, compressed, that were to cross when it began
	Left     int64  `json:"left"`   // of these
	Hot      bool   `json:"hot"`    // the hot set alone
	Cached   bool   `json:"cached"` // the registry did not answer; it is what the tag meant last
	Error    string `json:"error,omitempty"`
	Code     int    `json:"code,omitempty"`
}

// refsOrder names images.
type refsOrder struct {
	Refs []string `json:"refs"`
}

// removeOrder names images to forget.
type removeOrder struct {
	Refs  []string `json:"refs"`
	Force bool     `json:"force,omitempty"` // pinned ones, too
}

// removed is what airstream rm did.
type removed struct {
	Names []string `json:"names"` // and digests of images that lost their last name
	Freed int64    `json:"freed"` // bytes of disk
}

// gcOrder says what is to be freed.
type gcOrder struct {
	Limit  *config.Size `json:"limit,omitempty"` // nil: what the configuration says
	All    bool         `json:"all,omitempty"`
	DryRun bool         `json:"dryRun,omitempty"`
}

// gcResult is what was freed, or would be.
type gcResult struct {
	DryRun  bool        `json:"dryRun"`
	Freed   int64       `json:"freed"` // bytes of disk
	Objects int         `json:"objects"`
	Blobs   int         `json:"blobs"`
	Trees   int         `json:"trees"`
	Images  []string    `json:"images"` // that lost content, the one used longest ago first
	Cache   cacheStatus `json:"cache"`
}

// limitChange says which limits change. What is nil or absent stays.
type limitChange struct {
	Reset   bool                   `json:"reset,omitempty"` // to the configuration, before the rest
	Rate    *config.Rate           `json:"rate,omitempty"`
	Daily   *config.Size           `json:"daily,omitempty"`
	Reserve *config.Size           `json:"reserve,omitempty"`
	Hard    *bool                  `json:"hard,omitempty"`
	Class   map[string]config.Size `json:"class,omitempty"`
	Always  bool                   `json:"always,omitempty"` // no windows
}

// limitStatus is what may cross the link, as the configuration writes it.
type limitStatus struct {
	Rate    config.Rate            `json:"rate"`
	Daily   config.Size            `json:"daily"`
	Reserve config.Size            `json:"reserve"`
	Hard    bool                   `json:"hard"`
	Class   map[string]config.Size `json:"class"`
	Outside string                 `json:"outside"`
	Windows []limitWindow          `json:"windows"`
	Changed bool                   `json:"changed"` // not as the configuration says, until the next restart
	Link    linkStatus             `json:"link"`
}

type limitWindow struct {
	From config.TimeOfDay `json:"from"`
	To   config.TimeOfDay `json:"to"`
	Days []config.Weekday `json:"days,omitempty"`
}

// reloaded is what reading the configuration again has changed.
type reloaded struct {
	Applied []string `json:"applied"` // keys
	Restart []string `json:"restart"` // keys that need a restart of the daemon
}

// proxyStatus is how the node's session with its proxy is.
type proxyStatus struct {
	Address string    `json:"address"`
	Node    string    `json:"node"` // what the proxy calls this node
	Up      bool      `json:"up"`
	Since   time.Time `json:"since"`
	Error   string    `json:"error,omitempty"`   // why it is down
	Instead bool      `json:"instead,omitempty"` // registries are asked in its place
	Until   time.Time `json:"until"`             // when the node's certificate ends
}
