package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/airstream-io/airstream/test/rig/netns"
	"github.com/airstream-io/airstream/test/rig/node"
	"github.com/airstream-io/airstream/test/rig/site"
	"github.com/airstream-io/airstream/test/rig/tools"
)

// What the converter writes is eStargz: stargz-snapshotter starts it lazily.
func TestStargzSnapshotterRunsConvertedImage(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: stargz-snapshotter has to be built")
	}
	binary := buildStargz(t)
	img := publish(t, "redis")
	s := newSite(t, site.Options{Profile: fast(t), NoDaemon: true})
	ctx := t.Context()
	must(t, s.PastMirror())
	dir := t.TempDir()
	socket := filepath.Join(dir, "stargz.sock")
	stargz, err := s.Link.Node.Start(netns.Command{
		Name: "stargz", Args: []string{binary, socket, filepath.Join(dir, "root"), s.Front.Host()}, Log: filepath.Join(dir, "log"),
	})
	must(t, err)
	n, err := node.Start(ctx, node.Options{Namespace: s.Link.Node, AirstreamSocket: socket, AirstreamRoot: filepath.Join(dir, "root")})
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if t.Failed() {
			t.Logf("the log of stargz-snapshotter:\n%s", stargz.LogTail())
		}
		// The mounts of containers lie over those of the snapshotter.
		if err := n.Stop(ctx); err != nil {
			t.Error(err)
		}
		if err := stargz.Stop(ctx, 10*time.Second); err != nil {
			t.Error(err)
		}
	})
	must(t, n.SetHosts(map[string]string{s.Front.Host(): "server = \"" + s.Front.URL() + "\"\n"}))
	ref := s.Ref("redis:lazy")
	must(t, n.PullTransfer(ctx, ref, node.Airstream)) // by that name the node knows the socket
	_, err = n.RunUntil(ctx, node.Run{Ref: ref, Snapshotter: node.Airstream, Ready: img.Ready()})
	must(t, err)
	sent := s.Front.Counts().Sent
	t.Logf("ready after %.1f of %.1f MB", float64(sent)/1e6, float64(img.Compressed)/1e6)
	if sent > img.Compressed*6/10 {
		t.Errorf("%d bytes of %d crossed: it did not find the image lazy", sent, img.Compressed)
	}
}

// buildStargz builds stargz-snapshotter, from a module of its own, or skips the
// test.
func buildStargz(t *testing.T) string {
	t.Helper()
	tools.Need(t, site.Needs...)
	dir, err := tools.CacheDir("build")
	must(t, err)
	must(t, os.MkdirAll(dir, 0o755))
	path := filepath.Join(dir, "stargz")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, ".")
	cmd.Dir = filepath.Join("..", "stargz")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-mod=readonly")
	if out, err := cmd.CombinedOutput(); err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		t.Skipf("stargz-snapshotter can't be built here: %v: %s", err, lines[len(lines)-1])
	}
	return path
}
