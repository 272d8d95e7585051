package fetcher

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/store"
	"github.com/airstream-io/airstream/internal/toc"
)

// ErrQuarantined says that a layer turned out to be something else than its image
// says. Nothing of it is served any more.
var ErrQuarantined = errors.New("the layer is in quarantine")

// Compare makes the tar of a layer that is here whole and of which a proxy says what is
// in it, and compares its digest with the layer's diffID, and the tree that was served
// with the tar's. If they differ, wrong says how, and the layer is in quarantine from
// now on. An error says that it can't be told.
func (f *Fetcher) Compare(ctx context.Context, slot uint32) (wrong string, err error) {
	l, here, err := f.here(slot)
	if err != nil {
		return "", err
	}
	if !here || !l.OnWord() {
		return "", fmt.Errorf("fetcher: compare layer %s: it is not here, or its image vouches for it", l.Blob)
	}
	info, err := f.catalog.Layer(slot) // the outline may have come after the layer was met
	if err != nil {
		return "", fmt.Errorf("fetcher: %w", err)
	}
	if wrong, err = f.compare(ctx, l, info.Outline, info.TarSize); err != nil {
		return "", fmt.Errorf("fetcher: compare layer %s: %w", l.Blob, err)
	}
	if wrong == "" {
		return "", nil
	}
	l.quarantine.Store(&wrong)
	return wrong, nil
}

func (f *Fetcher) compare(ctx context.Context, l *layer, outline digest.Digest, size int64) (wrong string, err error) {
	raw, err := f.store.ReadBlob(outline, toc.MaxJSONSize)
	if err != nil {
		return "", err
	}
	select {
	case f.parses <- struct{}{}:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	tree, err := toc.ParseOutline(bytes.NewReader(raw), size)
	<-f.parses
	if err != nil {
		return "", err
	}
	if !bytes.Equal(tree.Bytes(), l.tree.Bytes()) {
		return "what was served of it is not what its tar has", nil
	}
	sum := sha256.New()
	s := &stored{f: f, l: l}
	err = toc.Rebuild(stopping{ctx, sum}, bytes.NewReader(raw), s.chunk)
	if err = errors.Join(err, s.close()); err != nil {
		return "", err
	}
	if have := digest.NewDigest(digest.SHA256, sum); have != l.DiffID {
		return fmt.Sprintf("its tar is %s, and the image says %s", have, l.DiffID), nil
	}
	return "", nil
}

// stopping is a writer that stops with a context.
type stopping struct {
	ctx context.Context //nolint:containedctx // of the one call that it lives for
	w   io.Writer
}

// Write implements io.Writer.
func (s stopping) Write(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.w.Write(p)
}

// stored reads a layer's chunks in their order.
type stored struct {
	f    *Fetcher
	l    *layer
	open *store.Object // of the file at entry
	file uint32
	buf  [chunk.MaxSize]byte
}

// chunk returns a chunk, verified: what the disk has changed must not be taken for
// what the proxy has sent.
func (s *stored) chunk(n uint32, id chunk.ID, size int64) ([]byte, error) {
	k := s.l.tree.Chunk(n)
	if k.ID != id || int64(k.Size) != size {
		return nil, fmt.Errorf("chunk %d is another one", n)
	}
	if file := s.l.tree.ChunkFile(n); s.open == nil || file != s.file {
		if err := s.close(); err != nil {
			return nil, err
		}
		p, chunks := s.l.pieceOf(n)
		o, err := s.f.store.Object(p.object, s.l.tree.Attr(file).Size, chunks)
		if err != nil {
			return nil, err
		}
		s.open, s.file = o, file
	}
	b := s.buf[:size]
	if _, err := s.open.ReadAt(b, k.Offset); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b, id.Verify(b)
}

func (s *stored) close() error {
	if s.open == nil {
		return nil
	}
	o := s.open
	s.open = nil
	return o.Close()
}

// inQuarantine returns why nothing of a layer is served; nil if it is.
func (l *layer) inQuarantine() error {
	if why := l.quarantine.Load(); why != nil {
		return fmt.Errorf("fetcher: layer %s: %w: %s", l.Blob, ErrQuarantined, *why)
	}
	return nil
}
