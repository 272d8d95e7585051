// Package node runs a real node: containerd with runc, as kubelet and ctr
// find it on a machine, but with everything private to one directory and one
// network namespace, so that several can run next to each other and next to
// the machine's own, and nothing is left when they stop.
//
// A Node is driven in the two ways that count. PullTransfer and RunUntil use
// ctr and containerd's transfer service; CRI speaks the Container Runtime
// Interface, as kubelet does, with host networking (no CNI) and a pause image
// made on the spot. Both time how long a container takes until it prints the
// line that says it is ready. Restart and Kill do to containerd what power
// cuts and upgrades do.
//
// Everything that a node owns can be found from its directory: containerd's
// socket in it is on the command line of every shim, mounts are beneath it,
// and control groups carry its name. Stop, and the sweep of what dead runs
// have left, rely on nothing else; in particular they need no containerd that
// still answers.
package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/airstream-io/airstream/test/rig/netns"
)

// Overlayfs is the name of containerd's own snapshotter, Airstream of ours.
const (
	Overlayfs = "overlayfs"
	Airstream = "airstream"
)

// Options describes a node. The zero value is a plain node in the caller's
// network namespace.
type Options struct {
	// Namespace is the network that containerd and all containers see.
	Namespace *netns.NS
	// Bin is the directory of containerd, ctr and the runc shim; empty means
	// BinDir(). runc is looked up in PATH.
	Bin string

	// AirstreamSocket, if set, registers a snapshotter named Airstream that
	// answers there. It need not answer yet.
	AirstreamSocket string
	// AirstreamRoot is the directory that the snapshotter reports for its
	// disk usage; empty means one that is empty.
	AirstreamRoot string

	// CRISnapshotter is the one that CRI uses; empty means Overlayfs.
	CRISnapshotter string

	// Hosts says how registries are reached: the content of hosts.toml by
	// name of the registry, as in /etc/containerd/certs.d ("_default" is for
	// all others). See SetHosts.
	Hosts map[string]string

	// Env is added to containerd's environment, as "KEY=VALUE".
	Env []string
}

// Node is a running containerd. It is safe for concurrent use, except that
// nothing may go on while it is stopped or restarted.
type Node struct {
	opts    Options
	dir     string
	process *netns.Process
	ids     atomic.Uint64 // of containers
}

// Durations that bound what should take moments. They are long because tests
// run on machines that do other things.
const (
	startLimit = time.Minute
	stopGrace  = 20 * time.Second
)

// maxDir is how long the node's directory may be: a shim's socket adds 67
// bytes to it, and the path of a socket has 107 (unix(7)).
const maxDir = 107 - len("/s/") - 64

// BinDir returns where the rig's tools are installed: $AIRSTREAM_RIG_BIN, else
// airstream/bin in the user's cache.
func BinDir() (string, error) {
	if dir := os.Getenv("AIRSTREAM_RIG_BIN"); dir != "" {
		return dir, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("node: %w", err)
	}
	return filepath.Join(cache, "airstream", "bin"), nil
}

// Available says why a node can't run here: nil if it can, else an error
// whose text is one line for a user.
func Available(bin string) error {
	if os.Geteuid() != 0 {
		return errors.New("node: containerd needs root")
	}
	if bin == "" {
		var err error
		if bin, err = BinDir(); err != nil {
			return err
		}
	}
	for _, tool := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		if _, err := os.Stat(filepath.Join(bin, tool)); err != nil {
			return fmt.Errorf("node: no %s in %s", tool, bin)
		}
	}
	if _, err := exec.LookPath("runc"); err != nil {
		return errors.New("node: no runc in PATH")
	}
	return nil
}

// Start sweeps away what dead runs have left and starts containerd. The node
// is ready when Start returns: both ctr and CRI are answered.
func Start(ctx context.Context, opts Options) (_ *Node, err error) {
	if err := Available(opts.Bin); err != nil {
		return nil, err
	}
	if opts.Bin == "" {
		if opts.Bin, err = BinDir(); err != nil {
			return nil, err
		}
	}
	if opts.CRISnapshotter == "" {
		opts.CRISnapshotter = Overlayfs
	}
	if opts.CRISnapshotter == Airstream && opts.AirstreamSocket == "" {
		return nil, errors.New("node: start: CRI is to use airstream, but its socket is not given")
	}
	if err := Sweep(ctx); err != nil {
		return nil, err
	}
	name, err := netns.OwnName(label)
	if err != nil {
		return nil, fmt.Errorf("node: start: %w", err)
	}
	n := &Node{opts: opts, dir: filepath.Join(os.TempDir(), name)}
	if len(n.dir) > maxDir {
		return nil, fmt.Errorf("node: start: %s is too long a path for sockets: set TMPDIR to a shorter one", n.dir)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Stop(context.WithoutCancel(ctx)))
		}
	}()
	if n.opts.AirstreamRoot == "" {
		n.opts.AirstreamRoot = n.path("airstream")
	}
	for _, dir := range []string{n.dir, n.path("certs.d"), n.path("cni"), n.path("temp"), n.path("logs"), n.opts.AirstreamRoot} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("node: start: %w", err)
		}
	}
	if err := n.SetHosts(opts.Hosts); err != nil {
		return nil, err
	}
	if err := os.WriteFile(n.path("config.toml"), n.config(), 0o600); err != nil {
		return nil, fmt.Errorf("node: start: %w", err)
	}
	if err := n.launch(ctx); err != nil {
		return nil, err
	}
	return n, n.importPause(ctx)
}

