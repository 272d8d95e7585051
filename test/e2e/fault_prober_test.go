package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/airstream-io/airstream/test/rig/checker"
	"github.com/airstream-io/airstream/test/rig/node"
)

// prober lives beside a fault, on an image that is complete: a container reads
// its files, and a client of the snapshotter prepares and removes snapshots of
// it. Neither may notice what happens to other images.
type prober struct {
	container *checking
	sn        snapshots.Snapshotter
	parent    string // name of the snapshot of the image's top layer

	mu    sync.Mutex
	took  []time.Duration // guarded by mu; each a Prepare and a Remove
	err   error           // guarded by mu; the first
	since time.Time       // guarded by mu; when the present one began
}

// probe makes an image complete and begins to probe it.
func (sc *scene) probe(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	tg := sc.target(t, "bystander", 2<<20)
	image := sc.Ref(tg.tag())
	_, err := sc.cri.PullImage(ctx, image, nil)
	must(t, err)
	_, err = sc.Run(ctx, "prefetch", image)
	must(t, err)
	conn, err := grpc.NewClient("unix:"+sc.SnapshotterSocket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	p := &prober{sn: proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), node.Airstream)}
	diff, err := tg.img.ConfigFile()
	must(t, err)
	// The image has one layer, so its chain ID is the diff ID.
	must(t, p.findParent(ctx, diff.RootFS.DiffIDs[0].String()))
	p.container, err = sc.run(ctx, image, tg, "-pause", "5ms")
	must(t, err)
	must(t, p.container.readAll(ctx, time.Minute))

	run, cancel := context.WithCancel(ctx)
	var loop sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		loop.Wait()
		must(t, conn.Close())
	})
	loop.Go(func() { p.loop(run) })
	sc.prober = p
}

func (p *prober) findParent(ctx context.Context, chainID string) error {
	ctx = namespaces.WithNamespace(ctx, node.CRINamespace)
	err := p.sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted && strings.HasSuffix(info.Name, chainID) {
			p.parent = info.Name
		}
		return nil
	})
	if err == nil && p.parent == "" {
		err = errors.New("no snapshot of layer " + chainID)
	}
	return err
}

// loop prepares and removes until ctx ends.
func (p *prober) loop(ctx context.Context) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		p.mu.Lock()
		p.since = time.Now()
		p.mu.Unlock()
		err := p.prepare(ctx, fmt.Sprintf("probe-%d", n))
		p.mu.Lock()
		p.took = append(p.took, time.Since(p.since))
		p.since = time.Time{}
		if err != nil && ctx.Err() == nil && p.err == nil {
			p.err = err
		}
		p.mu.Unlock()
	}
}

func (p *prober) prepare(ctx context.Context, key string) error {
	ctx = namespaces.WithNamespace(ctx, node.CRINamespace)
	_, err := p.sn.Prepare(ctx, key, p.parent)
	if err != nil {
		return err
	}
	err = p.sn.Remove(context.WithoutCancel(ctx), key)
	if errdefs.IsNotFound(err) {
		return nil // containerd's garbage collection was quicker: it doesn't know who else makes snapshots
	}
	return err
}

// measurement is a time during which nothing may be held up.
type measurement struct {
	p    *prober
	took int // how many had been taken before
	base checker.Report
}

// begin begins one. Any number may go on.
func (p *prober) begin(t *testing.T) measurement {
	t.Helper()
	r, err := p.container.report()
	must(t, err)
	p.mu.Lock()
	defer p.mu.Unlock()
	return measurement{p, len(p.took), r}
}

// check fails if anything was held up since the beginning. What waits for a
// link takes seconds and more. That 99 of 100 are quick is asked for where the
// machine has nothing else to do: in a soak.
func (m measurement) check(t *testing.T) {
	t.Helper()
	p, base := m.p, m.base
	r, err := p.container.report()
	if err != nil {
		t.Errorf("the container of another image: %v", err)
	}
	p.mu.Lock()
	took, failed, since := slices.Clone(p.took[m.took:]), p.err, p.since
	p.mu.Unlock()
	if failed != nil {
		t.Errorf("Prepare of another image: %v", failed)
	}
	if !since.IsZero() {
		took = append(took, time.Since(since))
	}
	reads, slow := r.Reads-base.Reads, r.Slow-base.Slow
	if len(took) < 10 || reads < 100 {
		t.Errorf("another image was read %d times and prepared %d times: it was held up", reads, len(took))
		return
	}
	slices.Sort(took)
	percent, most := 90, took[len(took)-1]
	if soak() {
		percent = 99
	}
	at := took[(len(took)-1)*percent/100]
	t.Logf("another image meanwhile: %d times Prepare and Remove, %d%% within %v; %d reads, %d slower than %v",
		len(took), percent, at.Round(100*time.Microsecond), reads, slow, checker.Slow)
	if at > checker.Slow || most > heldUp {
		t.Errorf("Prepare and Remove of another image took %v (%dth percentile), at most %v", at, percent, most)
	}
	if slow*100 > reads*(100-percent) || r.Waiting > heldUp.Milliseconds() {
		t.Errorf("%d of %d reads of another image took longer than %v", slow, reads, checker.Slow)
	}
}

// heldUp is longer than a busy machine explains.
const heldUp = 2 * time.Second
