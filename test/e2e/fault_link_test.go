package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/airstream-io/airstream/test/rig/link"
)

// The link goes away, in every way in which links do, and comes back. Nothing
// that waits for it fails.
func TestFaultOutage(t *testing.T) {
	sc := linkScene(t)
	does := func(command func(context.Context) (link.Stats, error)) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := command(ctx)
			return err
		}
	}
	faults := []fault{
		{name: "outage of 10 s", begin: does(sc.Link.Cut), end: does(sc.Link.Restore), lasts: 10 * time.Second},
		{name: "blackhole", begin: does(sc.Link.Blackhole), end: does(sc.Link.Restore), lasts: long(5*time.Second, 60*time.Second)},
	}
	if soak() {
		faults = append(faults,
			fault{name: "resets", begin: does(sc.Link.Reset), end: does(sc.Link.Restore), lasts: 60 * time.Second},
			fault{name: "outage of 100 s", begin: does(sc.Link.Cut), end: does(sc.Link.Restore), lasts: 100 * time.Second},
			fault{name: "outage of 300 s", begin: does(sc.Link.Cut), end: does(sc.Link.Restore), lasts: 300 * time.Second})
	}
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) { sc.meet(t, f) })
	}
}

// A link that becomes bad for a while, and then is bad for the whole of a start:
// lossy, or so slow that a start takes minutes. Everything takes longer, and
// nothing else happens.
func TestFaultBadLink(t *testing.T) {
	const slow = "rtt=600ms,down=16kbit,up=16kbit" // 2 kB/s
	type badLink struct {
		name, profile string
		size          int64
		limit         time.Duration
	}
	cases := []badLink{
		{"loss-10-percent", "rtt=40ms,down=24mbit,up=4mbit,loss=10%", targetSize, 3 * time.Minute},
		{"2kb-a-second", slow, 64 << 10, 20 * time.Minute},
	}
	if soak() {
		cases = append(cases, badLink{"loss-3-percent", "rtt=40ms,down=24mbit,up=4mbit,loss=3%", targetSize, 2 * time.Minute})
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			if tc.profile == slow && !soak() {
				// The program alone is most of a megabyte.
				tc.profile = "rtt=600ms,down=1mbit,up=128kbit"
			}
			sc := linkScene(t)
			becomes := func(text string) func(context.Context) error {
				return func(ctx context.Context) error {
					_, err := sc.Link.SetProfile(ctx, profile(t, text))
					return err
				}
			}
			sc.meet(t, fault{name: tc.name + "-for-a-while", begin: becomes(tc.profile), end: becomes(goodLink), lasts: long(6*time.Second, 60*time.Second)})
			ctx, cancel := context.WithTimeout(t.Context(), tc.limit)
			defer cancel()
			tg := sc.target(t, tc.name, tc.size)
			must(t, becomes(tc.profile)(ctx))
			measure, began := sc.prober.begin(t), time.Now()
			_, err := sc.cri.PullImage(ctx, sc.Ref(tg.tag()), nil)
			must(t, err)
			c, err := sc.run(ctx, sc.Ref(tg.tag()), tg)
			must(t, err)
			must(t, c.readAll(ctx, tc.limit))
			t.Logf("pulled, started and read whole in %v", time.Since(began).Round(100*time.Millisecond))
			must(t, c.end(ctx))
			measure.check(t)
			sc.check(t, 0, tg)
		})
	}
}
