package site

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/airstream-io/airstream/test/rig/images"
	"github.com/airstream-io/airstream/test/rig/node"
	"github.com/airstream-io/airstream/test/rig/refetch"
)

// Launch is one start of a container that was measured, from the beginning of
// the pull to its ready line.
type Launch struct {
	Pull  time.Duration // until the image counts as pulled
	Ready time.Duration // until the ready line
	Down  int64         // bytes of IP packets that arrived on the node until then
	Up    int64         // bytes that arrived on shore
	Conns int64         // TCP connections that were opened
	Twice int64         // bytes of lazy layers that were asked for although they were on the node; of LazyStart
	// Computed says that the pull was stopped before its end and Pull, Ready
	// and Down are what they would have been at the rate until then. That is
	// kind to it: the last layer crosses alone, and more slowly.
	Computed bool
}

// FullPull pulls an image past Airstream, as a node does today, unpacks it with
// overlayfs and starts it. A limit above 0 stops the pull after that time.
func (s *Site) FullPull(ctx context.Context, tag string, img *images.Image, limit time.Duration) (Launch, error) {
	return s.FullUpdate(ctx, tag, img, img.Compressed, limit)
}

// FullUpdate is FullPull of an image of which the node has some layers: those
// that it lacks have so many bytes.
func (s *Site) FullUpdate(ctx context.Context, tag string, img *images.Image, lacking int64, limit time.Duration) (Launch, error) {
	if err := s.PastMirror(); err != nil {
		return Launch{}, err
	}
	pull, cancel := context.WithCancel(ctx)
	defer cancel()
	if limit > 0 {
		t := time.AfterFunc(limit, cancel)
		defer t.Stop()
	}
	m, err := s.begin(ctx)
	if err != nil {
		return Launch{}, err
	}
	err = s.Node.PullTransfer(pull, s.Ref(tag), node.Overlayfs)
	if err != nil && pull.Err() != nil && ctx.Err() == nil {
		return m.computed(ctx, lacking)
	}
	if err != nil {
		return Launch{}, err
	}
	return m.ready(ctx, node.Run{Ref: s.Ref(tag), Snapshotter: node.Overlayfs, Ready: img.Ready()})
}

// LazyStart pulls an image through Airstream and starts it.
func (s *Site) LazyStart(ctx context.Context, tag string, img *images.Image) (Launch, error) {
	if err := s.ThroughMirror(); err != nil {
		return Launch{}, err
	}
	watch := refetch.New(s.Root())
	ref, err := name.ParseReference(s.Registry.Host() + "/" + tag)
	if err != nil {
		return Launch{}, fmt.Errorf("site: %w", err)
	}
	lazy, err := remote.Image(ref, remote.WithContext(ctx))
	if err != nil {
		return Launch{}, fmt.Errorf("site: %w", err)
	}
	if err := watch.Add(lazy); err != nil {
		return Launch{}, err
	}
	s.Front.SetHook(watch.Wrap(nil))
	defer s.Front.SetHook(nil)
	m, err := s.begin(ctx)
	if err != nil {
		return Launch{}, err
	}
	if err := s.Node.PullTransfer(ctx, s.Ref(tag), node.Airstream); err != nil {
		return Launch{}, err
	}
	start, err := m.ready(ctx, node.Run{Ref: s.Ref(tag), Snapshotter: node.Airstream, Ready: img.Ready()})
	if err != nil {
		return start, err
	}
	count, err := watch.Count(lazy)
	start.Twice = count.Again
	return start, err
}

// OtherStart pulls an image through the snapshotter that StartOther has started,
// past the mirror, and starts it.
func (s *Site) OtherStart(ctx context.Context, tag string, img *images.Image) (Launch, error) {
	if err := s.PastMirror(); err != nil {
		return Launch{}, err
	}
	m, err := s.begin(ctx)
	if err != nil {
		return Launch{}, err
	}
	if err := s.Node.PullTransfer(ctx, s.Ref(tag), node.Airstream); err != nil {
		return Launch{}, err
	}
	return m.ready(ctx, node.Run{Ref: s.Ref(tag), Snapshotter: node.Airstream, Ready: img.Ready()})
}

// measure is a start under way.
type measure struct {
	s        *Site
	at       time.Time
	down, up uint64
	conns    uint64
}

func (s *Site) begin(ctx context.Context) (*measure, error) {
	st, err := s.Link.Stats(ctx)
	if err != nil {
		return nil, err
	}
	return &measure{s: s, at: time.Now(), down: st.Down.Delivered.Bytes, up: st.Up.Delivered.Bytes, conns: st.Up.Connections}, nil
}

// ready runs the container and returns the whole.
func (m *measure) ready(ctx context.Context, run node.Run) (Launch, error) {
	start := Launch{Pull: time.Since(m.at)}
	result, err := m.s.Node.RunUntil(ctx, run)
	if err != nil {
		return start, err
	}
	// RunUntil also takes the container away; Ready counts from its beginning.
	start.Ready = start.Pull + result.Ready
	return start, m.count(ctx, &start)
}

func (m *measure) count(ctx context.Context, start *Launch) error {
	st, err := m.s.Link.Stats(ctx)
	if err != nil {
		return err
	}
	start.Down = int64(st.Down.Delivered.Bytes - m.down)
	start.Up = int64(st.Up.Delivered.Bytes - m.up)
	start.Conns = int64(st.Up.Connections - m.conns)
	return nil
}

// computed is for a pull that was stopped: total is how many bytes it has to
// bring.
func (m *measure) computed(ctx context.Context, total int64) (Launch, error) {
	start := Launch{Pull: time.Since(m.at), Computed: true}
	if err := m.count(ctx, &start); err != nil {
		return start, err
	}
	if start.Down < 100_000 {
		return start, errors.New("site: too little arrived to compute when the pull would have ended")
	}
	whole := float64(total) / float64(start.Down)
	start.Pull = time.Duration(float64(start.Pull) * whole)
	start.Ready, start.Down = start.Pull, total
	return start, nil
}

func (l Launch) String() string {
	about := ""
	if l.Computed {
		about = "about "
	}
	return fmt.Sprintf("%s%.1f s, %s%.1f MB", about, l.Ready.Seconds(), about, float64(l.Down)/1e6)
}
