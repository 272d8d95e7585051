package fetcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/airstream-io/airstream/internal/artifact"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/trace"
)

// A hot set as one blob
//
// The plans of an image's layers are hundreds of ranges of the layers' blobs. An
// image that has an artifact has the same content once more, in the order of the
// start and compressed better, in one blob: a few requests for what follows each
// other in place of all of them. They are made several at a time, because one loss
// takes half of what a connection brings: over geo-vsat, with 1%, one uses a
// quarter of the link.
// It is only another way for the same chunks: which they are, and whether the
// bytes are right, say the layers' own tables, and what the blob doesn't bring
// the plans bring.
//
// While it crosses it carries what readers may want of it, as transfers do, one
// for each layer: a reader waits for what comes anyhow, unless that is far off.

// WarmFrom does what Warm does, with the hot blob of the image's artifact as far
// as that goes. layers are all of the image's, the lowest first. It returns at
// once.
func (f *Fetcher) WarmFrom(from catalog.Source, ref artifact.Ref, layers ...catalog.Layer) error {
	if ref.Hot == (artifact.Blob{}) {
		return f.Warm(layers...)
	}
	s := &hotStream{f: f, ref: ref, infos: layers, from: origins{sources: []catalog.Source{from}}}
	for _, info := range layers {
		l, err := f.layer(info.Slot, false)
		if err != nil {
			return err
		}
		s.layers = append(s.layers, l)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing {
		return fmt.Errorf("fetcher: warm: %w", context.Canceled)
	}
	f.work.Go(func() {
		if err := s.runUncovered(f.run); err != nil && f.run.Err() == nil {
			f.log.Info("the rest of a hot set comes with the layers", slog.String("blob", ref.Hot.Digest), slog.Any("error", err))
		}
		if s.forgotten() {
			return
		}
		if err := f.Warm(layers...); err != nil && f.run.Err() == nil {
			f.log.Warn("a hot set is not fetched", slog.String("blob", ref.Hot.Digest), slog.Any("error", err))
		}
	})
	return nil
}

// hotStream is a hot blob that is crossing.
type hotStream struct {
	f      *Fetcher
	ref    artifact.Ref
	infos  []catalog.Layer
	layers []*layer // of infos
	frames []artifact.Frame
	from   origins // guarded by Fetcher.mu
}

// forgotten tells whether a layer was given up meanwhile.
func (s *hotStream) forgotten() bool {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	return slices.ContainsFunc(s.layers, func(l *layer) bool { return l.gone })
}

// runUncovered runs for as long as no Pusher brings the layers: what a start
// reads comes from there without being asked for.
func (s *hotStream) runUncovered(ctx context.Context) error {
	if slices.ContainsFunc(s.layers, s.f.isCovered) {
		return nil // not even the root is worth a request
	}
	if s.isHere() {
		return nil
	}
	run, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	for _, l := range s.layers {
		watch.Go(func() { s.f.awaitCover(run, l, cancel) })
	}
	err := s.run(run)
	covered := run.Err() != nil
	cancel()
	watch.Wait()
	if covered && ctx.Err() == nil {
		return nil
	}
	return err
}

// isHere tells whether nothing of the layers is missing.
func (s *hotStream) isHere() bool {
	slots := make([]uint32, 0, len(s.layers))
	for _, l := range s.layers {
		slots = append(slots, l.Slot)
	}
	c, err := s.f.Completeness(slots...)
	return err == nil && c.Complete()
}

// run brings the frames of which most is missing.
func (s *hotStream) run(ctx context.Context) error {
	r := s.f.useRoot(s.ref, s.from.sources, nil) //nolint:contextcheck // it is for all who use it
	defer s.f.leaveRoot(r, nil)
	root, err := r.wait(ctx)
	if err != nil {
		return err
	}
	for i, l := range s.layers {
		if err := s.f.awaitQuietly(ctx, l); err != nil {
			return err
		}
		s.f.count(l)
		if plan, err := trace.ParsePlan(s.infos[i].Hot, l.Size); err == nil {
			s.f.planned(l, plan)
		}
	}
	if err := s.read(root); err != nil {
		return err
	}
	return s.bring(ctx)
}

// parallel is how many requests to make at a time now: as many frames as fill
// the link for two and a half round trips, and twice as many where packets are
// lost. It is asked again and again, for at a start the link is not known.
func (s *hotStream) parallel() int {
	frame := max(1, s.ref.Hot.Size/int64(max(1, len(s.frames))))
	n := max((s.f.meter.BandwidthDelay()*5/2+frame-1)/frame, 2)
	if s.f.meter.State().Loss > lossy {
		n *= 2
	}
	return int(min(n, maxBlobs))
}

const (
	lossy     = 0.005                  // share of packets; what the link's meter takes for more than now and then
	lookAgain = 200 * time.Millisecond // at how many requests pay
)

// bring makes requests until nothing is left to ask for.
func (s *hotStream) bring(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		more bool
		err  error
	}
	results := make(chan result)
	openers := make(chan *artifact.Opener, maxBlobs) // those that nobody uses
	defer func() {
		for len(openers) > 0 {
			(<-openers).Close()
		}
	}()
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for active, left := 0, true; left || active > 0; {
		for ; left && active < s.parallel(); active++ {
			go func() {
				more, err := s.once(ctx, openers)
				results <- result{more, err}
			}()
		}
		select {
		case r := <-results:
			active--
			left = r.more && err == nil
			if err == nil && r.err != nil && !s.passes(ctx, r.err) {
				err, left = r.err, false // the layers have it, too
				cancel()
			}
		case <-tick.C:
		}
	}
	return err
}

// once makes one request with an opener of those that are free.
func (s *hotStream) once(ctx context.Context, openers chan *artifact.Opener) (more bool, err error) {
	var o *artifact.Opener
	select {
	case o = <-openers:
	default:
		if o, err = artifact.NewOpener(); err != nil {
			return false, err
		}
	}
	defer func() { openers <- o }()
	return s.attempt(ctx, o)
}

// passes tells whether it is worth asking again after an error.
func (s *hotStream) passes(ctx context.Context, err error) bool {
	switch {
	case ctx.Err() != nil, errors.Is(err, artifact.ErrInvalid), errors.Is(err, chunk.ErrMismatch), errors.Is(err, ErrBusy), isLocal(err):
		return false
	}
	return !isRefusal(err) || isNotNow(err)
}

// read finds out what is in the frames. A root that doesn't go with the layers'
// tables is of no use.
func (s *hotStream) read(root *artifact.Root) error {
	if root.Layers() != len(s.layers) || root.Hot() == nil || root.Hot().Size() != s.ref.Hot.Size {
		return fmt.Errorf("fetcher: %w: it is about another image", artifact.ErrInvalid)
	}
	for _, f := range root.Hot().Frames() {
		size := 0
		for _, run := range f.Chunks {
			tree := s.layers[run.Layer].tree
			for c := run.First; c < run.First+run.Count; c++ {
				if int(c) >= tree.NumChunks() {
					return fmt.Errorf("fetcher: %w: a chunk that the layer doesn't have", artifact.ErrInvalid)
				}
				size += int(tree.Chunk(c).Size)
			}
		}
		if size != f.Raw {
			return fmt.Errorf("fetcher: %w: a frame of %d bytes for %d", artifact.ErrInvalid, f.Raw, size)
		}
	}
	s.frames = root.Hot().Frames()
	return nil
}
