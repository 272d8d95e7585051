package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/airstream-io/airstream/test/rig/images"
	"github.com/airstream-io/airstream/test/rig/node"
	"github.com/airstream-io/airstream/test/rig/site"
)

// redisPod pulls redis through CRI and starts it in a pod.
func redisPod(t *testing.T, s *site.Site, img *images.Image) (*node.CRI, *node.Pod) {
	t.Helper()
	ctx := t.Context()
	cri, err := s.Node.CRI()
	must(t, err)
	t.Cleanup(func() { must(t, cri.Close()) })
	ref := s.Ref("redis:lazy")
	_, err = cri.PullImage(ctx, ref, nil)
	must(t, err)
	pod, err := cri.StartPod(ctx, node.Run{Ref: ref})
	must(t, err)
	_, err = pod.Wait(ctx, img.Ready())
	must(t, err)
	return cri, pod
}

// A daemon that is killed while it serves a container loses nothing of what
// has crossed, and the next one needs nobody to clean up. The container that
// ran over the crash runs on: what it reads while nobody serves waits, and is
// right.
func TestNextDaemonGoesOnAfterACrash(t *testing.T) {
	const here = "/usr/bin/redis-server"
	img := publish(t, "redis")
	s := newSite(t, site.Options{Config: "[fetch]\nbackground = false\n"})
	ctx := t.Context()
	cri, pod := redisPod(t, s, img)
	ref := s.Ref("redis:lazy")
	_, err := s.Run(ctx, "prefetch", ref)
	must(t, err)
	want, err := pod.Exec(ctx, "sha256sum", here, "/usr/bin/perl")
	must(t, err)

	must(t, s.KillDaemon())
	_, err = s.Link.Cut(ctx)
	must(t, err)
	type result struct {
		out string
		err error
	}
	asked := make(chan result, 1)
	go func() {
		out, err := pod.Exec(ctx, "sh", "-c", "ls -R /usr/share /usr/lib >/dev/null && sha256sum "+here+" /usr/bin/perl")
		asked <- result{out, err}
	}()
	select {
	case r := <-asked:
		t.Fatalf("looked at all names with nobody there: %q, %v", r.out, r.err)
	case <-time.After(time.Second):
	}
	must(t, s.StartDaemon(ctx))
	if r := <-asked; r.err != nil || r.out != want {
		t.Errorf("read over the crash: %q, %v, want %q", r.out, r.err, want)
	}
	if pong, err := pod.Exec(ctx, "redis-cli", "ping"); err != nil || strings.TrimSpace(pong) != "PONG" {
		t.Errorf("redis that ran over the crash: %q, %v", pong, err)
	}
	_, err = cri.RunUntil(ctx, node.Run{Ref: ref, Ready: img.Ready(), Args: []string{"redis-server", "--port", "6380"}})
	must(t, err)
	all, err := s.Images(ctx)
	must(t, err)
	if len(all) != 1 || !all[0].Complete {
		t.Errorf("images: %+v", all)
	}
	must(t, pod.Remove(ctx))
}

// A daemon that is killed half way through a prefetch has kept what had
// crossed until a moment before.
func TestCrashHalfWayKeepsWhatHasCrossed(t *testing.T) {
	img := publish(t, "redis")
	s := newSite(t, site.Options{Profile: profile(t, "rtt=60ms,down=100mbit,up=20mbit"), Config: "[fetch]\nbackground = false\n"})
	ctx := t.Context()
	ref := s.Ref("redis:lazy")
	must(t, s.Node.PullTransfer(ctx, ref, lazySnapshotter))
	ended := make(chan error, 1)
	go func() {
		_, err := s.Run(ctx, "prefetch", ref)
		ended <- err
	}()
	waitUntil(t, "half of the image has crossed", func() bool { return s.Front.Counts().Sent > img.Compressed/2 })
	must(t, s.KillDaemon())
	if err := <-ended; err == nil {
		t.Error("airstream prefetch says that all is well, and its daemon was killed")
	}
	must(t, s.StartDaemon(ctx))
	_, err := s.Run(ctx, "prefetch", ref)
	must(t, err)
	sent := s.Front.Counts().Sent
	t.Logf("%.1f MB crossed for an image of %.1f MB", float64(sent)/1e6, float64(img.Compressed)/1e6)
	if sent > img.Compressed*14/10 {
		t.Errorf("%d bytes crossed for an image of %d: what had crossed was lost", sent, img.Compressed)
	}
	_, err = s.Link.Cut(ctx)
	must(t, err)
	_, err = s.Node.RunUntil(ctx, node.Run{Ref: ref, Snapshotter: lazySnapshotter, Ready: img.Ready()})
	must(t, err)
}

// While the link is down, a container reads what is here, waits for what isn't,
// and sees no error.
func TestReadsWaitForTheLink(t *testing.T) {
	const (
		here    = "/usr/local/etc/redis.conf" // redis reads it when it starts
		onShore = "/usr/bin/perl"             // nobody reads it
	)
	img := publish(t, "redis")
	s := newSite(t, site.Options{Profile: fast(t), Config: "[fetch]\nbackground = false\n"})
	ctx := t.Context()
	_, pod := redisPod(t, s, img)
	_, err := pod.Exec(ctx, "sha256sum", here) // the program has to be here, too
	must(t, err)
	_, err = s.Link.Cut(ctx)
	must(t, err)

	began := time.Now()
	_, err = pod.Exec(ctx, "sha256sum", here)
	must(t, err)
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it took %v to read what is here", took)
	}
	type result struct {
		out string
		err error
	}
	read := make(chan result, 1)
	go func() {
		out, err := pod.Exec(ctx, "sha256sum", onShore)
		read <- result{out, err}
	}()
	select {
	case r := <-read:
		t.Fatalf("%s was read without a link: %q, %v", onShore, r.out, r.err)
	case <-time.After(3 * time.Second):
	}
	began = time.Now()
	_, err = s.Link.Restore(ctx)
	must(t, err)
	r := <-read
	must(t, r.err)
	t.Logf("read %v after the link was back", time.Since(began).Round(time.Millisecond))
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the link was back for %v before the file was read", took)
	}
	must(t, pod.Remove(ctx))
}

// waitUntil waits for a state that is sure to come.
func waitUntil(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after a minute: not yet that %s", what)
		}
	}
}
