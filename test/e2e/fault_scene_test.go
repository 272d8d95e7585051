package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/airstream-io/airstream/test/rig/checker"
	"github.com/airstream-io/airstream/test/rig/node"
	"github.com/airstream-io/airstream/test/rig/refetch"
	"github.com/airstream-io/airstream/test/rig/registry"
	"github.com/airstream-io/airstream/test/rig/site"
)

// maxMemory is what the daemon may ever hold, in bytes.
const maxMemory = 150 << 20

// scene is a site on which a fault will happen, with all that watches: whether
// anything crosses twice, and what it means for an image that is complete.
type scene struct {
	*site.Site
	cri    *node.CRI
	watch  *refetch.Watch
	prober *prober
}

// newScene starts a site. Nothing crosses on it in idle time, so that what
// crosses is what a test asks for.
func newScene(t *testing.T, opts site.Options) *scene {
	t.Helper()
	opts.Config = "[fetch]\nbackground = false\n" + opts.Config
	sc := &scene{Site: newSite(t, opts)}
	var err error
	sc.cri, err = sc.Node.CRI()
	must(t, err)
	t.Cleanup(func() { must(t, sc.cri.Close()) })
	sc.watch = refetch.New(sc.Root())
	sc.Front.SetHook(sc.watch.Wrap(nil))
	for _, f := range sc.Fronts {
		f.SetHook(sc.watch.Wrap(nil))
	}
	return sc
}

// target publishes an image, of which the scene watches what crosses.
func (sc *scene) target(t *testing.T, id string, size int64) *target {
	t.Helper()
	tg := newTarget(t, id, size)
	must(t, sc.watch.Add(tg.img))
	return tg
}

// run starts a container that checks until it is removed.
func (sc *scene) run(ctx context.Context, ref string, tg *target, more ...string) (*checking, error) {
	pod, err := sc.cri.StartPod(ctx, node.Run{Ref: ref, Args: append([]string{"/bin/check"}, tg.args(more...)...)})
	if err != nil {
		return nil, err
	}
	return &checking{pod: pod, name: tg.name}, nil
}

// checking is a container that checks.
type checking struct {
	pod  *node.Pod
	name string
}

// report returns what the container has seen. It is an error if any byte was
// wrong or any read failed.
func (c *checking) report() (checker.Report, error) {
	var r checker.Report
	lines := strings.Split(strings.TrimSpace(c.pod.Output()), "\n")
	last := lines[len(lines)-1]
	if last == "" {
		return r, nil // it has not said anything yet
	}
	if err := json.Unmarshal([]byte(last), &r); err != nil {
		return r, fmt.Errorf("%s: the checker says: %s", c.name, strings.Join(lines, "\n"))
	}
	if r.Wrong > 0 || r.Errors > 0 {
		return r, fmt.Errorf("%s: %d reads had wrong bytes and %d failed: %s", c.name, r.Wrong, r.Errors, r.First)
	}
	return r, nil
}

// until waits until the report is as wanted, for at most limit.
func (c *checking) until(ctx context.Context, limit time.Duration, what string, is func(checker.Report) bool) (checker.Report, error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	late := time.After(limit)
	for {
		r, err := c.report()
		if err != nil || is(r) {
			return r, err
		}
		select {
		case <-tick.C:
		case <-late:
			return r, fmt.Errorf("%s: after %v not yet that %s: %+v\n%s", c.name, limit, what, r, c.pod.Output())
		case <-ctx.Done():
			return r, context.Cause(ctx)
		}
	}
}

// readAll waits until every file was read whole, and once more by a container
// that had begun before.
func (c *checking) readAll(ctx context.Context, limit time.Duration) error {
	before, err := c.report()
	if err != nil {
		return err
	}
	_, err = c.until(ctx, limit, "everything was read", func(r checker.Report) bool { return r.Passes > before.Passes })
	return err
}

// end takes the container away.
func (c *checking) end(ctx context.Context) error {
	if err := c.pod.Remove(ctx); err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	return nil
}

// check is what must be true after every fault: nothing was fetched of what was
// here, all of the targets is, in little memory. again is how many bytes may have been
// fetched twice.
func (sc *scene) check(t *testing.T, again int64, targets ...*target) {
	t.Helper()
	images := make([]v1.Image, len(targets))
	for i, tg := range targets {
		images[i] = tg.img
	}
	count, err := sc.watch.Count(images...)
	must(t, err)
	t.Logf("%.2f MB of blobs were asked for, of them %d bytes again, and %d that arrived just before a crash", float64(count.Asked)/1e6, count.Again, count.Lost)
	if count.Again > again {
		t.Errorf("%d bytes were fetched that were on disk: %s\n%s", count.Again, count.First, sc.requests(count.First))
	}
	for _, tg := range targets {
		have, total, err := sc.watch.Have(tg.img)
		must(t, err)
		if have != total {
			t.Errorf("%s: %d of %d bytes are on disk: either something is missing, or the watch doesn't see what the store does", tg.name, have, total)
		}
	}
	sc.checkMemory(t)
}

// requests lists the requests for the blob of one that should not have been.
func (sc *scene) requests(first string) string {
	var b strings.Builder
	path, _, _ := strings.Cut(first, ",")
	for _, f := range append([]*registry.Front{sc.Front}, sc.Fronts...) {
		for _, e := range f.Log() {
			if e.Path == path {
				fmt.Fprintf(&b, "%s on connection %d: %s, %d bytes in %v\n", e.Start.Format("05.000"), e.Conn, e.Range, e.Bytes, e.Took.Round(time.Millisecond))
			}
		}
	}
	return b.String()
}

// checkMemory looks at the most that the daemon has ever held.
func (sc *scene) checkMemory(t *testing.T) {
	t.Helper()
	peak, err := peakMemory(sc.DaemonPID())
	must(t, err)
	t.Logf("the daemon held at most %.1f MiB", float64(peak)/(1<<20))
	if peak > maxMemory {
		t.Errorf("the daemon held %d bytes, and may hold %d", peak, maxMemory)
	}
}

// peakMemory returns the most memory that a process has held at a time.
func peakMemory(pid int) (bytes int64, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("no VmHWM")
}

// soak tells whether the long variants were asked for.
func soak() bool { return os.Getenv("AIRSTREAM_SOAK") != "" }

// long is d in a soak, else short.
func long(short, d time.Duration) time.Duration {
	if soak() {
		return d
	}
	return short
}
