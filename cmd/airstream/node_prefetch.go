package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/airstream-io/airstream/fetcher"
)

const (
	// maxResolve is how many references are resolved at a time.
	maxResolve = 4
	// darkGrace is how long a prefetch that is not to wait bears a dark link
	// that was up: most outages on satellite links are over by then. A guess.
	darkGrace = time.Minute
	// retryEvery is how often a prefetch that waits asks a registry again.
	retryEvery = 10 * time.Second
)

// The states of a prefetchImage.
const (
	stateWaiting   = "waiting"
	stateResolving = "resolving"
	stateFetching  = "fetching"
	stateReady     = "ready" // known, nothing fetched: a dry run
	stateComplete  = "complete"
	stateFailed    = "failed"
)

// errUnasked says that an image is complete as far as the node can tell.
var errUnasked = errors.New("the registry can't be asked whether the tag has moved; what it meant last is complete")

// errDark is fetcher.ErrDark in words for who asked.
var errDark = fmt.Errorf("%w; run the same command again to go on, or use --wait", fetcher.ErrDark)

// prefetch is a prefetch under way. Images that are complete get their tags one
// by one; until then a tag means what it meant before.
type prefetch struct {
	n     *node
	order prefetchOrder
	jobs  []*prefetchJob
	wire  atomic.Int64 // bytes, compressed, that were to cross for all of them
}

// postPrefetch completes images and streams how far it has come.
func (n *node) postPrefetch(w http.ResponseWriter, r *http.Request) {
	o, err := order[prefetchOrder](r)
	if err == nil && len(o.Refs) == 0 {
		err = exitWith(exitUsage, errors.New("no image is named"))
	}
	if err != nil {
		n.answer(w, r, nil, err)
		return
	}
	p := &prefetch{n: n, order: o}
	for _, ref := range o.Refs {
		p.jobs = append(p.jobs, &prefetchJob{image: prefetchImage{Ref: ref, State: stateWaiting, Hot: o.Hot}})
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	done := make(chan error, 1)
	go func() {
		err := p.run(ctx)
		for _, j := range p.jobs {
			n.coming.Delete(j.found.Image.Manifest)
		}
		done <- err
	}()
	events := n.stream(w)
	events.send(p.event())
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	var darkSince time.Time
	for {
		select {
		case err := <-done:
			last := p.event()
			last.Done = true
			if err != nil {
				last.Error, last.Code = err.Error(), codeOf(err)
			}
			events.send(last)
			return
		case now := <-tick.C:
			if err := p.held(now, &darkSince); err != nil {
				cancel(err)
			}
			events.send(p.event())
		}
	}
}

// held returns why a prefetch that is not to wait should end now.
func (p *prefetch) held(now time.Time, darkSince *time.Time) error {
	err := p.n.fetcher.Blocked(fetcher.Prefetch)
	switch {
	case p.order.Wait || err == nil:
		*darkSince = time.Time{}
		return nil
	case !errors.Is(err, fetcher.ErrDark):
		return err
	case darkSince.IsZero():
		*darkSince = now
		return nil
	case now.Sub(*darkSince) < darkGrace:
		return nil
	}
	return err
}

// run does all of it. The error says why each image failed that did; its exit
// code is the first one's.
func (p *prefetch) run(ctx context.Context) error {
	var g errgroup.Group // one image's failure does not end the others
	g.SetLimit(maxResolve)
	for _, j := range p.jobs {
		g.Go(func() error {
			j.end(p.meet(ctx, j))
			return nil
		})
	}
	_ = g.Wait() // the jobs have the errors
	p.wire.Store(p.leftOfAll())
	for _, j := range p.jobs {
		if j.failed() {
			continue
		}
		if p.order.DryRun {
			j.set(stateReady)
			continue
		}
		j.set(stateFetching)
		j.end(p.complete(ctx, j))
	}
	return p.failure()
}

// failure says why images failed, once for all that did for the same reason; nil
// if none did.
func (p *prefetch) failure() error {
	var whys []string
	refs := map[string][]string{}
	code := exitOK
	for _, j := range p.jobs {
		j.mu.Lock()
		ref, why := j.image.Ref, j.image.Error
		code = cmp.Or(code, j.image.Code)
		j.mu.Unlock()
		if why == "" {
			continue
		}
		if len(refs[why]) == 0 {
			whys = append(whys, why)
		}
		refs[why] = append(refs[why], ref)
	}
	var errs []error
	for _, why := range whys {
		errs = append(errs, fmt.Errorf("%s: %s", strings.Join(refs[why], ", "), why))
	}
	return exitWith(code, errors.Join(errs...))
}

// leftOfAll returns that of all images, where layers that they share count once.
func (p *prefetch) leftOfAll() int64 {
	var slots []uint32
	var sum int64
	for _, j := range p.jobs {
		if j.failed() {
			continue
		}
		slots = append(slots, slotsOf(&j.found.Image)...)
		n, err := p.left(j)
		if !p.order.Hot {
			n = j.whole.Load()
		}
		if err == nil {
			sum += n
		}
	}
	if p.order.Hot {
		return sum
	}
	n, err := p.n.fetcher.Wire(slots...)
	if err != nil {
		return sum // a layer that can't be served: its image fails
	}
	return sum + n
}

// event says how far it has come.
func (p *prefetch) event() prefetchEvent {
	e := prefetchEvent{Images: make([]prefetchImage, 0, len(p.jobs)), Link: p.n.linkStatus(), Wire: p.wire.Load()}
	if e.Wire > 0 {
		e.Left = min(e.Wire, p.leftOfAll())
	}
	if err := p.n.fetcher.Blocked(fetcher.Prefetch); err != nil {
		e.Held = strings.TrimPrefix(err.Error(), "fetcher: ")
	}
	for _, j := range p.jobs {
		e.Images = append(e.Images, p.progress(j))
	}
	return e
}

// progress returns the state of a job with what is left of it now.
func (p *prefetch) progress(j *prefetchJob) prefetchImage {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.image.State != stateFetching {
		return j.image
	}
	if left, err := p.left(j); err == nil {
		j.image.Left = min(left, j.image.Left)
	}
	return j.image
}
