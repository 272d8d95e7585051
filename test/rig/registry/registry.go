// Package registry runs the shore side of the rig: a real registry, and in
// front of it what real registries differ in.
//
// A Registry is a process of CNCF distribution with its storage in a folder
// that may be kept between runs. It listens on a unix socket only, which no
// network namespace hides. Images are put in by Push, past every front.
//
// A Front is an HTTP server, in this process, on listeners that the caller
// makes: on loopback, or inside a network namespace. It passes requests on to
// the registry, with what is asked of it: TLS under a CA of its own, basic
// authentication, bearer tokens with scopes and an expiry, blobs that redirect
// to signed and expiring addresses of another host, ranges that are ignored,
// faults that a test scripts. It counts and logs every request, every
// connection and every byte. One registry can have any number of fronts.
//
//	test ── Push ──────────────────────────────┐
//	node ══ link ══ Front (listener in shore) ─┴─ unix socket ── registry ── folder
package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/airstream-io/airstream/test/rig/tools"
)

// Options says how to run a registry. The zero value works.
type Options struct {
	Dir     string // folder of its storage, made if need be and kept; empty for one that Close removes
	Program string // the registry's binary; empty for the one that package tools installs
}

// Registry is a running registry process. Its methods may be called
// concurrently.
type Registry struct {
	run       string // folder of socket and configuration, removed by Close
	process   *process
	transport *http.Transport // to the socket
	pusher    *http.Transport // to local
	authority *authority
	local     *Front // plain, on loopback
	closeOnce sync.Once
	closeErr  error
}

// configuration of distribution. Relative URLs, because each front has another
// address than the one that the registry would write.
const configuration = `version: 0.1
log:
  level: error
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: %q
    maxthreads: 100
  delete:
    enabled: true
http:
  addr: %q
  net: unix
  relativeurls: true
`

// Start runs a registry and returns once it answers. ctx bounds the start only;
// the registry runs until Close, and never longer than this process.
func Start(ctx context.Context, opt Options) (*Registry, error) {
	program := opt.Program
	if program == "" {
		var err error
		if program, err = tools.Path("registry"); err != nil {
			return nil, fmt.Errorf("registry: start: %w", err)
		}
	}
	// A short path: the address of a unix socket has 107 bytes at most.
	run, err := os.MkdirTemp("", "airstream-registry-")
	if err != nil {
		return nil, fmt.Errorf("registry: make run folder: %w", err)
	}
	dir := opt.Dir
	if dir == "" {
		dir = filepath.Join(run, "storage")
	}
	if dir, err = filepath.Abs(dir); err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("registry: make storage folder: %w", err), os.RemoveAll(run))
	}
	socket := filepath.Join(run, "socket")
	config := filepath.Join(run, "config.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, configuration, dir, socket), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("registry: write configuration: %w", err), os.RemoveAll(run))
	}

	r := &Registry{run: run, pusher: &http.Transport{}, transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		DisableCompression:  true,
		MaxIdleConnsPerHost: 64,
	}}
	if r.process, err = startProcess(program, "serve", config); err != nil {
		return nil, errors.Join(fmt.Errorf("registry: start %s: %w", program, err), os.RemoveAll(run))
	}
	if err := r.waitReady(ctx); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	if r.authority, err = newAuthority(); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	if r.local, err = r.Front(FrontOptions{}); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// waitReady asks until the registry answers. It starts in a tenth of a second;
// there is nothing to wait on but its socket.
func (r *Registry) waitReady(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://registry/v2/", http.NoBody)
		if err != nil {
			return fmt.Errorf("registry: start: %w", err)
		}
		if resp, err := r.transport.RoundTrip(req); err == nil {
			_ = resp.Body.Close() // nothing was to be read
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("registry: start: %w", ctx.Err())
		case <-r.process.ended:
			return fmt.Errorf("registry: start: it ended: %w: %s", r.process.err, &r.process.output)
		case <-tick.C:
		}
	}
}

// Host returns address and port of a plain HTTP front on loopback that has no
// mode set: where tests push to.
func (r *Registry) Host() string { return r.local.Host() }

// URL returns the address of Host with its scheme, without a trailing slash.
func (r *Registry) URL() string { return r.local.URL() }

// Push writes img as tag, such as "redis:oci", and returns its digest. What the
// registry has already isn't sent again.
func (r *Registry) Push(ctx context.Context, tag string, img v1.Image) (v1.Hash, error) {
	ref, err := name.ParseReference(r.Host() + "/" + tag)
	if err != nil {
		return v1.Hash{}, fmt.Errorf("registry: push: %w", err)
	}
	if err := remote.Write(ref, img, remote.WithContext(ctx), remote.WithTransport(r.pusher)); err != nil {
		return v1.Hash{}, fmt.Errorf("registry: push %s: %w", tag, err)
	}
	return img.Digest()
}

// PushIndex is Push for an image of several platforms.
func (r *Registry) PushIndex(ctx context.Context, tag string, index v1.ImageIndex) (v1.Hash, error) {
	ref, err := name.ParseReference(r.Host() + "/" + tag)
	if err != nil {
		return v1.Hash{}, fmt.Errorf("registry: push: %w", err)
	}
	if err := remote.WriteIndex(ref, index, remote.WithContext(ctx), remote.WithTransport(r.pusher)); err != nil {
		return v1.Hash{}, fmt.Errorf("registry: push %s: %w", tag, err)
	}
	return index.Digest()
}

// Close stops the registry. Fronts that the caller made are the caller's to
// close first.
func (r *Registry) Close() error {
	r.closeOnce.Do(func() {
		var errs []error
		r.pusher.CloseIdleConnections()
		if r.local != nil {
			errs = append(errs, r.local.Close())
		}
		r.transport.CloseIdleConnections()
		r.process.stop()
		r.closeErr = errors.Join(append(errs, os.RemoveAll(r.run))...)
	})
	return r.closeErr
}

// process is a child that ends with us.
type process struct {
	cmd    *exec.Cmd
	output tail
	ended  chan struct{} // closed once it has
	err    error         // valid after ended
}

func startProcess(program string, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(program, args...), ended: make(chan struct{})} // lives until stop
	p.cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")                  // else it looks for a collector
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The kernel sends the parent's death signal when the thread ends that
		// started the child. Others in this process enter namespaces and throw
		// their threads away, so this one is kept for the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			close(p.ended)
		}
	}()
	return p, <-started
}

// stop asks the process to end, and makes it after five seconds.
func (p *process) stop() {
	if p.cmd.Process.Signal(syscall.SIGTERM) != nil {
		<-p.ended // it had ended before
		return
	}
	timer := time.NewTimer(5 * time.Second)
	defer timer.Stop()
	select {
	case <-p.ended:
	case <-timer.C:
		_ = p.cmd.Process.Kill() // can only fail if it just ended
		<-p.ended
	}
}

// tail keeps the last of what a process prints, for the error that tells of its
// end.
type tail struct {
	mu   sync.Mutex
	kept []byte // guarded by mu; at most tailSize bytes
}

const tailSize = 4 << 10

var _ io.Writer = (*tail)(nil)

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - tailSize; over > 0 {
		t.kept = append(t.kept[:0], t.kept[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.kept))
}
