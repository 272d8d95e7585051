package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/airstream-io/airstream/test/rig/node"
	"github.com/airstream-io/airstream/test/rig/site"
)

// Of an image that was recorded only the hot set is fetched. The link goes away,
// and the power: after the boot its container starts all the same.
func TestPartialImageStartsDarkFromItsHotSet(t *testing.T) {
	img := publish(t, "redis")
	_, err := site.Convert(t.Context(), shore.binary, shore.reg, "redis:plain", "redis:hot", "--record", "", "--ready", img.ReadyLine)
	must(t, err)
	s := newSite(t, site.Options{Profile: fast(t), Config: "[fetch]\nbackground = false\n"})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	ref := s.Ref("redis:hot")
	must(t, s.Node.PullTransfer(ctx, ref, lazySnapshotter))
	_, err = s.Run(ctx, "prefetch", "--hot", ref)
	must(t, err)
	_, err = s.Link.Cut(ctx)
	must(t, err)
	partial := func(when string) {
		t.Helper()
		all, err := s.Images(ctx)
		must(t, err)
		if len(all) != 1 || all[0].Dark != "hot" || all[0].Complete || all[0].Missing < all[0].Total/2 {
			t.Fatalf("%s: %+v", when, all)
		}
	}
	partial("before")
	must(t, s.PowerOff(ctx))
	must(t, s.StartDaemon(ctx))
	must(t, s.Node.Restart(ctx))
	partial("after the boot")
	began := time.Now()
	_, err = s.Node.RunUntil(ctx, node.Run{Ref: ref, Snapshotter: lazySnapshotter, Ready: img.Ready()})
	must(t, err)
	t.Logf("ready after %v, dark", time.Since(began).Round(time.Millisecond))
	partial("after the start")
}
