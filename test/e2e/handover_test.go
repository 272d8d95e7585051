package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/test/rig/node"
	"github.com/airstream-io/airstream/test/rig/site"
)

// A read that waits for the link goes on to wait when the daemon is killed, and
// is answered by the next daemon once the link is back.
func TestReadThatWaitsForTheLinkSurvivesTheDaemon(t *testing.T) {
	const onShore = "/usr/bin/perl" // nobody reads it
	img := publish(t, "redis")
	s := newSite(t, site.Options{Profile: fast(t), Config: "[fetch]\nbackground = false\n"})
	ctx := t.Context()
	_, pod := redisPod(t, s, img)
	_, err := pod.Exec(ctx, "sha256sum", "/usr/local/etc/redis.conf") // the program has to be here
	must(t, err)
	_, err = s.Link.Cut(ctx)
	must(t, err)
	type result struct {
		out string
		err error
	}
	read := make(chan result, 1)
	go func() {
		out, err := pod.Exec(ctx, "sha256sum", onShore)
		read <- result{out, err}
	}()
	for range 3 {
		time.Sleep(500 * time.Millisecond) // it waits, in one daemon after the other
		must(t, s.CrashDaemon(ctx))
	}
	select {
	case r := <-read:
		t.Fatalf("%s was read without a link: %q, %v", onShore, r.out, r.err)
	case <-time.After(time.Second):
	}
	_, err = s.Link.Restore(ctx)
	must(t, err)
	r := <-read
	must(t, r.err)
	again, err := pod.Exec(ctx, "sha256sum", onShore)
	must(t, err)
	if r.out != again {
		t.Errorf("read over three crashes: %q, later: %q", r.out, again)
	}
	must(t, pod.Remove(ctx))
}

// The daemon is replaced by another build of it while containers read, and
// containerd calls it all the time: no read and no call fails.
func TestUpgradeWhileContainersRun(t *testing.T) {
	sc, binary := newSceneWithOwnBinary(t)
	ctx := t.Context()
	loop := sc.target(t, "upgrade-loop", targetSize)
	_, err := sc.cri.PullImage(ctx, sc.Ref(loop.tag()), nil)
	must(t, err)
	reader, err := sc.run(ctx, sc.Ref(loop.tag()), loop, "-pause", "2ms")
	must(t, err)

	var calls, failed, pulls atomic.Int64
	stop, callers := make(chan struct{}), sync.WaitGroup{}
	again := func(do func() error) {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := do(); err != nil {
					failed.Add(1)
					t.Errorf("a call during an upgrade: %v", err)
				}
				calls.Add(1)
			}
		})
	}
	again(func() error {
		_, err := sc.Node.Ctr(ctx, "snapshots", "--snapshotter", node.Airstream, "list")
		return err
	})
	again(func() error {
		pulls.Add(1)
		_, err := sc.cri.PullImage(ctx, sc.Ref(loop.tag()), nil)
		return err
	})
	const upgrades = 3
	for i := range upgrades {
		time.Sleep(500 * time.Millisecond) // something is under way
		build(t, binary, fmt.Sprintf("-buildid=upgrade%d", i))
		began := time.Now()
		must(t, sc.UpgradeDaemon(ctx))
		t.Logf("upgrade %d took %v", i+1, time.Since(began).Round(time.Millisecond))
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", sc.DaemonPID()))
		must(t, err)
		if exe != binary {
			t.Errorf("after the upgrade %s runs", exe)
		}
	}
	must(t, reader.readAll(ctx, time.Minute))
	close(stop)
	callers.Wait()
	t.Logf("%d calls, %d of them pulls, %d failed", calls.Load(), pulls.Load(), failed.Load())
	must(t, reader.end(ctx))
}

// newSceneWithOwnBinary starts a scene whose daemon's binary can be replaced.
func newSceneWithOwnBinary(t *testing.T) (*scene, string) {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "airstream")
	build(t, binary, "-buildid=upgrade")
	return newScene(t, site.Options{Airstream: binary}), binary
}

