package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/airstream-io/airstream/test/rig/images"
	"github.com/airstream-io/airstream/test/rig/link"
	"github.com/airstream-io/airstream/test/rig/node"
	"github.com/airstream-io/airstream/test/rig/refetch"
	"github.com/airstream-io/airstream/test/rig/site"
)

// What a node with many images is made of.
const (
	darkBase   = "redis"
	darkImages = 50
	darkOwn    = 1 << 20 // bytes that each of them has for itself
	darkTries  = 5       // crashes and restarts, of which the median counts
)

// darkResult is what was measured of a node whose link is gone.
type darkResult struct {
	crash, restart []time.Duration // until the daemon is ready
	reboot         time.Duration   // the same, with nothing left of the last one
	start          time.Duration   // of a container after that, until its ready line
	memory         int64           // bytes that the daemon held at the end
	twice          refetch.Count   // of a pull, a start and a prefetch over outages and crashes
}

// dark measures how soon a node without a link is back, and what crosses twice
// where the link and the daemon come and go, and returns the section.
func (b *bench) dark(ctx context.Context) (string, error) {
	img, err := images.Build(ctx, darkBase)
	if err != nil {
		return "", err
	}
	if err := b.publishMany(ctx, img); err != nil {
		return "", err
	}
	var r darkResult
	if err := b.onSite(ctx, link.Direct(), 0, func(s *site.Site) error { return r.restarts(ctx, s, img) }); err != nil {
		return "", err
	}
	b.say("crash %v, restart %v, reboot %v", r.crash, r.restart, r.reboot)
	unsteady, err := link.Parse("rtt=200ms,down=6mbit,up=2mbit,loss=0.01/3")
	if err != nil {
		return "", err
	}
	if err := b.onSite(ctx, unsteady, 1, func(s *site.Site) error { return r.refetches(ctx, s, img) }); err != nil {
		return "", err
	}
	b.say("%d bytes of %d crossed twice, %d that a crash took: %s", r.twice.Again, r.twice.Asked, r.twice.Lost, r.twice.First)
	return b.darkTable(img, unsteady, &r), nil
}

func darkTag(i int) string { return "many:" + strconv.Itoa(i) }

// publishMany publishes images that have a layer of their own over the same
// real ones.
func (b *bench) publishMany(ctx context.Context, img *images.Image) error {
	base, err := img.OCI()
	if err != nil {
		return err
	}
	for i := range darkImages {
		own, err := ownLayer(i)
		if err != nil {
			return err
		}
		with, err := mutate.AppendLayers(base, own)
		if err != nil {
			return err
		}
		if _, err := b.reg.Push(ctx, "plain/"+darkTag(i), with); err != nil {
			return err
		}
		if _, err := site.Convert(ctx, b.binary, b.reg, "plain/"+darkTag(i), darkTag(i)); err != nil {
			return err
		}
	}
	return nil
}

func ownLayer(i int) (v1.Layer, error) {
	content := make([]byte, darkOwn)
	if _, err := io.ReadFull(rand.NewChaCha8([32]byte{byte(i)}), content); err != nil {
		return nil, err
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "own", Mode: 0o644, Size: darkOwn, ModTime: time.Unix(1_700_000_000, 0)})
	if err == nil {
		_, err = w.Write(content)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive.Bytes())), nil })
}

// restarts fills a node, cuts its link, and starts its daemon again in each of
// the ways in which that happens.
func (r *darkResult) restarts(ctx context.Context, s *site.Site, img *images.Image) error {
	for i := range darkImages {
		ref := s.Ref(darkTag(i))
		if err := s.Node.PullTransfer(ctx, ref, node.Airstream); err != nil {
			return err
		}
		if _, err := s.Run(ctx, "prefetch", ref); err != nil {
			return err
		}
	}
	if _, err := s.Link.Cut(ctx); err != nil {
		return err
	}
	timed := func(f func(context.Context) error) (time.Duration, error) {
		began := time.Now()
		err := f(ctx)
		took := time.Since(began)
		if err != nil {
			return took, err
		}
		all, err := s.Images(ctx)
		if err == nil && (len(all) != darkImages || slices.ContainsFunc(all, func(i site.Image) bool { return !i.Complete })) {
			err = fmt.Errorf("not all of %d images are complete: %+v", darkImages, all)
		}
		return took, err
	}
	for range darkTries {
		took, err := timed(func(ctx context.Context) error { return s.CrashDaemon(ctx) })
		if err != nil {
			return err
		}
		r.crash = append(r.crash, took)
		if took, err = timed(s.UpgradeDaemon); err != nil {
			return err
		}
		r.restart = append(r.restart, took)
	}
	slices.Sort(r.crash)
	slices.Sort(r.restart)
	if err := s.PowerOff(ctx); err != nil {
		return err
	}
	var err error
	if r.reboot, err = timed(s.StartDaemon); err != nil {
		return err
	}
	if err := s.Node.Restart(ctx); err != nil {
		return err
	}
	run, err := s.Node.RunUntil(ctx, node.Run{Ref: s.Ref(darkTag(darkImages - 1)), Snapshotter: node.Airstream, Ready: img.Ready()})
	if err != nil {
		return err
	}
	r.start = run.Ready
	r.memory, err = resident(s.DaemonPID())
	return err
}

