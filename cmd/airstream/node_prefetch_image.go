package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/fetcher/mirror"
	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/internal/cache"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/store"
	"github.com/airstream-io/airstream/internal/trace"
)

// prefetchJob is one image of it.
type prefetchJob struct {
	mu    sync.Mutex
	image prefetchImage // guarded by mu

	found  mirror.Fetched
	layers []catalog.Layer      // lazy ones, with the image's plans
	plan   int64                // bytes, compressed, of the hot set
	plain  []catalog.ImageLayer // that cross whole
	whole  atomic.Int64         // bytes of plain layers that are left
}

func (j *prefetchJob) set(state string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.image.State = state
}

// end notes why a job failed.
func (j *prefetchJob) end(err error) {
	if err == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.image.State, j.image.Error, j.image.Code = stateFailed, err.Error(), codeOf(err)
}

func (j *prefetchJob) failed() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.image.Code != exitOK
}

// meet learns what an image is made of: its manifest, config and tables of
// contents. That crosses also in a dry run.
func (p *prefetch) meet(ctx context.Context, j *prefetchJob) error {
	j.set(stateResolving)
	src, ref, err := parseRef(j.image.Ref)
	if err != nil {
		return err
	}
	for {
		j.found, err = p.n.mirror.Fetch(ctx, src, ref, p.order.Platform)
		if !p.order.Wait || ctx.Err() != nil || !j.found.Cached && !registry.Temporary(err) {
			break
		}
		// Up again is no promise that this registry answers.
		timer := time.NewTimer(retryEvery)
		select {
		case <-ctx.Done():
		case <-p.n.meter.Changed():
		case <-timer.C:
		}
		timer.Stop()
	}
	if err != nil {
		return interrupted(ctx, err)
	}
	img := &j.found.Image
	if err := inQuarantine(p.n.catalog, img); err != nil {
		return err
	}
	if j.layers, err = p.n.catalog.Hot(img.Manifest); err != nil {
		return err
	}
	for _, l := range j.layers {
		plan, err := trace.ParsePlan(l.Hot, l.Size)
		if err == nil { // else nobody fetches by it either
			j.plan += plan.Size()
		}
	}
	if p.order.Hot && j.plan == 0 && len(j.layers) > 0 {
		return errors.New("it says nothing of what a start reads: convert it with --trace, or prefetch all of it")
	}
	if err := p.reachable(ctx, j); err != nil {
		return err
	}
	for _, l := range j.layers { // they cross beside each other since Fetch
		if _, err := p.n.fetcher.Tree(ctx, l.Slot); err != nil {
			return interrupted(ctx, err)
		}
	}
	unpacked := p.n.unpacked(ctx)
	for _, l := range img.Layers {
		if _, ok := p.n.store.HasBlob(l.Blob); l.Slot == 0 && !ok && !unpacked[l.ChainID.String()] {
			j.plain = append(j.plain, l)
			j.whole.Add(l.Size)
		}
	}
	left, err := p.left(j)
	j.mu.Lock()
	defer j.mu.Unlock()
	p.n.coming.Store(img.Manifest, j.found.Name())
	j.image.Name, j.image.Manifest, j.image.Cached = j.found.Name(), img.Manifest.String(), j.found.Cached
	j.image.Wire, j.image.Left = left, left
	return err
}

// reachable returns an error if something of an image is missing and the order
// is not to wait for a link that is dark from the beginning.
func (p *prefetch) reachable(ctx context.Context, j *prefetchJob) error {
	if p.order.Wait || !errors.Is(p.n.fetcher.Blocked(fetcher.Prefetch), fetcher.ErrDark) {
		return nil
	}
	s, err := p.n.status(&j.found.Image, p.n.unpacked(ctx))
	if err != nil || s.Complete || p.order.Hot && s.Dark == "hot" {
		return err
	}
	return errDark
}

// left returns how many bytes are still to cross for an image.
func (p *prefetch) left(j *prefetchJob) (int64, error) {
	if p.order.Hot {
		n, err := p.n.fetcher.HotWire(j.layers...)
		return n + j.whole.Load(), err
	}
	n, err := p.n.fetcher.Wire(slotsOf(&j.found.Image)...)
	return n + j.whole.Load(), err
}