// build builds the daemon and puts it into the place of an older one.
func build(t *testing.T, binary, flags string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-ldflags", flags, "-o", binary+".new", "github.com/airstream-io/airstream/cmd/airstream")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	must(t, os.Rename(binary+".new", binary))
}

// With the link dark and 50 images on the node, everything is there again
// within a second: after a crash, and after a reboot. Complete images start.
func TestRestartWithFiftyImagesDark(t *testing.T) {
	const fifty = 50
	sc := newScene(t, site.Options{})
	ctx := t.Context()
	var targets []*target
	for i := range fifty {
		tg := sc.target(t, fmt.Sprintf("fifty-%02d", i), 64<<10)
		targets = append(targets, tg)
		_, err := sc.cri.PullImage(ctx, sc.Ref(tg.tag()), nil)
		must(t, err)
		_, err = sc.Run(ctx, "prefetch", sc.Ref(tg.tag()))
		must(t, err)
	}
	reader, err := sc.run(ctx, sc.Ref(targets[0].tag()), targets[0], "-pause", "2ms")
	must(t, err)
	must(t, reader.readAll(ctx, time.Minute))
	_, err = sc.Link.Cut(ctx)
	must(t, err)

	check := func(what string, took time.Duration) {
		t.Helper()
		t.Logf("%s: ready after %v", what, took.Round(time.Millisecond))
		if took > time.Second {
			t.Errorf("%s: not ready for %v", what, took)
		}
		all, err := sc.Images(ctx)
		must(t, err)
		if len(all) != fifty {
			t.Errorf("%s: %d images, want %d", what, len(all), fifty)
		}
		for _, img := range all {
			if !img.Complete {
				t.Errorf("%s: %s is not complete", what, img.Names)
			}
		}
	}
	for i := range 3 {
		began := time.Now()
		must(t, sc.CrashDaemon(ctx))
		check(fmt.Sprintf("crash %d", i+1), time.Since(began))
		must(t, reader.readAll(ctx, time.Minute))
	}
	began := time.Now()
	must(t, sc.UpgradeDaemon(ctx))
	check("restart", time.Since(began))
	must(t, reader.readAll(ctx, time.Minute))

	must(t, sc.PowerOff(ctx))
	began = time.Now()
	must(t, sc.StartDaemon(ctx))
	check("reboot", time.Since(began))
	must(t, sc.Node.Restart(ctx))
	for _, tg := range []*target{targets[1], targets[fifty-1]} {
		began := time.Now()
		c, err := sc.run(ctx, sc.Ref(tg.tag()), tg)
		must(t, err)
		must(t, c.readAll(ctx, time.Minute))
		t.Logf("%s: started and read whole %v later", tg.name, time.Since(began).Round(time.Millisecond))
		must(t, c.end(ctx))
	}
	sc.checkMemory(t)
}

// A daemon that nobody keeps can be followed by one that is, and the other way
// round. What it left mounted is replaced.
func TestDaemonWithoutAKeeperIsReplaced(t *testing.T) {
	img := publish(t, "redis")
	s := newSite(t, site.Options{Config: "[fetch]\nbackground = false\n"})
	ctx := t.Context()
	ref := s.Ref("redis:lazy")
	must(t, s.Node.PullTransfer(ctx, ref, lazySnapshotter))
	must(t, s.StopDaemon(ctx))
	if err := unix.Unmount(filepath.Join(s.Root(), "tree"), 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("the tree is still mounted after the end of its daemon: %v", err)
	}
	if _, err := os.Lstat(s.SnapshotterSocket()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the snapshotter's socket is still there: %v", err)
	}
	run, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		_, err := s.Run(run, "node")
		ended <- err
	}()
	waitUntil(t, "it serves", func() bool { _, err := s.Images(ctx); return err == nil })
	wantLog(t, s, "daemon ended")
	start := node.Run{Ref: ref, Snapshotter: lazySnapshotter, Ready: img.Ready()}
	_, err := s.Node.RunUntil(ctx, start)
	must(t, err)
	cancel() // kills it
	if err := <-ended; err == nil {
		t.Error("the daemon ended by itself")
	}
	must(t, s.StartDaemon(ctx))
	_, err = s.Node.RunUntil(ctx, start)
	must(t, err)
}