// launch starts containerd and waits until it answers.
func (n *Node) launch(ctx context.Context) (err error) {
	n.process, err = n.opts.Namespace.Start(netns.Command{
		Args: []string{filepath.Join(n.opts.Bin, "containerd"), "--config", n.path("config.toml")},
		Env:  n.env(),
		Log:  n.path("containerd.log"),
	})
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	conn, err := n.dial()
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is under way
	health := grpc_health_v1.NewHealthClient(conn)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := health.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		if err == nil {
			break
		}
		select {
		case <-tick.C:
		case <-n.process.Done():
			return fmt.Errorf("node: %w", n.process.Explain(errors.New("ended before it was ready")))
		case <-ctx.Done():
			return fmt.Errorf("node: %w", n.process.Explain(fmt.Errorf("not ready: %w: %w", context.Cause(ctx), err)))
		}
	}
	return n.criReady(ctx, conn)
}

// Restart stops containerd, if it runs, and starts it again with the same
// state. Containers run on meanwhile.
func (n *Node) Restart(ctx context.Context) error {
	if err := n.process.Stop(ctx, stopGrace); err != nil {
		return fmt.Errorf("node: restart: %w", err)
	}
	return n.launch(ctx)
}

// Kill kills containerd as a crash does. Containers run on; only Restart and
// Stop make sense afterwards.
func (n *Node) Kill() error {
	if err := n.process.Kill(); err != nil {
		return fmt.Errorf("node: kill: %w", err)
	}
	return nil
}

// Stop ends the node with all its containers and takes away everything that
// it has made.
func (n *Node) Stop(ctx context.Context) error {
	var errs []error
	if n.process != nil {
		errs = append(errs, n.process.Stop(ctx, stopGrace))
	}
	errs = append(errs, takeAway(ctx, n.dir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("node: stop: %w", err)
	}
	return nil
}

// SetHosts replaces the configuration of registries; containerd reads it anew
// for every pull.
func (n *Node) SetHosts(hosts map[string]string) error {
	certs := n.path("certs.d")
	if err := os.RemoveAll(certs); err != nil {
		return fmt.Errorf("node: set hosts: %w", err)
	}
	for host, content := range hosts {
		if filepath.Base(host) != host {
			return fmt.Errorf("node: set hosts: %q is not the name of a registry", host)
		}
		dir := filepath.Join(certs, host)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("node: set hosts: %w", err)
		}
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(content), 0o600); err != nil {
			return fmt.Errorf("node: set hosts: %w", err)
		}
	}
	return os.MkdirAll(certs, 0o700)
}

// Socket returns the path of containerd's gRPC socket.
func (n *Node) Socket() string { return n.path("containerd.sock") }

// Dir returns the node's directory; Stop deletes it with all that is in it.
func (n *Node) Dir() string { return n.dir }

// PID returns containerd's process id.
func (n *Node) PID() int { return n.process.PID() }

// LogTail returns the end of containerd's log.
func (n *Node) LogTail() string { return n.process.LogTail() }

// path returns the path of one of the node's files.
func (n *Node) path(name string) string { return filepath.Join(n.dir, name) }

// cgroup returns the control group that all containers of the node are in.
func (n *Node) cgroup() string { return "/" + filepath.Base(n.dir) }

// env is containerd's environment: its shim is found next to it.
func (n *Node) env() []string {
	env := append(os.Environ(), "PATH="+n.opts.Bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	return append(env, n.opts.Env...)
}

// dial connects to containerd; it does not wait until it answers.
func (n *Node) dial() (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix:"+n.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("node: connect: %w", err)
	}
	return conn, nil
}

// newID makes a name that is unique on the node.
func (n *Node) newID(kind string) string {
	return kind + strconv.FormatUint(n.ids.Add(1), 10)
}

// config writes containerd's configuration. What would reach beyond the
// node's directory is turned off or redirected; restrict_oom_score_adj keeps
// containers runnable where root may not protect processes from the kernel's
// memory killer.
func (n *Node) config() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, `version = 3
root = %q
state = %q
temp = %q
imports = []
disabled_plugins = [
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
address = %q

[ttrpc]
address = %q

[plugins."io.containerd.shim.v1.manager"]
socket_dir = %q

[plugins."io.containerd.internal.v1.opt"]
path = %q

[plugins."io.containerd.nri.v1.nri"]
disable = true

[plugins."io.containerd.cri.v1.images"]
snapshotter = %q
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = %q
[plugins."io.containerd.cri.v1.images".registry]
config_path = %q

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = [%q]
conf_dir = %q

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
Root = %q

[plugins."io.containerd.transfer.v1.local"]
config_path = %q
`,
		n.path("root"), n.path("state"), n.path("temp"), n.Socket(), n.Socket()+".ttrpc", n.path("s"), n.path("opt"),
		n.opts.CRISnapshotter, pauseRef, n.path("certs.d"), n.path("cni"), n.path("cni"), n.path("runc"), n.path("certs.d"))
	snapshotters := []string{Overlayfs}
	if n.opts.AirstreamSocket != "" {
		snapshotters = append(snapshotters, Airstream)
	}
	for _, snapshotter := range snapshotters {
		fmt.Fprintf(&b, `
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux"
snapshotter = %q
`, snapshotter)
	}
	if n.opts.AirstreamSocket != "" {
		fmt.Fprintf(&b, `
[proxy_plugins.airstream]
type = "snapshot"
address = %q
[proxy_plugins.airstream.exports]
root = %q
enable_remote_snapshot_annotations = "true"
`, n.opts.AirstreamSocket, n.opts.AirstreamRoot)
	}
	return []byte(b.String())
}
