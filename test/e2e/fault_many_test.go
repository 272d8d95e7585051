package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sync/errgroup"

	"github.com/airstream-io/airstream/test/rig/site"
)

// Two hundred pulls at once, of eight images under many names, over a link that
// delays: as after a reboot of a node. Everything is pulled, nothing twice.
func TestFault200ParallelPulls(t *testing.T) {
	const pulls, different = 200, 8
	sc := newScene(t, site.Options{Profile: profile(t, "rtt=100ms,down=24mbit,up=4mbit")})
	sc.probe(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var targets []*target
	for n := range different {
		targets = append(targets, sc.target(t, fmt.Sprintf("parallel-%d", n), 1<<20))
	}
	var names []string
	for n := range pulls {
		copied := fmt.Sprintf("%s:copy-%d", targets[n%different].name, n)
		tag, err := name.NewTag(shore.reg.Host() + "/" + copied)
		must(t, err)
		must(t, remote.Tag(tag, targets[n%different].img, remote.WithContext(ctx)))
		names = append(names, copied)
	}
	measure, began := sc.prober.begin(t), time.Now()
	var work errgroup.Group
	for _, copied := range names {
		work.Go(func() error {
			_, err := sc.cri.PullImage(ctx, sc.Ref(copied), nil)
			return err
		})
	}
	must(t, work.Wait())
	t.Logf("%d pulls took %v", pulls, time.Since(began).Round(time.Millisecond))
	time.Sleep(time.Until(began.Add(2 * time.Second))) // for enough to measure
	measure.check(t)
	for n, tg := range targets {
		work.Go(func() error {
			c, err := sc.run(ctx, sc.Ref(names[n]), tg)
			if err != nil {
				return err
			}
			if err := c.readAll(ctx, time.Minute); err != nil {
				return err
			}
			return c.end(ctx)
		})
	}
	must(t, work.Wait())
	sc.check(t, 0, targets...)
}
