package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/airstream-io/airstream/test/rig/registry"
	"github.com/airstream-io/airstream/test/rig/site"
)

// The registry, or what stands before it, fails for a while, in every way in
// which they do. Each has a front of its own: nothing that the daemon has
// learned of one is true of another.
func TestFaultRegistry(t *testing.T) {
	blobs := []registry.Kind{registry.KindBlob, registry.KindStorage}
	burst := long(2*time.Second, 30*time.Second)
	const life = time.Second
	login := registry.FrontOptions{Auth: registry.AuthBearer, Username: "crew", Password: "right", TokenLife: life}
	elsewhere := registry.FrontOptions{Redirect: true, LinkLife: life, StorageRefusesAuth: true}
	type failure struct {
		fault
		opts  registry.FrontOptions
		hook  registry.Hook
		also  func(f *registry.Front) // happens at the beginning, too
		never bool                    // it never ends
		soak  bool                    // another one stands for it in the short form
	}
	cases := []failure{
		{fault: fault{name: "truncated"}, hook: registry.Truncate(blobs...), soak: true},
		{fault: fault{name: "wrong-content-range"}, hook: registry.MisplaceRanges()},
		{fault: fault{name: "200-for-ranges", again: 3*targetSize + bulkSize}, hook: registry.IgnoreRanges()},
		{fault: fault{name: "wrong-bytes", refused: true}, hook: registry.Corrupt(16, blobs...), soak: true},
		{fault: fault{name: "bit-flips", refused: true}, hook: registry.Corrupt(64 << 10)},
		{fault: fault{name: "reset-every-64kib", limit: time.Minute}, hook: registry.ResetAfter(64<<10, blobs...), never: true},
		{fault: fault{name: "token-expires"}, opts: login, also: (*registry.Front).RevokeTokens, soak: true},
		{fault: fault{name: "token-service-dies"}, opts: login, also: (*registry.Front).RevokeTokens, hook: registry.Abort(registry.KindToken)},
		{fault: fault{name: "redirect-target-dies"}, opts: elsewhere, hook: registry.Abort(registry.KindStorage)},
	}
	for _, status := range []int{401, 403, 404, 429, 500, 503} {
		c := failure{fault: fault{name: fmt.Sprint(status)}, hook: registry.Refuse(status), soak: status != 401 && status != 429}
		if status < 429 {
			// Who may not pull is told, and tries again when that has changed.
			c.refused = true
			c.opts = registry.FrontOptions{Auth: registry.AuthBasic, Username: "crew", Password: "right"}
		}
		cases = append(cases, c)
	}
	if !soak() {
		cases = slices.DeleteFunc(cases, func(c failure) bool { return c.soak })
	}
	opts := site.Options{Profile: profile(t, "rtt=40ms,down=48mbit,up=8mbit")}
	for _, c := range cases {
		opts.Fronts = append(opts.Fronts, c.opts)
	}
	sc := newScene(t, opts)
	sc.probe(t)
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			front := sc.Fronts[i]
			c.front, c.lasts = front, burst
			c.begin = func(context.Context) error {
				if c.also != nil {
					c.also(front)
				}
				front.SetHook(sc.watch.Wrap(c.hook))
				return nil
			}
			c.end = func(context.Context) error {
				if !c.never {
					front.SetHook(sc.watch.Wrap(nil))
				}
				return nil
			}
			sc.meet(t, c.fault)
		})
	}
}