// complete fetches what is missing of an image, and makes it what its tag
// means.
func (p *prefetch) complete(ctx context.Context, j *prefetchJob) error {
	if err := p.room(ctx, j); err != nil {
		return err
	}
	err := p.fetch(ctx, j)
	for range maxRoom {
		if !errors.Is(err, store.ErrNoSpace) {
			break
		}
		// Others take room, too; where more can be had, it goes on.
		freed, cerr := p.n.collect(ctx, cache.Options{})
		if cerr != nil || freed.Bytes == 0 {
			break
		}
		err = p.fetch(ctx, j)
	}
	if err == nil {
		err = p.n.compareImage(ctx, &j.found.Image)
	}
	if err != nil {
		return interrupted(ctx, err)
	}
	if err := p.n.mirror.Publish(ctx, &j.found); err != nil {
		return err
	}
	if p.order.Pin {
		if err := p.n.catalog.Pin(j.found.Image.Manifest); err != nil {
			return err
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.image.State, j.image.Left = stateComplete, 0
	if j.image.Cached {
		j.image.Error, j.image.Code = errUnasked.Error(), exitLink
	}
	return nil
}

// maxRoom is how often a prefetch makes room that others take again.
const maxRoom = 3

// room frees what the image will need, before it crosses. How much that is can't
// be known exactly: what layers share counts in each.
func (p *prefetch) room(ctx context.Context, j *prefetchJob) error {
	if err := p.n.catalog.Used(j.found.Image.Manifest, time.Now()); err != nil {
		return err
	}
	c, err := p.n.fetcher.Completeness(slotsOf(&j.found.Image)...)
	if err != nil {
		return err
	}
	need := j.whole.Load() + c.Missing
	if p.order.Hot {
		need = j.whole.Load() + max(c.HotMissing, j.plan)
	}
	u, err := p.n.store.Usage()
	if err != nil {
		return err
	}
	u.Bytes, u.Free = u.Bytes+need, u.Free-need
	if over := u.Over(); over > 0 && need > 0 {
		_, err = p.n.collect(ctx, cache.Options{Limit: max(1, u.Bytes-need-over)})
	}
	return err
}

// fetch brings what is missing of an image.
func (p *prefetch) fetch(ctx context.Context, j *prefetchJob) error {
	left, err := p.left(j)
	switch {
	case err != nil:
	case left == 0: // no need of a link, then
	case p.order.Hot:
		err = p.n.fetcher.CompleteHot(ctx, j.layers...)
	default:
		err = p.n.fetcher.Complete(ctx, slotsOf(&j.found.Image)...)
	}
	for _, l := range j.plain {
		if err == nil {
			err = p.whole(ctx, j, l)
		}
	}
	return err
}

// whole fetches a layer that is not lazy.
func (p *prefetch) whole(ctx context.Context, j *prefetchJob, l catalog.ImageLayer) (err error) {
	if _, ok := p.n.store.HasBlob(l.Blob); ok {
		return nil // an earlier attempt has counted it
	}
	before := j.whole.Load()
	defer func() {
		if err != nil {
			j.whole.Store(before)
		}
	}()
	blob, err := p.n.fetcher.Blob(ctx, fetcher.Prefetch, j.found.Src, l.Blob, l.Size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	left := l.Size
	buf := make([]byte, 64<<10)
	for {
		n, err := blob.Read(buf)
		left -= int64(n)
		j.whole.Add(-int64(n))
		if errors.Is(err, io.EOF) {
			j.whole.Add(-left)
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// interrupted returns why ctx ended if that is why something failed, in words for
// who asked.
func interrupted(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	if cause != nil && !errors.Is(err, cause) {
		err = cause
	}
	switch {
	case errors.Is(err, fetcher.ErrDark):
		return errDark
	case cause != nil && errors.Is(err, fetcher.ErrBudget):
		return exitWith(exitSpace, errors.New(strings.TrimPrefix(cause.Error(), "fetcher: ")+"; --wait waits for it"))
	}
	return err
}

// parseRef takes a reference apart as containerd does: a name without a host is
// on Docker Hub, which containerd calls docker.io.
func parseRef(s string) (src catalog.Source, ref string, err error) {
	r, err := name.ParseReference(s)
	if err != nil {
		return src, "", exitWith(exitUsage, fmt.Errorf("%q: not an image reference such as registry.example/app:1.0", s))
	}
	src = catalog.Source{Host: r.Context().RegistryStr(), Repo: r.Context().RepositoryStr()}
	if src.Host == name.DefaultRegistry {
		src.Host = "docker.io"
	}
	return src, r.Identifier(), nil
}
