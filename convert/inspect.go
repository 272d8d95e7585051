package convert

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"

	"github.com/airstream-io/airstream/convert/internal/cancelable"
	"github.com/airstream-io/airstream/convert/layer"
	"github.com/airstream-io/airstream/internal/artifact"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
)

// inspected is what is kept of a converted layer until all layers are done and
// it is clear what the image's start reads.
type inspected struct {
	matches []*trace.Match // by number of the matcher
	spool   *spool         // nil if no artifact can be made of the layer
}

// spool holds, in a scratch file, what an artifact takes of a layer: its tree,
// and the members of its blob that some trace may want. Both are on disk because
// an image has many layers; the blob itself is gone by then.
type spool struct {
	*os.File
	tree    int64          // bytes, at the beginning
	end     int64          // bytes, all of it
	members map[int64]span // by offset in the blob
}

type span struct{ offset, size int64 } // bytes, in the spool

// blobReader reads a converted layer from an offset on.
type blobReader interface {
	from(ctx context.Context, offset int64) (io.ReadCloser, error)
	// reach is how many bytes are sooner read than left out by another call.
	reach() int64
}

// scratchLayer is a layer that was built now.
type scratchLayer struct {
	f    *os.File
	size int64
}

func (s scratchLayer) from(_ context.Context, offset int64) (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(s.f, offset, s.size-offset)), nil
}

func (scratchLayer) reach() int64 { return 0 }

// placedLayer is one that is in a place.
type placedLayer struct {
	src Source
	c   converted
}

func (p placedLayer) from(ctx context.Context, offset int64) (io.ReadCloser, error) {
	if rs, ok := p.src.(rangeSource); ok {
		return rs.BlobFrom(ctx, p.c.descriptor(), offset)
	}
	blob, err := open(ctx, p.src, p.c.descriptor())
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, cancelable.Reader(ctx, blob), offset); err != nil {
		return nil, errors.Join(err, blob.Close())
	}
	return blob, nil
}

func (p placedLayer) reach() int64 {
	if _, ok := p.src.(rangeSource); ok {
		return 1 << 20 // a round trip on a good link
	}
	return p.c.Size
}

// inspect looks into a layer that was built.
func (w *works) inspect(ctx context.Context, c converted, blob scratchLayer) (inspected, error) {
	return w.look(ctx, c, blob, func(use func(*toc.Tree)) error {
		return parseTable(io.NewSectionReader(blob.f, c.TOCOffset, c.Size-c.TOCOffset), c, use)
	})
}

// inspectAt looks into a layer that was converted earlier, and is at src: the
// result is what it was, or would have been, when it was built.
func (w *works) inspectAt(ctx context.Context, src Source, c converted, task Task) (inspected, error) {
	if len(w.matchers) == 0 && w.o.WithoutArtifact {
		return inspected{}, nil
	}
	if src == nil {
		return inspected{}, errors.New("there is no place to read the table of contents from")
	}
	task.Phase("fetch", c.Size)
	return w.look(ctx, c, placedLayer{src, c}, func(use func(*toc.Tree)) error {
		return readTable(ctx, src, c, task.Advance, use)
	})
}

func (w *works) look(ctx context.Context, c converted, blob blobReader, table func(use func(*toc.Tree)) error) (in inspected, err error) {
	if len(w.matchers) == 0 && w.o.WithoutArtifact {
		return inspected{}, nil
	}
	var spoolErr error
	err = table(func(tree *toc.Tree) {
		for _, m := range w.matchers {
			in.matches = append(in.matches, m.Match(tree))
		}
		if !w.o.WithoutArtifact {
			in.spool, spoolErr = w.newSpool(tree)
		}
	})
	if errors.Is(err, toc.ErrInvalid) && len(w.matchers) == 0 {
		w.o.Log.WarnContext(ctx, "nodes can't serve this layer lazily, and its image has no artifact", slog.String("layer", c.Digest.String()), slog.Any("error", err))
		return inspected{}, nil
	}
	if err = errors.Join(err, spoolErr); err != nil || in.spool == nil {
		return in, err
	}
	return in, in.spool.fill(ctx, blob, in.matches)
}

// newSpool makes a spool that has the tree.
func (w *works) newSpool(tree *toc.Tree) (*spool, error) {
	f, err := w.scratch()
	if err != nil {
		return nil, err
	}
	s := &spool{File: f, members: map[int64]span{}}
	w.mu.Lock()
	w.spools = append(w.spools, s)
	w.mu.Unlock()
	n, err := f.Write(tree.Bytes())
	s.tree, s.end = int64(n), int64(n)
	return s, err
}

func (w *works) closeSpools() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.spools {
		_ = s.Close() // a scratch file
	}
	w.spools = nil
}

// fill copies the members that the traces may want.
func (s *spool) fill(ctx context.Context, blob blobReader, matches []*trace.Match) error {
	var want []trace.Run
	for _, m := range matches {
		want = append(want, m.Members()...)
	}
	slices.SortFunc(want, func(a, b trace.Run) int { return cmp.Compare(a.Offset, b.Offset) })
	want = slices.Compact(want)
	for len(want) > 0 {
		n := 1
		for n < len(want) && want[n].Offset-want[n-1].Offset-want[n-1].Size <= blob.reach() {
			n++
		}
		if err := s.copyFrom(ctx, blob, want[:n]); err != nil {
			return fmt.Errorf("what a start reads: %w", err)
		}
		want = want[n:]
	}
	return nil
}

// copyFrom copies members that are read in one go.
func (s *spool) copyFrom(ctx context.Context, blob blobReader, want []trace.Run) error {
	rc, err := blob.from(ctx, want[0].Offset)
	if err != nil {
		return err
	}
	defer rc.Close() //nolint:errcheck // a reader
	r := cancelable.Reader(ctx, rc)
	at := want[0].Offset
	for _, m := range want {
		if _, err := io.CopyN(io.Discard, r, m.Offset-at); err != nil {
			return err
		}
		if _, err := io.CopyN(s, r, m.Size); err != nil {
			return err
		}
		s.members[m.Offset] = span{s.end, m.Size}
		s.end += m.Size
		at = m.Offset + m.Size
	}
	return nil
}

// load returns the layer's tree.
func (s *spool) load() (*toc.Tree, error) {
	raw := make([]byte, s.tree)
	if _, err := s.ReadAt(raw, 0); err != nil {
		return nil, err
	}
	return toc.Load(raw)
}

// content returns the bytes of a chunk. They are not verified.
func (s *spool) content(w artifact.Wanted) ([]byte, error) {
	at, ok := s.members[w.Member.Offset]
	if !ok {
		return nil, fmt.Errorf("a start reads the member at %d, and no trace named it", w.Member.Offset)
	}
	z, err := layer.Decompress(io.NewSectionReader(s, at.offset, at.size))
	if err != nil {
		return nil, err
	}
	defer z.Close() //nolint:errcheck // a reader
	if _, err := io.CopyN(io.Discard, z, int64(w.Chunk.Inner)); err != nil {
		return nil, err
	}
	p := make([]byte, w.Chunk.Size)
	_, err = io.ReadFull(z, p)
	return p, err
}
