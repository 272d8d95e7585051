package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/internal/link/wire"
	"github.com/airstream-io/airstream/internal/toc"
)

// layer is a layer that chunks can be taken from.
type layer struct {
	s       *Server
	repo    name.Repository
	desc    ocispec.Descriptor
	toc     digest.Digest // what its table goes by
	payload int64         // where the table begins in the blob; the size of the tar, if there is an outline
	tree    *toc.Tree
	outline *outline // nil: the image vouches for its table
	lastID  atomic.Pointer[objectOf]
}

// blockSize is how much of a blob is read at a time, in bytes: a round trip on
// shore is worth that much, and a hot set touches few blocks needlessly. A guess.
const blockSize = 1 << 20

// layer opens a lazy layer: its tree is in memory until others are used more.
func (s *Server) layer(ctx context.Context, repo name.Repository, desc ocispec.Descriptor) (*layer, error) {
	d := digest.Digest(desc.Annotations[annotation.TOCDigest])
	if d.Validate() != nil || d.Algorithm() != digest.SHA256 || desc.Digest.Validate() != nil {
		return nil, refuse(wire.Reason_REASON_IMAGE, "layer %s has no table of contents", desc.Digest)
	}
	at, err := strconv.ParseInt(desc.Annotations[annotation.TOCOffset], 10, 64)
	if err != nil || at <= 0 || at >= desc.Size {
		if at, err = s.tableOffset(ctx, repo, desc); err != nil {
			return nil, err
		}
	}
	l := &layer{s: s, repo: repo, desc: desc, toc: d, payload: at}
	if l.tree, err = s.trees.get(ctx, d, func() (*toc.Tree, error) { return l.load(ctx) }); err != nil {
		return nil, err
	}
	return l, nil
}

// load makes the layer's tree, of its flat form if that is cached.
func (l *layer) load(ctx context.Context) (*toc.Tree, error) {
	key := "tree/" + l.toc.Encoded()
	if raw, ok := l.s.cache.get(key, toc.MaxJSONSize); ok && len(raw) > sha256.Size {
		if sum := sha256.Sum256(raw[sha256.Size:]); bytes.Equal(sum[:], raw[:sha256.Size]) {
			if tree, err := toc.Load(raw[sha256.Size:]); err == nil {
				return tree, nil
			}
		}
		l.s.cache.drop(key)
	}
	body, err := l.body(ctx)
	if err != nil {
		return nil, err
	}
	parse := toc.Parse
	if l.outline != nil {
		parse = toc.ParseOutline
	}
	tree, err := parse(bytes.NewReader(body), l.payload)
	if err != nil {
		return nil, refuse(wire.Reason_REASON_IMAGE, "layer %s: %v", l.desc.Digest, err)
	}
	l.s.cacheTree(l.toc, tree)
	return tree, nil
}

func (s *Server) cacheTree(d digest.Digest, tree *toc.Tree) {
	sum := sha256.Sum256(tree.Bytes())
	s.cache.put("tree/"+d.Encoded(), slices.Concat(sum[:], tree.Bytes()))
}

// body returns the table, verified: JSON, or an outline.
func (l *layer) body(ctx context.Context) ([]byte, error) {
	if l.outline != nil {
		return l.outlineBody(ctx)
	}
	return l.json(ctx)
}

// table returns the layer's table as it crosses, and how long it is decoded.
func (l *layer) table(ctx context.Context) (codec wire.Codec, payload []byte, length int, err error) {
	body, err := l.body(ctx)
	if err != nil {
		return 0, nil, 0, err
	}
	codec, payload = link.Encode(body)
	return codec, payload, len(body), nil
}

// json returns the table of contents as eStargz has it, verified.
func (l *layer) json(ctx context.Context) ([]byte, error) {
	n := l.desc.Size - l.payload
	if n > link.MaxTable {
		return nil, refuse(wire.Reason_REASON_IMAGE, "the table of contents of layer %s has %d bytes", l.desc.Digest, n)
	}
	member, err := l.s.cache.bytes(ctx, l.s.run, "toc/"+l.toc.Encoded(), link.MaxTable, func(ctx context.Context) ([]byte, error) {
		return l.s.part(ctx, l.repo, l.desc.Digest, l.payload, n)
	})
	if err != nil {
		return nil, err
	}
	body, err := unpackTable(member)
	if err != nil || digest.FromBytes(body) != l.toc {
		l.s.cache.drop("toc/" + l.toc.Encoded())
		return nil, refuse(wire.Reason_REASON_IMAGE, "the table of contents of layer %s is not what its digest says", l.desc.Digest)
	}
	return body, nil
}

// piece returns what a chunk is, whichever layer has it. IDs of objects are made of
// all their chunks', so the last one is remembered: chunks come file by file.
func (l *layer) piece(c uint32) pieceID {
	f := l.tree.ChunkFile(c)
	first, _ := l.tree.Chunks(f)
	last := l.lastID.Load()
	if last == nil || last.entry != f {
		last = &objectOf{f, l.tree.ObjectID(f)}
		l.lastID.Store(last)
	}
	return chunkPiece(last.id, c-first)
}

// objectOf is what a file of a layer is.
type objectOf struct {
	entry uint32
	id    toc.ObjectID
}

