package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/airstream-io/airstream/test/rig/link"
	"github.com/airstream-io/airstream/test/rig/node"
	"github.com/airstream-io/airstream/test/rig/site"
)

// The main job, for every real image: it starts while most of it is on shore,
// and once all of it is here it starts without a link, after a restart of the
// daemon and of containerd.
func TestStartsLazilyAndThenDark(t *testing.T) {
	for _, name := range []string{"redis", "nginx", "python", "node"} {
		t.Run(name, func(t *testing.T) {
			notShort(t, name)
			img := publish(t, name)
			s := newSite(t, site.Options{Profile: fast(t), Config: "[fetch]\nbackground = false\n"})
			ctx := t.Context()
			ref := s.Ref(name + ":lazy")
			run := node.Run{Ref: ref, Snapshotter: lazySnapshotter, Ready: img.Ready()}

			began := time.Now()
			must(t, s.Node.PullTransfer(ctx, ref, lazySnapshotter))
			_, err := s.Node.RunUntil(ctx, run)
			must(t, err)
			before := s.Front.Counts().Sent
			t.Logf("ready after %v, %d ranges and %.1f of %.1f MB", time.Since(began).Round(time.Millisecond), s.Front.Counts().Ranges, float64(before)/1e6, float64(img.Compressed)/1e6)
			if before > img.Compressed*6/10 {
				t.Errorf("%d bytes of %d crossed before it was ready: that is not lazy", before, img.Compressed)
			}
			all, err := s.Images(ctx)
			must(t, err)
			if len(all) != 1 || all[0].Lazy != img.Layers || all[0].Complete || all[0].Missing == 0 {
				t.Errorf("images: %+v", all)
			}

			_, err = s.Link.SetProfile(ctx, link.Direct())
			must(t, err)
			_, err = s.Run(ctx, "prefetch", ref)
			must(t, err)
			_, err = s.Link.Cut(ctx)
			must(t, err)
			must(t, s.StopDaemon(ctx))
			must(t, s.StartDaemon(ctx))
			must(t, s.Node.Restart(ctx))
			_, err = s.Node.RunUntil(ctx, run)
			must(t, err)
			must(t, s.Node.PullTransfer(ctx, ref, lazySnapshotter)) // a tag resolves, too
			all, err = s.Images(ctx)
			must(t, err)
			if len(all) != 1 || !all[0].Complete {
				t.Errorf("images, dark: %+v", all)
			}
		})
	}
}

// As kubelet does it.
func TestStartsThroughCRI(t *testing.T) {
	for _, tag := range []string{"lazy", "plain", "docker"} {
		t.Run(tag, func(t *testing.T) {
			img := publish(t, "redis")
			s := newSite(t, site.Options{Profile: fast(t)})
			cri, err := s.Node.CRI()
			must(t, err)
			t.Cleanup(func() { must(t, cri.Close()) })
			ref := s.Ref("redis:" + tag)
			_, err = cri.PullImage(t.Context(), ref, nil)
			must(t, err)
			result, err := cri.RunUntil(t.Context(), node.Run{Ref: ref, Ready: img.Ready()})
			must(t, err)
			t.Logf("ready after %v: %s", result.Ready.Round(time.Millisecond), result.Line)
			if tag == "lazy" {
				wantLog(t, s, "image is lazy")
			} else {
				wantLog(t, s, "image is not lazy", "layer is not lazy")
			}
			must(t, cri.RemoveImage(t.Context(), ref))
		})
	}
}

// Two tenants of one containerd share what has crossed.
func TestTwoNamespacesShareWhatHasCrossed(t *testing.T) {
	img := publish(t, "redis")
	s := newSite(t, site.Options{Profile: fast(t), Config: "[fetch]\nbackground = false\n"})
	ctx := t.Context()
	ref := s.Ref("redis:lazy")
	start := func(namespace string) int64 {
		before := s.Front.Counts().Sent
		_, err := s.Node.Ctr(ctx, "--namespace", namespace, "images", "pull", "--hosts-dir", s.Node.Dir()+"/certs.d", "--snapshotter", lazySnapshotter, ref)
		must(t, err)
		_, err = s.Node.RunUntil(ctx, node.Run{Ref: ref, Snapshotter: lazySnapshotter, Namespace: namespace, Ready: img.Ready()})
		must(t, err)
		return settled(s) - before
	}
	first := start("one")
	second := start("two")
	if second > first/10 {
		t.Errorf("%d bytes crossed for the first namespace and %d for the second", first, second)
	}
}

