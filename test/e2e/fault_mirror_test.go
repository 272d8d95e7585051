package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/airstream-io/airstream/test/rig/registry"
	"github.com/airstream-io/airstream/test/rig/site"
)

// The nearest of two mirrors goes away for good, in every way in which hosts
// do. What is under way goes on at the next one, and nothing of it crosses
// again.
func TestFaultMirrorGone(t *testing.T) {
	unplugged := make(chan struct{})
	for _, tc := range []struct {
		name   string
		before registry.Hook
		gone   func(sc *scene) error
		soak   bool // another one stands for it in the short form
	}{
		{name: "dies", gone: func(sc *scene) error { return sc.Fronts[0].Close() }},
		{name: "silent", before: registry.Silence(unplugged), gone: func(*scene) error {
			close(unplugged)
			return nil
		}},
		{name: "404", soak: true, gone: func(sc *scene) error {
			sc.Fronts[0].SetHook(sc.watch.Wrap(registry.Refuse(404)))
			return nil
		}},
		{name: "503", soak: true, gone: func(sc *scene) error {
			sc.Fronts[0].SetHook(sc.watch.Wrap(registry.Refuse(503)))
			return nil
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.soak && !soak() {
				t.Skip("AIRSTREAM_SOAK is not set: the others stand for it")
			}
			sc := newScene(t, site.Options{Profile: profile(t, goodLink), Fronts: make([]registry.FrontOptions, 2), Mirrored: true})
			sc.probe(t)
			first, second := sc.Fronts[0], sc.Fronts[1]
			first.SetHook(sc.watch.Wrap(tc.before))
			sc.meet(t, fault{
				name: "mirror-" + tc.name, bulk: first, lasts: long(2*time.Second, 30*time.Second),
				begin: func(context.Context) error { return tc.gone(sc) },
			})
			t.Logf("bodies of %d bytes came from the mirror that went, %d from the next, %d from the registry itself",
				first.Counts().Body, second.Counts().Body, sc.Front.Counts().Body)
			if second.Counts().Body == 0 {
				t.Error("nothing came from the second mirror")
			}
		})
	}
}
