package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/airstream-io/airstream/test/rig/registry"
	"github.com/airstream-io/airstream/test/rig/site"
)

// Sizes of the images that a fault meets, in bytes: one that is being made
// complete must not be so before the fault begins.
const (
	targetSize = 1 << 20
	bulkSize   = 5 << 20
)

// resolves is how long the mirror tries to learn what a tag means that it does not
// know. containerd itself would give up after 30 s; who pulls is told before, and
// tries again.
const resolves = 20 * time.Second

// fault is something that happens to the link or to the registry for a while.
type fault struct {
	name string
	// begin and end are when it happens. It ends at once with a nil end.
	begin, end func(ctx context.Context) error
	lasts      time.Duration
	// refused says that a pull may fail meanwhile, because the registry says
	// that it will not serve it. Somebody who pulls again later has it.
	refused bool
	// again is how much may be fetched that was here: the registry sends more
	// than it is asked for.
	again int64
	// limit bounds how long everything may take after the end; 0: a minute.
	limit time.Duration
	front *registry.Front // that the images are pulled from
	// bulk is the front that bytes come from before the fault; nil: front.
	bulk *registry.Front
}

// moment is what is under way when a fault begins.
type moment struct {
	name   string
	size   int64
	before func(ctx context.Context, m *meeting) error // brings the node there
	during func(ctx context.Context, m *meeting) error // what is under way; returns when it is done
}

// meeting is a fault at a moment.
type meeting struct {
	*scene
	f         *fault
	tg        *target
	ref       string
	container *checking
	ended     chan struct{} // closed when the fault is over
	refusals  int           // pulls that failed
	refusal   error         // of the last
	prefetch  chan error
}

// moments are the worst there are.
var moments = []moment{
	{
		name: "pull", size: targetSize,
		during: func(ctx context.Context, m *meeting) error {
			if err := m.pull(ctx); err != nil {
				return err
			}
			return m.start(ctx)
		},
	},
	{
		name: "first read", size: targetSize,
		before: func(ctx context.Context, m *meeting) error { return m.pullNow(ctx) },
		during: func(ctx context.Context, m *meeting) error { return m.start(ctx) },
	},
	{
		name: "bulk", size: bulkSize,
		before: func(ctx context.Context, m *meeting) error {
			if err := m.pullNow(ctx); err != nil {
				return err
			}
			m.prefetch = make(chan error, 1)
			go func() {
				_, err := m.Run(ctx, "prefetch", "--wait", m.ref) // without, it ends when the link has been dark for a while
				m.prefetch <- err
			}()
			return m.asked(ctx, bulkSize/4)
		},
		during: func(ctx context.Context, m *meeting) error {
			if err := <-m.prefetch; err != nil {
				return err
			}
			return m.start(ctx)
		},
	},
	{
		name: "reads in a loop", size: targetSize,
		before: func(ctx context.Context, m *meeting) error {
			if err := m.pullNow(ctx); err != nil {
				return err
			}
			if err := m.start(ctx); err != nil {
				return err
			}
			return nil
		},
		during: func(context.Context, *meeting) error { return nil },
	},
}

// asked waits until ranges of n bytes have been asked for, in all.
func (m *meeting) asked(ctx context.Context, n int64) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	from := cmp.Or(m.f.bulk, m.f.front)
	before := from.Counts().Body
	for late := time.After(time.Minute); from.Counts().Body-before < n; {
		select {
		case <-tick.C:
		case err := <-m.prefetch:
			return fmt.Errorf("prefetch ended before the fault: %w", err)
		case <-late:
			return errors.New("nothing crosses")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func (m *meeting) pullNow(ctx context.Context) error {
	_, err := m.cri.PullImage(ctx, m.ref, nil)
	return err
}

// pull pulls, and pulls again as kubelet does if that fails.
func (m *meeting) pull(ctx context.Context) error {
	var late time.Time
	for {
		err := m.pullNow(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		m.refusals, m.refusal = m.refusals+1, err
		select {
		case <-m.ended:
			if late.IsZero() {
				late = time.Now().Add(m.f.limit)
			} else if time.Now().After(late) {
				return err
			}
		default:
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (m *meeting) start(ctx context.Context) (err error) {
	m.container, err = m.run(ctx, m.ref, m.tg, "-pause", "2ms")
	return err
}

// meet lets a fault happen at every moment, at once: each has an image of its
// own. What every fault must leave behind is checked.
func (sc *scene) meet(t *testing.T, f fault) {
	t.Helper()
	if f.front == nil {
		f.front = sc.Front
	}
	if f.limit == 0 {
		f.limit = time.Minute
	}
	ctx, cancel := context.WithTimeout(t.Context(), f.lasts+f.limit+30*time.Second)
	defer cancel()
	ended := make(chan struct{})
	var all []*meeting
	for _, at := range moments {
		m := &meeting{scene: sc, f: &f, ended: ended, tg: sc.target(t, strings.ReplaceAll(f.name+"-"+at.name, " ", "-"), at.size)}
		m.ref = sc.Ref(m.tg.tag())
		if f.front != sc.Front {
			m.ref = f.front.Host() + "/" + m.tg.tag()
		}
		all = append(all, m)
	}
	for i, at := range moments {
		if at.before != nil {
			must(t, at.before(ctx, all[i]))
		}
	}
	measure := sc.prober.begin(t)
	must(t, f.begin(ctx))
	var work errgroup.Group
	for i, at := range moments {
		work.Go(func() error {
			if err := all[i].through(ctx, at); err != nil {
				return fmt.Errorf("at the moment %q: %w", at.name, err)
			}
			return nil
		})
	}
	select {
	case <-time.After(f.lasts):
	case <-ctx.Done():
	}
	measure.check(t)
	if f.end != nil {
		must(t, f.end(ctx))
	}
	close(ended)
	over := time.Now()
	err := work.Wait()
	targets := make([]*target, len(all))
	for i, m := range all {
		targets[i] = m.tg
		if m.refusals > 0 && !f.refused && f.lasts < resolves {
			t.Errorf("at the moment %q: %d pulls failed, and waiting would have helped: %v", moments[i].name, m.refusals, m.refusal)
		}
	}
	must(t, err)
	t.Logf("everything was read %v after the fault was over", time.Since(over).Round(100*time.Millisecond))
	sc.check(t, f.again, targets...)
}

// through is a moment's life from the beginning of the fault on.
func (m *meeting) through(ctx context.Context, at moment) (err error) {
	defer func() {
		if m.container != nil {
			err = errors.Join(err, m.container.end(context.WithoutCancel(ctx)))
		}
	}()
	if err := at.during(ctx, m); err != nil {
		return err
	}
	select {
	case <-m.ended:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return m.container.readAll(ctx, m.f.limit)
}

// goodLink shows its delay, and that it carries no more than so much.
const goodLink = "rtt=40ms,down=48mbit,up=8mbit"

// linkScene is a scene on a good link.
func linkScene(t *testing.T) *scene {
	t.Helper()
	sc := newScene(t, site.Options{Profile: profile(t, goodLink)})
	sc.probe(t)
	return sc
}
