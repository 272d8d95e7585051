package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/airstream-io/airstream/test/rig/checker"
	"github.com/airstream-io/airstream/test/rig/link"
	"github.com/airstream-io/airstream/test/rig/node"
	"github.com/airstream-io/airstream/test/rig/refetch"
	"github.com/airstream-io/airstream/test/rig/registry"
	"github.com/airstream-io/airstream/test/rig/site"
)

// proxyOnly has a node wait for its proxy, however long that takes.
const proxyOnly = "registries = false\n"

// proxied starts a scene whose node asks a proxy.
func proxied(t *testing.T, p link.Profile, settings string) *scene {
	t.Helper()
	return newScene(t, site.Options{Profile: p, NoCredentials: true, Proxy: &site.Proxy{Node: settings}})
}

// alone fails if the node asked a registry for anything: the proxy asks a front of
// its own.
func (sc *scene) alone(t *testing.T) {
	t.Helper()
	if c := sc.Front.Counts(); c.Connections > 0 {
		t.Errorf("the node asked the registry beside its proxy, on %d connections: %+v", c.Connections, sc.Front.Log())
	}
	if len(sc.ProxyFront.Requests(registry.KindManifest)) == 0 {
		t.Error("the proxy asked its registry for nothing")
	}
}

// down returns how many bytes of IP packets have arrived on the node.
func (sc *scene) down(ctx context.Context, t *testing.T) int64 {
	t.Helper()
	st, err := sc.Link.Stats(ctx)
	must(t, err)
	return int64(st.Down.Delivered.Bytes)
}

// A node that has no credentials, and asks no registry, starts an image through its
// proxy; has its files as they are; and once all of it is here needs neither.
func TestProxyIsAllThatANodeNeeds(t *testing.T) {
	img := publish(t, "redis")
	_, err := site.Convert(t.Context(), shore.binary, shore.reg, "redis:plain", "redis:hot", "--record", "", "--ready", img.ReadyLine)
	must(t, err)
	sc := proxied(t, fast(t), proxyOnly)
	ctx := t.Context()
	ref := sc.Ref("redis:hot")
	run := node.Run{Ref: ref, Ready: img.Ready()}
	began, before := time.Now(), sc.down(ctx, t)
	_, err = sc.cri.PullImage(ctx, ref, nil)
	must(t, err)
	_, err = sc.cri.RunUntil(ctx, run)
	must(t, err)
	crossed := sc.down(ctx, t) - before
	t.Logf("ready after %v and %.1f of %.1f MB", time.Since(began).Round(time.Millisecond), float64(crossed)/1e6, float64(img.Compressed)/1e6)
	if crossed > img.Compressed*6/10 {
		t.Errorf("%d bytes of %d crossed before it was ready: that is not lazy", crossed, img.Compressed)
	}

	_, err = sc.Link.SetProfile(ctx, link.Direct())
	must(t, err)
	_, err = sc.Run(ctx, "prefetch", ref)
	must(t, err)
	if crossed = sc.down(ctx, t) - before; crossed > img.Compressed*12/10 {
		t.Errorf("%d bytes crossed for an image of %d", crossed, img.Compressed)
	}
	sc.alone(t)
	all, err := sc.Images(ctx)
	must(t, err)
	if len(all) != 1 || !all[0].Complete || all[0].Lazy != img.Layers {
		t.Errorf("images: %+v", all)
	}

	if !testing.Short() { // the tree is the same whoever brings it; the checkers below see to the bytes
		sc.wantTreeOf(t, img, "redis:hot")
	}

	_, err = sc.Link.Cut(ctx)
	must(t, err)
	must(t, sc.StopDaemon(ctx))
	must(t, sc.StartDaemon(ctx))
	must(t, sc.Node.Restart(ctx))
	_, err = sc.cri.RunUntil(ctx, run)
	must(t, err)
	_, err = sc.cri.PullImage(ctx, ref, nil) // a tag resolves, too
	must(t, err)
}

// read starts a container that checks all that is in an image, and returns when
// some of that has crossed.
func (sc *scene) read(ctx context.Context, t *testing.T, tg *target) *checking {
	t.Helper()
	return sc.readHalf(ctx, t, sc.Ref(tg.tag()), tg)
}

// readHalf does it with an image of the target's content.
func (sc *scene) readHalf(ctx context.Context, t *testing.T, ref string, tg *target) *checking {
	t.Helper()
	before := sc.down(ctx, t)
	_, err := sc.cri.PullImage(ctx, ref, nil)
	must(t, err)
	c, err := sc.run(ctx, ref, tg, "-pause", "2ms")
	must(t, err)
	waitUntil(t, "some of it has crossed", func() bool { return sc.down(ctx, t)-before > tg.spec.Size/2 })
	if r, err := c.report(); err != nil || r.Passes > 0 {
		t.Fatalf("too early or too late for an outage: %+v, %v", r, err)
	}
	return c
}

