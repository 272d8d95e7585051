package layer

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"
	"golang.org/x/sync/errgroup"

	"github.com/airstream-io/airstream/internal/chunk"
)

// Result describes a blob that Convert wrote.
type Result struct {
	Digest           chunk.ID // of the blob
	Size             int64    // bytes of the blob
	DiffID           chunk.ID // of the blob uncompressed
	UncompressedSize int64    // bytes
	TOCDigest        chunk.ID // of the table's JSON
	TOCOffset        int64    // bytes into the blob
	Entries          int      // in the table, chunks of a file counting as one
	Chunks           int
	Prioritized      int // entries before the landmark: files and the directories that they are in
}

// Convert reads the tar t and writes the eStargz blob to w, compressing in
// pool. The bytes depend on the tar and o alone. advance, if not nil, is told
// how many bytes have been cut since it was last called, in all a little more
// than the tar has; calls don't overlap. On error w holds a part that is good for nothing. Errors are
// ErrInvalid, ctx's, or those of the reader, the writer and the scratch files.
//
// Memory: some 150 bytes for each entry and its name, and three members for
// each of the pool's compressors.
func Convert(ctx context.Context, w io.Writer, t Tar, o Options, pool *Pool, scratch Scratch, advance func(int64)) (Result, error) {
	r, err := convert(ctx, w, t, o, pool, scratch, advance)
	if err != nil {
		return Result{}, fmt.Errorf("layer: convert: %w", err)
	}
	return r, nil
}

func convert(ctx context.Context, w io.Writer, t Tar, o Options, pool *Pool, scratch Scratch, advance func(int64)) (Result, error) {
	if err := o.Validate(); err != nil {
		return Result{}, err
	}
	entries, err := scan(ctx, t)
	if err != nil {
		return Result{}, err
	}
	rows, err := resolve(entries)
	if err != nil {
		return Result{}, err
	}
	list, hot := order(entries, o.Prioritize)
	toc, err := newTable(scratch)
	if err != nil {
		return Result{}, err
	}
	defer toc.file.Close() //nolint:errcheck // a scratch file, only read from here on

	g, ctx := errgroup.WithContext(ctx)
	work := make(chan *member, pool.size())
	inOrder := make(chan *member, 2*pool.size())
	for range pool.size() {
		g.Go(func() error {
			for m := range work {
				if err := m.compress(ctx, pool); err != nil {
					return err
				}
			}
			return nil
		})
	}
	out := &output{w: w, sum: sha256.New(), toc: toc}
	g.Go(func() error { return out.collect(ctx, inOrder) })
	c := &cutter{ctx: ctx, tar: t, o: o, work: work, order: inOrder, diffID: sha256.New(), advance: advance}
	g.Go(func() error {
		defer close(work)
		defer close(inOrder)
		return c.cut(entries, rows, list, hot)
	})
	if err := g.Wait(); err != nil {
		return Result{}, err
	}
	r, err := out.finish(c)
	r.Prioritized = hot
	return r, err
}

// output is the end of the line: it writes members in order, and knows only
// then where they are.
type output struct {
	w       io.Writer
	sum     hash.Hash
	off     int64
	toc     *table
	entries int
	chunks  int
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	o.sum.Write(p[:n])
	o.off += int64(n)
	return n, err
}

func (o *output) collect(ctx context.Context, order <-chan *member) error {
	for m := range order {
		select {
		case <-m.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		m.offset = o.off
		if _, err := o.Write(m.out); err != nil {
			return err
		}
		m.out = nil
		for _, f := range m.files {
			if err := o.list(f); err != nil {
				return err
			}
		}
		m.files = nil
	}
	return ctx.Err()
}

// list writes a file's entry, and a chunk entry for each further chunk.
func (o *output) list(f *file) error {
	e := &f.entry
	o.entries++
	o.chunks += len(f.chunks)
	if f.heads != nil {
		e.Offset = f.heads.offset
	}
	if len(f.chunks) == 0 {
		if e.Type == "reg" {
			e.Digest = chunk.Sum(nil).String()
		}
		return o.toc.add(e)
	}
	e.Digest = f.digest()
	for i, c := range f.chunks {
		if i > 0 {
			e = &tableEntry{TOCEntry: estargz.TOCEntry{Name: f.entry.Name, Type: "chunk"}}
			if f.entry.RawName != nil {
				e.Name = string(f.entry.RawName)
			}
		}
		e.Offset, e.InnerOffset, e.ChunkOffset = c.member.offset, c.inner, c.offset
		if len(f.chunks) > 1 && c.offset+c.size < f.entry.Size {
			e.ChunkSize = c.size // without it: to the end of the file
		}
		e.ChunkDigest = c.id.String()
		if err := o.toc.add(e); err != nil {
			return err
		}
	}
	return nil
}

// finish writes the table and the footer.
func (o *output) finish(c *cutter) (Result, error) {
	id, err := o.toc.finish()
	if err != nil {
		return Result{}, err
	}
	r := Result{TOCDigest: id, TOCOffset: o.off, Entries: o.entries, Chunks: o.chunks}
	z, err := newGzipStream(o)
	if err != nil {
		return Result{}, err
	}
	for _, part := range []io.Reader{
		strings.NewReader(string(plainHeader(estargz.TOCTarName, o.toc.size))),
		o.toc.file,
		strings.NewReader(string(make([]byte, pad(o.toc.size)-o.toc.size+2*blockSize))),
	} {
		n, err := io.Copy(io.MultiWriter(z, c.diffID), part)
		if err != nil {
			return Result{}, err
		}
		c.uncompressed += n
	}
	if err := z.Close(); err != nil {
		return Result{}, err
	}
	if _, err := o.Write(footer(r.TOCOffset)); err != nil {
		return Result{}, err
	}
	r.Digest, r.Size = chunk.ID(o.sum.Sum(nil)), o.off
	r.DiffID, r.UncompressedSize = chunk.ID(c.diffID.Sum(nil)), c.uncompressed
	return r, nil
}

// header reads an entry's header again.
func header(t Tar, e *entry) (*tar.Header, *tar.Reader, error) {
	tr := tar.NewReader(io.NewSectionReader(t, e.start, t.Size-e.start))
	for {
		h, err := tr.Next()
		if h == nil {
			return nil, nil, fmt.Errorf("%q: read again: %w", shorten(e.name), err)
		}
		if h.Typeflag != tar.TypeXGlobalHeader {
			return h, tr, nil
		}
	}
}

// ScratchIn returns a Scratch that makes its files in dir. They have no name,
// so nothing is left behind however the process ends.
func ScratchIn(dir string) Scratch {
	return func() (*os.File, error) {
		f, err := os.CreateTemp(dir, ".airstream-")
		if err != nil {
			return nil, err
		}
		if err := os.Remove(f.Name()); err != nil {
			_ = f.Close()
			return nil, err
		}
		return f, nil
	}
}
