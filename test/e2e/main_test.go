// Package e2e tests the whole of Airstream as users run it: a registry on
// shore, an emulated link, and a node with containerd, runc, FUSE and the
// daemon.
package e2e

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/airstream-io/airstream/test/rig/images"
	"github.com/airstream-io/airstream/test/rig/link"
	"github.com/airstream-io/airstream/test/rig/node"
	"github.com/airstream-io/airstream/test/rig/registry"
	"github.com/airstream-io/airstream/test/rig/site"
	"github.com/airstream-io/airstream/test/rig/tools"
)

// shore is the registry that all tests share, with what was pushed to it.
var shore struct {
	mu        sync.Mutex
	reg       *registry.Registry
	dir       string // of binary
	binary    string
	pushed    map[string]bool // guarded by mu; images that are there
	converted map[string]bool // guarded by mu; images that are there converted, too
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shore.reg != nil {
		if err := shore.reg.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	if err := os.RemoveAll(shore.dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// publish puts an image on shore as NAME:plain (OCI), NAME:docker (Docker
// schema 2) and NAME:lazy (converted), and returns what it is.
func publish(t *testing.T, name string) *images.Image {
	t.Helper()
	img := push(t, name)
	shore.mu.Lock()
	defer shore.mu.Unlock()
	if shore.converted[name] {
		return img
	}
	_, err := site.Convert(t.Context(), shore.binary, shore.reg, name+":plain", name+":lazy")
	must(t, err)
	shore.converted[name] = true
	return img
}

// push is publish for an image that isn't converted.
func push(t *testing.T, name string) *images.Image {
	t.Helper()
	tools.Need(t, append(images.Needs(name), site.Needs...)...)
	img, err := images.Build(t.Context(), name)
	must(t, err)
	shore.mu.Lock()
	defer shore.mu.Unlock()
	start(t)
	if shore.pushed[name] {
		return img
	}
	oci, err := img.OCI()
	must(t, err)
	docker, err := img.Docker()
	must(t, err)
	_, err = shore.reg.Push(t.Context(), name+":plain", oci)
	must(t, err)
	_, err = shore.reg.Push(t.Context(), name+":docker", docker)
	must(t, err)
	shore.pushed[name] = true
	return img
}

// start starts the shared registry. shore.mu is held.
func start(t *testing.T) {
	t.Helper()
	if shore.reg != nil {
		return
	}
	built, err := site.Build(t.Context())
	must(t, err)
	// What is tested must stay what it is while others build.
	shore.dir, err = os.MkdirTemp("", "airstream-e2e-") //nolint:usetesting // it is for all tests
	must(t, err)
	shore.binary = filepath.Join(shore.dir, "airstream")
	content, err := os.ReadFile(built)
	must(t, err)
	must(t, os.WriteFile(shore.binary, content, 0o755)) //nolint:gosec // a program
	dir, err := tools.CacheDir("registry")
	if err != nil {
		t.Fatal(err)
	}
	// The test's context ends with it; the registry is for all of them.
	if shore.reg, err = registry.Start(context.WithoutCancel(t.Context()), registry.Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	shore.pushed, shore.converted = map[string]bool{}, map[string]bool{}
}

// newSite starts a site before the shared registry.
func newSite(t *testing.T, opts site.Options) *site.Site {
	t.Helper()
	tools.Need(t, site.Needs...)
	shore.mu.Lock()
	start(t)
	opts.Registry, opts.Airstream = shore.reg, cmp.Or(opts.Airstream, shore.binary)
	shore.mu.Unlock()
	s, err := site.Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		if t.Failed() {
			if log, err := s.Log(); err == nil {
				t.Logf("the daemon's log:\n%s", log)
			}
			if log, err := s.ProxyLog(); err == nil {
				t.Logf("the proxy's log:\n%s", log)
			}
			t.Logf("containerd's log:\n%s", s.Node.LogTail())
		}
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// notShort skips a test with -short if its image is one of the slow ones.
func notShort(t *testing.T, name string) {
	t.Helper()
	if testing.Short() && slices.Contains([]string{"nginx", "python", "node"}, name) {
		t.Skipf("-short: the smaller images stand for %s", name)
	}
}

// lazySnapshotter is the one that most tests are about.
const lazySnapshotter = node.Airstream

// fast is a link whose delay shows and whose rate doesn't cost minutes.
func fast(t *testing.T) link.Profile {
	t.Helper()
	return profile(t, "rtt=60ms,down=40mbit,up=8mbit")
}

func profile(t *testing.T, text string) link.Profile {
	t.Helper()
	p, err := link.Parse(text)
	must(t, err)
	return p
}

// wantLog fails unless the daemon has logged each of the texts.
func wantLog(t *testing.T, s *site.Site, texts ...string) {
	t.Helper()
	log, err := s.Log()
	must(t, err)
	for _, text := range texts {
		if !strings.Contains(log, text) {
			t.Errorf("the daemon has not logged %q", text)
		}
	}
}