// The proxy dies while a container reads. Where registries may be asked, they are,
// for what has not crossed; and the proxy again once it is back.
func TestProxyDiesAndRegistriesStandIn(t *testing.T) {
	sc := proxied(t, profile(t, goodLink), "patience = \"300ms\"\n")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	tg := sc.target(t, "proxy-dies", bulkSize)
	before := sc.down(ctx, t)
	c := sc.read(ctx, t, tg)
	sc.alone(t)
	must(t, sc.KillProxy())
	must(t, c.readAll(ctx, time.Minute))
	_, err := sc.Run(ctx, "prefetch", sc.Ref(tg.tag()))
	must(t, err)
	sc.check(t, 0, tg)
	if sc.Front.Counts().Requests[registry.KindBlob] == 0 {
		t.Error("no registry was asked")
	}
	sc.crossedOnce(ctx, t, before, tg, 0)

	must(t, sc.StartProxy(ctx))
	sc.wantProxy(t)
	asked := sc.Front.Counts().Total()
	after := sc.target(t, "proxy-is-back", targetSize)
	_, err = sc.cri.PullImage(ctx, sc.Ref(after.tag()), nil)
	must(t, err)
	other, err := sc.run(ctx, sc.Ref(after.tag()), after)
	must(t, err)
	must(t, other.readAll(ctx, time.Minute))
	must(t, c.readAll(ctx, time.Minute))
	if n := sc.Front.Counts().Total() - asked; n > 0 {
		t.Errorf("the registry was asked %d times after the proxy was back", n)
	}
	must(t, other.end(ctx))
	must(t, c.end(ctx))
}

// wantProxy waits until the proxy is in reach.
func (sc *scene) wantProxy(t *testing.T) {
	t.Helper()
	waitUntil(t, "the proxy is in reach", func() bool {
		out, err := sc.Run(t.Context(), "status")
		must(t, err)
		return strings.Contains(out, ", as node")
	})
}

// crossedOnce fails if more has crossed than an image takes once, and what may have
// been lost. TCP and TLS take
// their share, as do acknowledgements and what a registry's ranges overlap in.
func (sc *scene) crossedOnce(ctx context.Context, t *testing.T, before int64, tg *target, lost int64) {
	t.Helper()
	m, err := tg.img.Manifest()
	must(t, err)
	size := m.Layers[0].Size
	crossed := sc.down(ctx, t) - before
	t.Logf("%.2f MB crossed for a layer of %.2f MB", float64(crossed)/1e6, float64(size)/1e6)
	if crossed > size*110/100+lost {
		t.Errorf("%d bytes crossed for a layer of %d: some of it crossed twice", crossed, size)
	}
}

// The proxy dies while a container reads, and the node may ask nobody else. What
// reads waits, and goes on when the proxy is back, with what has not crossed.
func TestProxyDiesAndReadsWait(t *testing.T) {
	sc := proxied(t, profile(t, goodLink), proxyOnly)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	tg := sc.target(t, "proxy-waits", bulkSize)
	before := sc.down(ctx, t)
	c := sc.read(ctx, t, tg)
	must(t, sc.KillProxy())
	_, err := c.until(ctx, time.Minute, "it waits", func(r checker.Report) bool { return r.Waiting > 3000 })
	must(t, err)
	must(t, sc.StartProxy(ctx))
	must(t, c.readAll(ctx, time.Minute))
	_, err = sc.Run(ctx, "prefetch", sc.Ref(tg.tag()))
	must(t, err)
	sc.check(t, 0, tg)
	sc.crossedOnce(ctx, t, before, tg, 0)
	sc.alone(t)
	must(t, c.end(ctx))
}

// The daemon is killed half way. The next asks its proxy for what is missing.
func TestProxyAndADaemonThatIsKilled(t *testing.T) {
	slow := profile(t, "rtt=20ms,down=16mbit,up=8mbit")
	sc := proxied(t, slow, proxyOnly)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	tg := sc.target(t, "proxy-daemon-killed", 12<<20)
	before := sc.down(ctx, t)
	c := sc.read(ctx, t, tg)
	must(t, sc.CrashDaemon(ctx, sc.watch.Crash()))
	must(t, c.readAll(ctx, time.Minute))
	_, err := sc.Run(ctx, "prefetch", sc.Ref(tg.tag()))
	must(t, err)
	sc.check(t, 0, tg)
	// What had come a moment before, or was on its way, is lost with the daemon.
	lost := slow.Down.Bytes(refetch.Lost + 200*time.Millisecond)
	sc.crossedOnce(ctx, t, before, tg, lost)
	sc.alone(t)
	must(t, c.end(ctx))
}

// Where the proxy's word is not taken, what was never converted crosses whole, and goes
// on where it was when the proxy died.
func TestProxySendsWhatIsNotLazy(t *testing.T) {
	sc := proxied(t, profile(t, goodLink), proxyOnly+"unconverted = false\n")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	tg := newTarget(t, "proxy-whole", 12<<20)
	ref := sc.Ref(tg.name + ":plain")
	before := sc.down(ctx, t)
	pulled := make(chan error, 1)
	go func() {
		_, err := sc.cri.PullImage(ctx, ref, nil)
		pulled <- err
	}()
	waitUntil(t, "a part of it has crossed", func() bool { return sc.down(ctx, t)-before > tg.spec.Size/3 })
	must(t, sc.KillProxy())
	time.Sleep(time.Second)
	must(t, sc.StartProxy(ctx))
	must(t, <-pulled)
	sc.crossedOnce(ctx, t, before, tg, 0)
	c, err := sc.run(ctx, ref, tg)
	must(t, err)
	must(t, c.readAll(ctx, time.Minute))
	must(t, c.end(ctx))
	sc.alone(t)
}
