package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/airstream-io/airstream/test/rig/link"
	"github.com/airstream-io/airstream/test/rig/netns"
)

// site is a shore with a registry and a node, joined by a link.
type site struct {
	link *link.Link
	node *Node
	ref  string // an image in the registry
}

// newSite starts everything, with an image that says hello in the registry.
func newSite(t *testing.T, profile string) *site {
	t.Helper()
	return newSiteWith(t, profile, func(*Options) {})
}

// newSiteWith does so with changed options of the node.
func newSiteWith(t *testing.T, profile string, change func(*Options)) *site {
	t.Helper()
	if err := Available(""); err != nil {
		t.Skip(err)
	}
	p, err := link.Parse(profile)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{}
	if s.link, err = link.Start(t.Context(), link.Options{EmulatorOptions: link.EmulatorOptions{Profile: p}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.link.Close(); err != nil {
			t.Error(err)
		}
	})
	host := startRegistry(t, s.link.Shore)
	s.ref = host + "/test/hello:1"
	push(t, s.link.Shore, s.ref)
	opts := Options{
		Namespace: s.link.Node,
		Hosts:     map[string]string{host: fmt.Sprintf("server = %q\n", "http://"+host)},
	}
	change(&opts)
	s.node, err = Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopClean(t, s.node) })
	return s
}

// startRegistry starts a real registry in the namespace.
func startRegistry(t *testing.T, ns *netns.NS) (host string) {
	t.Helper()
	bin, err := BinDir()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "registry")); err != nil {
		t.Skipf("no registry in %s", bin)
	}
	dir := t.TempDir()
	host = netip.AddrPortFrom(link.ShoreAddr, 5000).String()
	config := fmt.Sprintf("version: 0.1\nlog: {level: warn}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: %q}\n", dir, host)
	path := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	process, err := ns.Start(netns.Command{
		Args: []string{filepath.Join(bin, "registry"), "serve", path},
		Env:  append(os.Environ(), "OTEL_TRACES_EXPORTER=none"),
		Log:  filepath.Join(dir, "log"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := process.Stop(context.Background(), 10*time.Second); err != nil {
			t.Error(err)
		}
	})
	err = poll(t.Context(), 20*time.Millisecond, "registry is not ready", func() (bool, error) {
		select {
		case <-process.Done():
			return false, process.Explain(errors.New("ended"))
		default:
		}
		conn, err := ns.Dial(t.Context(), "tcp", host)
		if err != nil {
			return false, nil //nolint:nilerr // it is starting
		}
		return true, conn.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	return host
}

// push builds the image that says hello and pushes it from within ns.
func push(t *testing.T, ns *netns.NS, ref string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "hello")
	if err := buildStatic(t.Context(), "github.com/airstream-io/airstream/test/rig/node/testdata/hello", program); err != nil {
		t.Fatal(err)
	}
	img, err := StaticImage(program, v1.Config{Entrypoint: []string{"/hello"}, Env: []string{"GREETING=none"}})
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DialContext: ns.Dial}
	defer transport.CloseIdleConnections()
	if err := remote.Write(tag, img, remote.WithContext(t.Context()), remote.WithTransport(transport)); err != nil {
		t.Fatal(err)
	}
}

// stopClean stops a node and fails the test if anything of it is left.
func stopClean(t *testing.T, n *Node) {
	t.Helper()
	if err := n.Stop(context.Background()); err != nil {
		t.Error(err)
	}
	checkGone(t, n)
}

// checkGone fails the test if anything of a node is left.
func checkGone(t *testing.T, n *Node) {
	t.Helper()
	if _, err := os.Stat(n.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there", n.Dir())
	}
	parents, err := processes()
	if err != nil {
		t.Fatal(err)
	}
	if shims := shimsOf(parents, n.Socket()); len(shims) > 0 {
		t.Errorf("shims %v still run", shims)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), n.Dir()) {
		t.Errorf("mounts are left:\n%s", mounts)
	}
	roots, err := cgroupRoots()
	if err != nil {
		t.Fatal(err)
	}
	for _, root := range roots {
		if _, err := os.Stat(filepath.Join(root, n.cgroup())); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("control group left in %s", root)
		}
	}
}