// resident returns what a process holds in memory, in bytes.
func resident(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b))
	if len(fields) < 2 {
		return 0, fmt.Errorf("/proc/%d/statm: %q", pid, b)
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize()), err
}

// The troubles that a transfer meets: each lasts for a while, and the transfer
// goes on between them.
const (
	troubles    = 6
	troubleGap  = 4 * time.Second
	troubleTime = 2 * time.Second
)

// refetches pulls, starts and completes an image while the link is cut, again
// and again, and every third time the daemon is killed, too.
func (r *darkResult) refetches(ctx context.Context, s *site.Site, img *images.Image) error {
	tag := darkTag(0)
	ref, err := name.ParseReference(s.Registry.Host() + "/" + tag)
	if err != nil {
		return err
	}
	lazy, err := remote.Image(ref, remote.WithContext(ctx))
	if err != nil {
		return err
	}
	watch := refetch.New(s.Root())
	if err := watch.Add(lazy); err != nil {
		return err
	}
	s.Front.SetHook(watch.Wrap(nil))
	defer s.Front.SetHook(nil)
	if err := s.Node.PullTransfer(ctx, s.Ref(tag), node.Airstream); err != nil {
		return err
	}
	if _, err := s.Node.RunUntil(ctx, node.Run{Ref: s.Ref(tag), Snapshotter: node.Airstream, Ready: img.Ready()}); err != nil {
		return err
	}
	for i := range troubles {
		part, cancel := context.WithTimeout(ctx, troubleGap)
		_, err := s.Run(part, "prefetch", s.Ref(tag)) // killed in time: what it asked for goes on elsewhere or waits
		cancel()
		if err == nil {
			return fmt.Errorf("the image was complete after %d troubles of %d; the link is too fast for the test", i, troubles)
		}
		if i%3 == 2 {
			if err := s.CrashDaemon(ctx, watch.Crash()); err != nil {
				return err
			}
			continue
		}
		if _, err := s.Link.Cut(ctx); err != nil {
			return err
		}
		select {
		case <-time.After(troubleTime):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if _, err := s.Link.Restore(ctx); err != nil {
			return err
		}
	}
	if _, err := s.Run(ctx, "prefetch", s.Ref(tag)); err != nil {
		return err
	}
	have, total, err := watch.Have(lazy)
	if err != nil {
		return err
	}
	if have != total {
		return fmt.Errorf("the image is complete, and the watch sees %d of %d bytes", have, total)
	}
	r.twice, err = watch.Count(lazy)
	return err
}

func (b *bench) darkTable(img *images.Image, unsteady link.Profile, r *darkResult) string {
	var t strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&t, format+"\n", args...) }
	ms := func(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }
	say("## Without a link")
	say("")
	say("A node with %d complete images: %s (%.0f MB) and, in each, a layer of %d MiB of its own. The link is cut. Until the", darkImages, img.Name, float64(img.Compressed)/1e6, darkOwn>>20)
	say("daemon is ready, its mirror and its snapshots answer, and each image is known to be complete; of %d the median, in", darkTries)
	say("parentheses the slowest. %s", b.conditions())
	say("")
	say("| | |")
	say("|---|--:|")
	say("| the daemon is killed, and started again by its supervisor | %s (%s) |", ms(r.crash[darkTries/2]), ms(r.crash[darkTries-1]))
	say("| the daemon is upgraded | %s (%s) |", ms(r.restart[darkTries/2]), ms(r.restart[darkTries-1]))
	say("| everything is killed and unmounted, and started again | %s |", ms(r.reboot))
	say("| a container after that, from `run` to its ready line | %s |", ms(r.start))
	say("| the daemon's memory then, resident | %.0f MiB |", float64(r.memory)/(1<<20))
	say("")
	say("What crosses twice: the same image is pulled, started and completed over `%s`. Every %v the link is", unsteady, troubleGap)
	say("cut for %v, and every third time the daemon is killed instead, %d times in all. A watch in the registry compares each request", troubleTime, troubles)
	say("with what the node has on disk at that moment.")
	say("")
	say("| bytes asked for | of these, that were on the node | that arrived in the last %v before a crash |", refetch.Lost)
	say("|--:|--:|--:|")
	say("| %d | **%d** | %d |", r.twice.Asked, r.twice.Again, r.twice.Lost)
	return t.String()
}
