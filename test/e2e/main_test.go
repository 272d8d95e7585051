// Package e2e tests the whole of Airstream as users run it: a registry on
// shore, an emulated link, and a node with containerd, runc, FUSE and the
// daemon.
package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/airstream-io/airstream/test/rig/images"
	"github.com/airstream-io/airstream/test/rig/link"
	"github.com/airstream-io/airstream/test/rig/node"
	"github.com/airstream-io/airstream/test/rig/registry"
	"github.com/airstream-io/airstream/test/rig/site"
	"github.com/airstream-io/airstream/test/rig/tools"
)

// shore is the registry that all tests share, with what was pushed to it.
var shore struct {
	mu     sync.Mutex
	reg    *registry.Registry
	binary string
	done   map[string]bool // guarded by mu; images that are there, plain and converted
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shore.reg != nil {
		if err := shore.reg.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// publish puts an image on shore as NAME:plain (OCI), NAME:docker (Docker
// schema 2) and NAME:lazy (converted), and returns what it is.
func publish(t *testing.T, name string) *images.Image {
	t.Helper()
	tools.Need(t, append(images.Needs(name), site.Needs...)...)
	img, err := images.Build(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	shore.mu.Lock()
	defer shore.mu.Unlock()
	start(t)
	if shore.done[name] {
		return img
	}
	oci, err := img.OCI()
	if err != nil {
		t.Fatal(err)
	}
	docker, err := img.Docker()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := shore.reg.Push(t.Context(), name+":plain", oci); err != nil {
		t.Fatal(err)
	}
	if _, err := shore.reg.Push(t.Context(), name+":docker", docker); err != nil {
		t.Fatal(err)
	}
	if _, err := site.Convert(t.Context(), shore.binary, shore.reg, name+":plain", name+":lazy"); err != nil {
		t.Fatal(err)
	}
	shore.done[name] = true
	return img
}

// start starts the shared registry. shore.mu is held.
func start(t *testing.T) {
	t.Helper()
	if shore.reg != nil {
		return
	}
	var err error
	if shore.binary, err = site.Build(t.Context()); err != nil {
		t.Fatal(err)
	}
	dir, err := tools.CacheDir("registry")
	if err != nil {
		t.Fatal(err)
	}
	// The test's context ends with it; the registry is for all of them.
	if shore.reg, err = registry.Start(context.WithoutCancel(t.Context()), registry.Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	shore.done = map[string]bool{}
}

// newSite starts a site before the shared registry.
func newSite(t *testing.T, opts site.Options) *site.Site {
	t.Helper()
	tools.Need(t, site.Needs...)
	shore.mu.Lock()
	start(t)
	opts.Registry, opts.Airstream = shore.reg, shore.binary
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

// lazySnapshotter is the one that most tests are about.
const lazySnapshotter = node.Airstream

// fast is a link whose delay shows and whose rate doesn't cost minutes.
func fast(t *testing.T) link.Profile {
	t.Helper()
	p, err := link.Parse("rtt=60ms,down=40mbit,up=8mbit")
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
