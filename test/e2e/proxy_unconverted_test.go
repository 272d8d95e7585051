package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/airstream-io/airstream/test/rig/checker"
	"github.com/airstream-io/airstream/test/rig/images"
	"github.com/airstream-io/airstream/test/rig/link"
	"github.com/airstream-io/airstream/test/rig/node"
	"github.com/airstream-io/airstream/test/rig/refetch"
	"github.com/airstream-io/airstream/test/rig/site"
	"github.com/airstream-io/airstream/test/rig/tree"
)

// wantOriginal fails unless the node has one image, with all layers lazy, under the
// digest under which somebody pushed it.
func (sc *scene) wantOriginal(t *testing.T, img *images.Image) site.Image {
	t.Helper()
	oci, err := img.OCI()
	must(t, err)
	want, err := oci.Digest()
	must(t, err)
	all, err := sc.Images(t.Context())
	must(t, err)
	if len(all) != 1 || all[0].Manifest != want.String() || all[0].Lazy != img.Layers || all[0].Layers != img.Layers {
		t.Fatalf("images: %+v, want %s with %d lazy layers", all, want, img.Layers)
	}
	return all[0]
}

// An image that nobody has converted starts through the proxy before all of it has
// crossed, under its own digest. When all of it is here it is what its diffIDs say, its
// tree is what overlayfs unpacks, and it starts without a link.
func TestAnImageThatWasNeverConvertedStartsLazily(t *testing.T) {
	img := push(t, "redis")
	sc := proxied(t, fast(t), proxyOnly)
	ctx := t.Context()
	ref := sc.Ref("redis:plain")
	run := node.Run{Ref: ref, Ready: img.Ready()}
	began, before := time.Now(), sc.down(ctx, t)
	_, err := sc.cri.PullImage(ctx, ref, nil)
	must(t, err)
	pulled := time.Since(began)
	_, err = sc.cri.RunUntil(ctx, run)
	must(t, err)
	crossed := sc.down(ctx, t) - before
	t.Logf("pulled after %v, ready after %v and %.1f of %.1f MB", pulled.Round(time.Millisecond), time.Since(began).Round(time.Millisecond), float64(crossed)/1e6, float64(img.Compressed)/1e6)
	if crossed > img.Compressed*6/10 {
		t.Errorf("%d bytes of %d crossed before it was ready: that is not lazy", crossed, img.Compressed)
	}
	if got := sc.wantOriginal(t, img); got.Complete {
		t.Errorf("%+v is complete at the first start", got)
	}

	_, err = sc.Link.SetProfile(ctx, link.Direct())
	must(t, err)
	_, err = sc.Run(ctx, "prefetch", ref)
	must(t, err)
	if crossed = sc.down(ctx, t) - before; crossed > img.Compressed*12/10 {
		t.Errorf("%d bytes crossed for an image of %d", crossed, img.Compressed)
	}
	sc.alone(t)
	if got := sc.wantOriginal(t, img); !got.Complete || got.Dark != "yes" {
		t.Errorf("after a prefetch: %+v", got)
	}
	log, err := sc.Log()
	must(t, err)
	if n := strings.Count(log, "is whole, and what its image says"); n != img.Layers {
		t.Errorf("%d layers of %d were compared with the image", n, img.Layers)
	}
	if !testing.Short() {
		sc.wantTreeOf(t, img, "redis:plain")
	}

	_, err = sc.Link.Cut(ctx)
	must(t, err)
	must(t, sc.StopDaemon(ctx))
	must(t, sc.StartDaemon(ctx))
	must(t, sc.Node.Restart(ctx))
	_, err = sc.cri.RunUntil(ctx, run)
	must(t, err)
	_, err = sc.cri.PullImage(ctx, ref, nil)
	must(t, err)
}

// Trees with everything that a tar can say are those that overlayfs unpacks, though
// nobody has converted them.
func TestTreesOfImagesThatWereNeverConverted(t *testing.T) {
	names := []string{"oddities", "odd-implied", "odd-rawnames", "nginx"}
	if soak() {
		names = append(names, "python", "node")
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			notShort(t, name)
			img := push(t, name)
			sc := proxied(t, link.Direct(), proxyOnly)
			sc.wantTreeOf(t, img, name+":plain")
			_, err := sc.Run(t.Context(), "prefetch", sc.Ref(name+":plain"))
			must(t, err)
			sc.wantOriginal(t, img)
		})
	}
}

// wantTreeOf fails unless the tree of an image is what overlayfs unpacks of
// NAME:plain.
func (sc *scene) wantTreeOf(t *testing.T, img *images.Image, tag string) {
	t.Helper()
	ctx := t.Context()
	must(t, sc.Node.PullTransfer(ctx, sc.Ref(tag), lazySnapshotter)) // for ctr's namespace
	got := view(t, sc.Site, tag, lazySnapshotter)
	must(t, sc.PastMirror())
	must(t, sc.Node.PullTransfer(ctx, sc.Ref(img.Name+":plain"), node.Overlayfs))
	must(t, sc.ThroughMirror())
	diffs, err := tree.Compare(ctx, view(t, sc.Site, img.Name+":plain", node.Overlayfs), got, treeOptions(img))
	must(t, err)
	if len(diffs) > 0 {
		t.Errorf("%s: %d differences\n%s", tag, len(diffs), tree.Lines(diffs, 40))
	}
}

// unconverted pulls an image that nobody has converted, and returns a container that
// reads it when a part of it has crossed.
func (sc *scene) unconverted(ctx context.Context, t *testing.T, tg *target) *checking {
	t.Helper()
	return sc.readHalf(ctx, t, sc.Ref(tg.name+":plain"), tg)
}

// The proxy dies while a container reads an image that was never converted, then the
// daemon does. What had crossed doesn't cross again, and what it is compared with is not
// lost.
func TestUnconvertedWhoeverDies(t *testing.T) {
	slow := profile(t, "rtt=20ms,down=16mbit,up=8mbit")
	sc := proxied(t, slow, proxyOnly)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	tg := newTarget(t, "proxy-unconverted", 12<<20)
	before := sc.down(ctx, t)
	c := sc.unconverted(ctx, t, tg)
	must(t, sc.KillProxy())
	_, err := c.until(ctx, time.Minute, "it waits", func(r checker.Report) bool { return r.Waiting > 1000 })
	must(t, err)
	must(t, sc.StartProxy(ctx))
	at := sc.down(ctx, t)
	waitUntil(t, "it goes on", func() bool { return sc.down(ctx, t)-at > 1<<20 })
	must(t, sc.CrashDaemon(ctx))
	must(t, c.readAll(ctx, time.Minute))
	_, err = sc.Run(ctx, "prefetch", sc.Ref(tg.name+":plain"))
	must(t, err)
	wantLog(t, sc.Site, "is whole, and what its image says")
	lost := slow.Down.Bytes(refetch.Lost + 200*time.Millisecond)
	sc.crossedOnce(ctx, t, before, tg, lost)
	sc.alone(t)
	must(t, c.end(ctx))
}