// chunk returns a chunk's content, verified.
func (l *layer) chunk(ctx context.Context, n uint32) ([]byte, error) {
	k := l.tree.Chunk(n)
	m := l.tree.Member(k.Member)
	content := make([]byte, k.Size)
	for try := 0; ; try++ {
		err := l.read(ctx, m, k, content)
		if err == nil {
			err = k.ID.Verify(content)
		}
		if err == nil || ctx.Err() != nil || try > 0 {
			return content, err
		}
		if _, refused := errors.AsType[*link.Refusal](err); refused {
			return nil, err
		}
		// A block on disk may be damaged; registries seldom are.
		for b := m.Offset / blockSize; b*blockSize < m.End; b++ {
			if l.outline != nil {
				l.s.cache.drop(tarKey(l.desc.Digest, b))
			} else {
				l.s.cache.drop(blockKey(l.desc.Digest, b))
			}
		}
	}
}

var gunzippers sync.Pool

// read decompresses the member that a chunk begins in, as far as the chunk.
func (l *layer) read(ctx context.Context, m toc.Member, k toc.Chunk, content []byte) error {
	if l.outline != nil {
		return l.readTar(ctx, content, m.Offset)
	}
	in := bufio.NewReaderSize(&blobReader{ctx: ctx, l: l, off: m.Offset, end: m.End}, 16<<10)
	zr, ok := gunzippers.Get().(*gzip.Reader)
	var err error
	if !ok {
		zr, err = gzip.NewReader(in)
	} else {
		err = zr.Reset(in)
	}
	if err != nil {
		return fmt.Errorf("proxy: layer %s: %w", l.desc.Digest, err)
	}
	defer gunzippers.Put(zr)
	if _, err := io.CopyN(io.Discard, zr, int64(k.Inner)); err != nil {
		return fmt.Errorf("proxy: layer %s: %w", l.desc.Digest, err)
	}
	if _, err := io.ReadFull(zr, content); err != nil {
		return fmt.Errorf("proxy: layer %s: %w", l.desc.Digest, err)
	}
	return nil
}

// blobReader reads a part of a layer blob through the cache.
type blobReader struct {
	ctx      context.Context //nolint:containedctx // of one read, as in http.Request
	l        *layer
	off, end int64
}

// Read implements io.Reader.
func (r *blobReader) Read(p []byte) (int, error) {
	if r.off >= r.end {
		return 0, io.EOF
	}
	block := r.off / blockSize
	inner := r.off % blockSize
	p = p[:min(int64(len(p)), r.end-r.off, blockSize-inner)]
	key := blockKey(r.l.desc.Digest, block)
	if f, ok := r.l.s.cache.open(key); ok {
		n, err := f.ReadAt(p, inner)
		if err = errors.Join(err, f.Close()); n == len(p) {
			r.off += int64(n)
			return n, nil
		}
		r.l.s.cache.drop(key) // it is cut short
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("proxy: cache: %w", err)
		}
	}
	size := min(blockSize, r.l.desc.Size-block*blockSize)
	b, err := r.l.s.cache.bytes(r.ctx, r.l.s.run, key, blockSize, func(ctx context.Context) ([]byte, error) {
		return r.l.s.part(ctx, r.l.repo, r.l.desc.Digest, block*blockSize, size)
	})
	if err != nil {
		return 0, err
	}
	if int64(len(b)) <= inner {
		return 0, io.ErrUnexpectedEOF
	}
	n := copy(p, b[inner:])
	r.off += int64(n)
	return n, nil
}

func blockKey(blob digest.Digest, block int64) string {
	return "blob/" + blob.Encoded() + "/" + strconv.FormatInt(block, 10)
}

// part reads a part of a blob from its registry. Few at a time, so that memory
// is bounded.
func (s *Server) part(ctx context.Context, repo name.Repository, d digest.Digest, off, n int64) ([]byte, error) {
	if err := s.reads.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer s.reads.Release(1)
	rc, err := s.upstream.blob(ctx, repo, d, off, n)
	if err != nil {
		return nil, err
	}
	b := make([]byte, n)
	_, err = io.ReadFull(rc, b)
	if closeErr := rc.Close(); err == nil {
		err = closeErr
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		err = s.upstream.judge(repo, "blob "+d.String(), io.ErrUnexpectedEOF)
	}
	return b, err
}

// objects returns the IDs of the content of all files of a layer, sorted.
func (l *layer) objects() []toc.ObjectID {
	key := "objects/" + l.toc.Encoded()
	if raw, ok := l.s.cache.get(key, toc.MaxJSONSize); ok && len(raw)%sha256.Size == 0 && len(raw) > 0 {
		sum := sha256.Sum256(raw[sha256.Size:])
		if bytes.Equal(sum[:], raw[:sha256.Size]) {
			ids := make([]toc.ObjectID, 0, len(raw)/sha256.Size-1)
			for b := range slices.Chunk(raw[sha256.Size:], sha256.Size) {
				ids = append(ids, toc.ObjectID(b))
			}
			return ids
		}
	}
	var ids []toc.ObjectID
	for e := range uint32(l.tree.Len()) { //nolint:gosec // below 2^32
		if first, end := l.tree.Chunks(e); first < end {
			ids = append(ids, l.tree.ObjectID(e))
		}
	}
	slices.SortFunc(ids, compareIDs)
	raw := make([]byte, sha256.Size, sha256.Size*(len(ids)+1))
	for _, id := range ids {
		raw = append(raw, id[:]...)
	}
	sum := sha256.Sum256(raw[sha256.Size:])
	copy(raw, sum[:])
	l.s.cache.put(key, raw)
	return ids
}

func compareIDs(a, b toc.ObjectID) int { return bytes.Compare(a[:], b[:]) }
