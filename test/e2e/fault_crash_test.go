package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/airstream-io/airstream/test/rig/site"
)

// times is how often something random happens.
func times(short, soaking int) int {
	if soak() {
		return soaking
	}
	return short
}

// The daemon is killed at random moments, over and over, while an image is being
// made complete, while containers start, and while one reads that has begun
// before. That one never notices; what has crossed does not cross again; and
// every start succeeds, or succeeds when it is tried again.
func TestFaultDaemonKilled(t *testing.T) {
	sc := newScene(t, site.Options{Profile: profile(t, "rtt=20ms,down=16mbit,up=8mbit")})
	ctx, cancel := context.WithTimeout(t.Context(), long(3*time.Minute, 30*time.Minute))
	defer cancel()
	big := sc.target(t, "daemon-killed-big", 16<<20)
	loop := sc.target(t, "daemon-killed-loop", targetSize)
	for _, tg := range []*target{big, loop} {
		_, err := sc.cri.PullImage(ctx, sc.Ref(tg.tag()), nil)
		must(t, err)
	}
	survivor, err := sc.run(ctx, sc.Ref(loop.tag()), loop, "-pause", "2ms")
	must(t, err)
	done := []*target{big, loop}
	for n := range times(5, 100) {
		if n > 0 && n%5 == 0 { // by then the last one is about to be complete
			_, err := sc.Run(ctx, "prefetch", sc.Ref(big.tag()))
			must(t, err)
			big = sc.target(t, fmt.Sprintf("daemon-killed-big-%d", n), 16<<20)
			_, err = sc.cri.PullImage(ctx, sc.Ref(big.tag()), nil)
			must(t, err)
			done = append(done, big)
		}
		tg := sc.target(t, "daemon-killed-"+string(rune('a'+n%26))+string(rune('a'+n/26)), 256<<10)
		done = append(done, tg)
		filled, started := make(chan error, 1), make(chan started, 1)
		go func() {
			_, err := sc.Run(ctx, "prefetch", sc.Ref(big.tag()))
			filled <- err // its daemon is killed: it fails unless all was here
		}()
		go func() { started <- sc.tryStart(ctx, tg) }()
		time.Sleep(rand.N(900 * time.Millisecond)) //nolint:gosec // any moment will do
		sc.checkMemory(t)
		must(t, sc.CrashDaemon(ctx, sc.watch.Crash()))
		<-filled //nolint:errcheck // see above
		s := <-started
		must(t, s.err)
		must(t, s.container.readAll(ctx, time.Minute))
		must(t, s.container.end(ctx))
		r, err := survivor.report()
		if err != nil {
			t.Fatalf("the container that ran over %d crashes: %v", n+1, err)
		}
		t.Logf("crash %d: a start was tried %d times; the survivor has read %d times", n+1, s.tries, r.Reads)
	}
	must(t, survivor.readAll(ctx, time.Minute))
	must(t, survivor.end(ctx))
	_, err = sc.Run(ctx, "prefetch", sc.Ref(big.tag()))
	must(t, err)
	sc.check(t, 0, done...)
}

// started is a container that was started, after some tries.
type started struct {
	container *checking
	tries     int
	err       error
}

// tryStart pulls and starts as kubelet does: again, if it fails.
func (sc *scene) tryStart(ctx context.Context, tg *target) (s started) {
	for s.tries = 1; ; s.tries++ {
		_, s.err = sc.cri.PullImage(ctx, sc.Ref(tg.tag()), nil)
		if s.err == nil {
			s.container, s.err = sc.run(ctx, sc.Ref(tg.tag()), tg)
		}
		if s.err == nil || s.tries == 10 || ctx.Err() != nil {
			return s
		}
		time.Sleep(200 * time.Millisecond) // as a client that comes back
	}
}

