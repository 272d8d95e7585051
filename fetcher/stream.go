package fetcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

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
// other in place of all of them. They are made several at a time, for of one
// connection a loss takes half (facts: 27% of geo-vsat at 1%, and 79% with eight).
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
		if err := s.run(f.run); err != nil && f.run.Err() == nil {
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

// run brings the frames of which most is missing.
func (s *hotStream) run(ctx context.Context) error {
	raw, err := s.fetchRoot(ctx)
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
	if err := s.read(raw); err != nil {
		return err
	}
	requests, ctx := errgroup.WithContext(ctx)
	for range s.parallel() {
		requests.Go(func() error { return s.bring(ctx) })
	}
	return requests.Wait()
}

// parallel is how many requests to make at a time: as many frames as fill the
// link for two and a half round trips, so that loss on some leaves it full.
func (s *hotStream) parallel() int {
	frame := max(1, s.ref.Hot.Size/int64(max(1, len(s.frames))))
	return int(min(max((s.f.meter.BandwidthDelay()*5/2+frame-1)/frame, 2), maxBlobs))
}

// bring makes requests one after another until nothing is left to ask for.
func (s *hotStream) bring(ctx context.Context) error {
	o, err := artifact.NewOpener()
	if err != nil {
		return err
	}
	defer o.Close()
	for {
		more, err := s.attempt(ctx, o)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && (errors.Is(err, artifact.ErrInvalid) || errors.Is(err, chunk.ErrMismatch) || errors.Is(err, ErrBusy) || isLocal(err) || isRefusal(err) && !isNotNow(err)):
			return err // the layers have it, too
		case err == nil && !more:
			return nil
		}
	}
}

// fetchRoot brings the root of the TOC blob, which says what is in the frames.
func (s *hotStream) fetchRoot(ctx context.Context) ([]byte, error) {
	for {
		t, err := s.f.ask(ctx, &errand{kind: forTable, class: func() Class { return Hot }, from: &s.from})
		if err != nil {
			return nil, err
		}
		raw := make([]byte, s.ref.Root.Size)
		err = s.get(ctx, t, s.ref.TOC, 0, s.ref.Root.Size, func(r, _ io.Reader) error {
			_, err := io.ReadFull(r, raw)
			return err
		})
		if err == nil {
			err = s.ref.Root.Verify(raw)
		}
		s.f.mu.Lock()
		s.f.giveBack(t, &s.from, err, false)
		s.f.dispatch()
		s.f.mu.Unlock()
		switch {
		case err == nil:
			return raw, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, artifact.ErrMismatch), isRefusal(err) && !isNotNow(err):
			return nil, err
		}
	}
}

// get makes one request for n bytes of a blob from off on.
func (s *hotStream) get(ctx context.Context, t *ticket, b artifact.Blob, off, n int64, read func(r, body io.Reader) error) error {
	s.f.mu.Lock()
	class := t.class
	s.f.mu.Unlock()
	rc, start, err := s.f.reg.Blob(ctx, class, t.src, digest.Digest(b.Digest), off, n)
	if err != nil {
		return err
	}
	t.answer()
	r := heard{rc, t}
	_, err = io.CopyN(io.Discard, r, off-start)
	if err == nil {
		err = read(r, rc)
	}
	return errors.Join(err, rc.Close())
}

// read finds out what is in the frames. A root that doesn't go with the layers'
// tables is of no use.
func (s *hotStream) read(raw []byte) error {
	root, err := artifact.ParseRoot(raw)
	if err != nil {
		return err
	}
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