// settled returns how much has crossed once nothing more crosses: what was
// read ahead for a container may still be on its way when it is ready.
func settled(s *site.Site) int64 {
	for sent := s.Front.Counts().Sent; ; {
		time.Sleep(500 * time.Millisecond)
		now := s.Front.Counts().Sent
		if now == sent {
			return now
		}
		sent = now
	}
}

// Images that share layers share what has crossed of them, too: the base of
// all real images is one.
func TestImagesShareLayers(t *testing.T) {
	notShort(t, "nginx")
	redis, nginx := publish(t, "redis"), publish(t, "nginx")
	s := newSite(t, site.Options{Config: "[fetch]\nbackground = false\n"})
	ctx := t.Context()
	must(t, s.Node.PullTransfer(ctx, s.Ref("redis:lazy"), lazySnapshotter))
	_, err := s.Run(ctx, "prefetch", s.Ref("redis:lazy"))
	must(t, err)
	_, err = s.Node.RunUntil(ctx, node.Run{Ref: s.Ref("redis:lazy"), Snapshotter: lazySnapshotter, Ready: redis.Ready()})
	must(t, err)
	before := s.Front.Counts().Sent
	must(t, s.Node.PullTransfer(ctx, s.Ref("nginx:lazy"), lazySnapshotter))
	_, err = s.Run(ctx, "prefetch", s.Ref("nginx:lazy"))
	must(t, err)
	_, err = s.Node.RunUntil(ctx, node.Run{Ref: s.Ref("nginx:lazy"), Snapshotter: lazySnapshotter, Ready: nginx.Ready()})
	must(t, err)
	if crossed := s.Front.Counts().Sent - before; crossed > nginx.Compressed/3 {
		t.Errorf("%d bytes crossed for nginx, of %d: its base was here", crossed, nginx.Compressed)
	}
}

// What was never converted runs, too. Its layers cross whole, an outage does
// not make them begin again, and the log says why it was not quick.
func TestUnconvertedImageGoesOnAfterAnOutage(t *testing.T) {
	img := publish(t, "redis")
	s := newSite(t, site.Options{Profile: fast(t)})
	ctx := t.Context()
	ref := s.Ref("redis:plain")
	pulled := make(chan error, 1)
	go func() { pulled <- s.Node.PullTransfer(ctx, ref, lazySnapshotter) }()
	for s.Front.Counts().Sent < img.Compressed/3 {
		select {
		case err := <-pulled:
			t.Fatalf("the pull ended before the outage: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	_, err := s.Link.Reset(ctx)
	must(t, err)
	time.Sleep(2 * time.Second)
	_, err = s.Link.Restore(ctx)
	must(t, err)
	must(t, <-pulled)
	_, err = s.Node.RunUntil(ctx, node.Run{Ref: ref, Snapshotter: lazySnapshotter, Ready: img.Ready()})
	must(t, err)
	sent := s.Front.Counts().Sent
	t.Logf("%d bytes crossed for an image of %d", sent, img.Compressed)
	if sent > img.Compressed*12/10 {
		t.Errorf("%d bytes crossed for an image of %d: something began again", sent, img.Compressed)
	}
	wantLog(t, s, "image is not lazy", "layer is not lazy")
	log, err := s.Log()
	must(t, err)
	if strings.Count(log, "msg=\"layer is not lazy\"") != img.Layers {
		t.Errorf("the log has %d lines for %d layers that are not lazy", strings.Count(log, "msg=\"layer is not lazy\""), img.Layers)
	}
}
