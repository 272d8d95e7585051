package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"strconv"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/internal/link/wire"
	"github.com/airstream-io/airstream/internal/toc"
)

// A layer that was never converted has no table, and its chunks lie behind each
// other in one compressed stream. It is read once, from its beginning to its end: its
// outline (package toc) goes to the cache, and its tar in blocks, so that chunks can
// be had in any order. When a block is wanted that had to go, the layer is read again.
//
// In the cache, of a layer with the digest of blob D:
//
//	outline/D/head  what follows is known of it, see outline.marshal
//	outline/D/body  the outline
//	tar/D/N         bytes N MiB and on of its tar, 1 MiB, the last one shorter

const (
	maxOutline   = 48 << 20  // bytes; it is held in memory to be compressed
	maxZstd      = 128 << 20 // bytes of window; what zstd --long makes by itself
	maxIndexings = 2         // layers that are read at a time: memory, and blocks of both are to fit into the cache
)

// outline is what is known of a layer that was never converted.
type outline struct {
	diffID  [sha256.Size]byte
	body    [sha256.Size]byte // the outline's digest
	size    int64             // bytes of the tar
	refused string            // why it is not served in pieces; then the rest is not set
}

// marshal returns the entry of the cache: SHA-256 of what follows, the three
// fields (the size in 8 bytes, big-endian), and why it is refused.
func (o *outline) marshal() []byte {
	b := append(o.diffID[:], o.body[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(o.size)) //nolint:gosec // not negative
	b = append(b, o.refused...)
	sum := sha256.Sum256(b)
	return append(sum[:], b...)
}

const outlineHead = 3*sha256.Size + 8

func parseOutlineHead(b []byte) (*outline, bool) {
	if len(b) < outlineHead {
		return nil, false
	}
	if sum := sha256.Sum256(b[sha256.Size:]); !bytes.Equal(sum[:], b[:sha256.Size]) {
		return nil, false
	}
	return &outline{
		diffID: [32]byte(b[32:]), body: [32]byte(b[64:]), size: int64(binary.BigEndian.Uint64(b[96:])), refused: string(b[outlineHead:]), //nolint:gosec // we wrote it
	}, true
}

// unconverted opens a layer that has no table of its own. diffID is what the image's
// config says of it.
func (s *Server) unconverted(ctx context.Context, repo name.Repository, desc ocispec.Descriptor, diffID digest.Digest) (*layer, error) {
	if desc.Digest.Validate() != nil || desc.Digest.Algorithm() != digest.SHA256 {
		return nil, refuse(wire.Reason_REASON_IMAGE, "layer %s has no SHA-256 digest", desc.Digest)
	}
	l := &layer{s: s, repo: repo, desc: desc, toc: annotation.TableOf(desc.Digest, nil)}
	if err := l.readOutline(ctx); err != nil {
		return nil, err
	}
	if have := digest.NewDigestFromBytes(digest.SHA256, l.outline.diffID[:]); have != diffID {
		return nil, refuse(wire.Reason_REASON_IMAGE, "layer %s has diffID %s, and its image says %s", desc.Digest, have, diffID)
	}
	var err error
	l.tree, err = s.trees.get(ctx, l.toc, func() (*toc.Tree, error) { return l.load(ctx) })
	return l, err
}

// readOutline sees to it that the layer was read, and knows what came of it.
func (l *layer) readOutline(ctx context.Context) error {
	key := outlineKey(l.desc.Digest, "head")
	raw, err := l.s.cache.bytes(ctx, l.s.run, key, 1<<10, func(ctx context.Context) ([]byte, error) {
		o, err := l.s.index(ctx, l.repo, l.desc)
		if err != nil {
			return nil, err
		}
		return o.marshal(), nil
	})
	if err != nil {
		return err
	}
	o, ok := parseOutlineHead(raw)
	if !ok {
		l.s.cache.drop(key)
		return &link.Refusal{Reason: wire.Reason_REASON_LIMIT, Text: "the proxy's cache is damaged; it reads layer " + l.desc.Digest.String() + " again"}
	}
	if o.refused != "" {
		return refuse(wire.Reason_REASON_IMAGE, "%s", o.refused)
	}
	l.outline, l.payload = o, o.size
	return nil
}

// again has the layer read again: a part of it is not in the cache any more.
func (l *layer) again(ctx context.Context) error {
	l.s.cache.drop(outlineKey(l.desc.Digest, "head"))
	return l.readOutline(ctx)
}

// outlineBody returns the layer's outline, verified.
func (l *layer) outlineBody(ctx context.Context) ([]byte, error) {
	key := outlineKey(l.desc.Digest, "body")
	for try := 0; ; try++ {
		b, ok := l.s.cache.get(key, maxOutline)
		if ok && sha256.Sum256(b) == l.outline.body {
			return b, nil
		}
		if try > 0 {
			return nil, l.tooSmall()
		}
		l.s.cache.drop(key)
		if err := l.again(ctx); err != nil {
			return nil, err
		}
	}
}

func (l *layer) tooSmall() error {
	return &link.Refusal{Reason: wire.Reason_REASON_LIMIT, Text: fmt.Sprintf("the proxy's cache has no room for layer %s", l.desc.Digest)}
}

// outlined tells whether a layer that has no table of its own was read before.
func (s *Server) outlined(blob digest.Digest) bool {
	return s.cache.has(outlineKey(blob, "head")) && s.cache.has(outlineKey(blob, "body"))
}

func outlineKey(blob digest.Digest, part string) string {
	return "outline/" + blob.Encoded() + "/" + part
}

func tarKey(blob digest.Digest, block int64) string {
	return "tar/" + blob.Encoded() + "/" + strconv.FormatInt(block, 10)
}

// readTar reads the layer's tar at a place. Whoever calls it verifies what it reads.
func (l *layer) readTar(ctx context.Context, p []byte, off int64) error {
	for tried := false; len(p) > 0; {
		block, inner := off/blockSize, off%blockSize
		part := p[:min(int64(len(p)), blockSize-inner)]
		if l.s.cache.readAt(tarKey(l.desc.Digest, block), part, inner) {
			p, off, tried = p[len(part):], off+int64(len(part)), false
			continue
		}
		if tried {
			return l.tooSmall()
		}
		tried = true
		if err := l.again(ctx); err != nil {
			return err
		}
	}
	return nil
}

// progress is how far the reading of a layer is.
type progress struct {
	read, size int64 // bytes of the blob; read atomically
}

func (p *progress) String() string {
	return fmt.Sprintf("%d of %d kB", atomic.LoadInt64(&p.read)/1000, p.size/1000)
}

// errRoom says that the cache could never hold a layer.
var errRoom = errors.New("its tar has more bytes than half of the proxy's cache (cache.limit)")

// index reads a layer and caches what it finds. What can't be served in pieces is no
// error: it is remembered. For each layer it runs once at a time.
func (s *Server) index(ctx context.Context, repo name.Repository, desc ocispec.Descriptor) (*outline, error) {
	if err := s.indexings.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer s.indexings.Release(1)
	at := &progress{size: desc.Size}
	s.indexed.Store(desc.Digest, at)
	defer s.indexed.Delete(desc.Digest)
	body, err := s.upstream.blob(ctx, repo, desc.Digest, 0, -1)
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	in := io.TeeReader(io.LimitReader(body, desc.Size+1), io.MultiWriter(sum, at))
	o, tree, why := s.outlineOf(desc.Digest, in)
	_, err = io.Copy(io.Discard, in)
	err = errors.Join(err, body.Close())
	if r, ok := errors.AsType[*link.Refusal](errors.Join(why, err)); ok {
		return nil, r // the registry's trouble, not the layer's
	}
	if err != nil || ctx.Err() != nil {
		return nil, errors.Join(err, ctx.Err())
	}
	if at.read != desc.Size || digest.NewDigest(digest.SHA256, sum) != desc.Digest {
		return nil, refuse(wire.Reason_REASON_UPSTREAM, "registry %s sends another blob than %s", repo.RegistryStr(), desc.Digest)
	}
	if why != nil {
		s.log.InfoContext(ctx, "a layer that was not converted is not served in pieces", slog.String("layer", desc.Digest.String()), slog.Any("error", why))
		return &outline{refused: truncate(fmt.Sprintf("layer %s is not served in pieces: %v", desc.Digest, why))}, nil
	}
	s.cacheTree(annotation.TableOf(desc.Digest, nil), tree)
	return o, nil
}

func truncate(s string) string { return s[:min(len(s), 512)] }

// Write implements io.Writer: it counts.
func (p *progress) Write(b []byte) (int, error) {
	atomic.AddInt64(&p.read, int64(len(b)))
	return len(b), nil
}

// outlineOf makes the outline and the tree of a blob and caches its tar.
func (s *Server) outlineOf(blob digest.Digest, in io.Reader) (*outline, *toc.Tree, error) {
	r, stop, err := decompress(in)
	if err != nil {
		return nil, nil, err
	}
	defer stop()
	w := &tarWriter{s: s, blob: blob, sum: sha256.New(), buf: make([]byte, 0, blockSize)}
	var out bytes.Buffer
	size, err := toc.WriteOutline(&limited{&out}, io.TeeReader(r, w))
	if err != nil {
		return nil, nil, err
	}
	w.flush()
	tree, err := toc.ParseOutline(bytes.NewReader(out.Bytes()), size)
	if err != nil {
		return nil, nil, err
	}
	s.cache.put(outlineKey(blob, "body"), out.Bytes())
	return &outline{diffID: [32]byte(w.sum.Sum(nil)), body: sha256.Sum256(out.Bytes()), size: size}, tree, nil
}

// decompress finds out by itself how a layer is compressed: media types are often
// wrong.
func decompress(in io.Reader) (r io.Reader, stop func(), err error) {
	br := bufio.NewReaderSize(in, 64<<10)
	magic, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		zr, err := gzip.NewReader(br)
		return zr, func() {}, err
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		zr, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstd))
		if err != nil {
			return nil, nil, err
		}
		return zr, zr.Close, nil
	}
	return br, func() {}, nil
}

// limited is a buffer that doesn't grow for ever.
type limited struct{ *bytes.Buffer }

// Write implements io.Writer.
func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > maxOutline {
		return 0, fmt.Errorf("its outline has more than %d bytes", maxOutline)
	}
	return l.Buffer.Write(p)
}

// tarWriter hashes a tar and caches it in blocks.
type tarWriter struct {
	s     *Server
	blob  digest.Digest
	sum   hash.Hash
	buf   []byte
	block int64
}

// Write implements io.Writer.
func (w *tarWriter) Write(p []byte) (int, error) {
	n := len(p)
	w.sum.Write(p)
	for len(p) > 0 {
		k := min(len(p), blockSize-len(w.buf))
		w.buf, p = append(w.buf, p[:k]...), p[k:]
		if len(w.buf) == blockSize {
			w.flush()
		}
	}
	if limit := w.s.cache.limit; limit > 0 && w.block*blockSize > limit/2 {
		return 0, errRoom
	}
	return n, nil
}

func (w *tarWriter) flush() {
	if len(w.buf) > 0 {
		w.s.cache.put(tarKey(w.blob, w.block), w.buf)
		w.buf, w.block = w.buf[:0], w.block+1
	}
}