// containerd is killed while an image is pulled, another is made complete, and
// containers read. They go on, and so does the pull when it is asked for again.
func TestFaultContainerdKilled(t *testing.T) {
	sc := newScene(t, site.Options{Profile: profile(t, "rtt=20ms,down=16mbit,up=8mbit")})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	loop := sc.target(t, "containerd-killed-loop", targetSize)
	big := sc.target(t, "containerd-killed-big", 12<<20)
	for _, tg := range []*target{big, loop} {
		_, err := sc.cri.PullImage(ctx, sc.Ref(tg.tag()), nil)
		must(t, err)
	}
	survivor, err := sc.run(ctx, sc.Ref(loop.tag()), loop, "-pause", "2ms")
	must(t, err)
	filled := make(chan error, 1)
	go func() {
		_, err := sc.Run(ctx, "prefetch", sc.Ref(big.tag()))
		filled <- err
	}()
	done := []*target{big, loop}
	for n := range times(2, 20) {
		tg := sc.target(t, "containerd-killed-"+string(rune('a'+n)), 256<<10)
		done = append(done, tg)
		result := make(chan started, 1)
		go func() { result <- sc.tryStart(ctx, tg) }()
		time.Sleep(rand.N(500 * time.Millisecond)) //nolint:gosec // any moment will do
		must(t, sc.Node.Kill())
		_, err := survivor.report()
		must(t, err)
		must(t, sc.Node.Restart(ctx))
		s := <-result
		must(t, s.err)
		must(t, s.container.readAll(ctx, time.Minute))
		must(t, s.container.end(ctx))
	}
	must(t, <-filled)
	must(t, survivor.readAll(ctx, time.Minute))
	must(t, survivor.end(ctx))
	last, err := sc.run(ctx, sc.Ref(big.tag()), big)
	must(t, err)
	must(t, last.readAll(ctx, time.Minute))
	must(t, last.end(ctx))
	sc.check(t, 0, done...)
}

// The power fails while things cross, at a random moment: what had not reached
// the disk is gone, and a pull is under way. After the reboot, and with the link
// dark, what was complete starts; when the link is back, the pull succeeds, the
// rest crosses, and only the rest.
func TestFaultPowerLoss(t *testing.T) {
	sc := newScene(t, site.Options{
		Profile: profile(t, "rtt=20ms,down=16mbit,up=8mbit"), Disk: site.Disk{Size: 256 << 20, Durable: true},
		Config: "[cache]\nreserve = \"4MiB\"\n",
	})
	ctx, cancel := context.WithTimeout(t.Context(), long(3*time.Minute, 20*time.Minute))
	defer cancel()
	here := sc.target(t, "power-loss-here", targetSize)
	big := sc.target(t, "power-loss-big", 16<<20)
	for _, tg := range []*target{here, big} {
		_, err := sc.cri.PullImage(ctx, sc.Ref(tg.tag()), nil)
		must(t, err)
	}
	_, err := sc.Run(ctx, "prefetch", sc.Ref(here.tag()))
	must(t, err)
	done := []*target{here, big}
	for n := range times(2, 20) {
		filled := make(chan error, 1)
		go func() {
			_, err := sc.Run(ctx, "prefetch", sc.Ref(big.tag()))
			filled <- err
		}()
		reader, err := sc.run(ctx, sc.Ref(big.tag()), big)
		must(t, err)
		time.Sleep(time.Second + rand.N(1500*time.Millisecond)) //nolint:gosec // any moment will do
		pulled := sc.target(t, fmt.Sprintf("power-loss-%d", n), 256<<10)
		done = append(done, pulled)
		pull := make(chan error, 1)
		go func() {
			_, err := sc.cri.PullImage(ctx, sc.Ref(pulled.tag()), nil)
			pull <- err
		}()
		time.Sleep(rand.N(300 * time.Millisecond)) //nolint:gosec // the same
		_, err = reader.report()
		must(t, err)
		sc.checkMemory(t)
		dead := sc.watch.Crash()
		must(t, sc.PowerCut(ctx))
		dead()
		<-filled //nolint:errcheck // its daemon has lost power
		<-pull   //nolint:errcheck // the same, unless it was done
		_, err = sc.Link.Cut(ctx)
		must(t, err)
		began := time.Now()
		must(t, sc.Reboot(ctx))
		t.Logf("power loss %d: everything answers again %v after the boot", n+1, time.Since(began).Round(time.Millisecond))
		dark, err := sc.run(ctx, sc.Ref(here.tag()), here)
		must(t, err)
		must(t, dark.readAll(ctx, time.Minute))
		must(t, dark.end(ctx))
		_, err = sc.Link.Restore(ctx)
		must(t, err)
		again := sc.tryStart(ctx, pulled)
		must(t, again.err)
		must(t, again.container.readAll(ctx, time.Minute))
		must(t, again.container.end(ctx))
	}
	_, err = sc.Run(ctx, "prefetch", sc.Ref(big.tag()))
	must(t, err)
	last, err := sc.run(ctx, sc.Ref(big.tag()), big)
	must(t, err)
	must(t, last.readAll(ctx, time.Minute))
	must(t, last.end(ctx))
	sc.check(t, 0, done...)
}
