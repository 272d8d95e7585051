package layer

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"

	"github.com/airstream-io/airstream/internal/chunk"
)

// member is a gzip member on its way: cut, compressed, written.
type member struct {
	raw    []byte  // uncompressed; nil once compressed
	chunks []piece // content within raw
	files  []*file // whose content, or header if they have none, ends here
	done   chan struct{}
	out    []byte // valid after done
	offset int64  // in the blob; valid once collected
	tail   int    // bytes behind the last content
}

// piece is one chunk of one file.
type piece struct {
	member *member
	offset int64 // bytes into the file
	size   int64
	inner  int64     // bytes into the member, uncompressed
	id     *chunk.ID // valid once its member is done
}

// file is an entry of the table on its way.
type file struct {
	entry  tableEntry
	chunks []piece
	sum    hash.Hash // over the content, if it has several chunks
	heads  *member   // that begins with the entry's header, if the entry has no content
}

func (f *file) digest() string {
	if len(f.chunks) == 1 {
		return f.chunks[0].id.String()
	}
	return chunk.ID(f.sum.Sum(nil)).String()
}

func (m *member) compress(ctx context.Context, pool *Pool) error {
	for i := range m.chunks {
		c := &m.chunks[i]
		*c.id = chunk.Sum(m.raw[c.inner : c.inner+c.size])
	}
	var err error
	m.out, err = pool.compress(ctx, m.raw)
	if err != nil {
		return err
	}
	m.raw, m.chunks = nil, nil
	close(m.done)
	return nil
}

// cutter walks through the tar and decides where members begin. Nothing here
// may depend on how far the compressors are.
type cutter struct {
	ctx          context.Context //nolint:containedctx // lives as long as one call of cut
	tar          Tar
	o            Options
	work, order  chan<- *member
	open         *member
	diffID       hash.Hash
	uncompressed int64
	alone        bool // the next chunk begins a member, whatever its size
	advance      func(int64)
}

// cut writes the entries in an order that has hot of them before the landmark.
func (c *cutter) cut(entries []entry, rows []row, order []int, hot int) error {
	landmark := estargz.NoPrefetchLandmark
	if hot > 0 {
		landmark = estargz.PrefetchLandmark
	}
	for n, i := range order {
		if n == hot {
			if err := c.landmark(landmark); err != nil {
				return err
			}
		}
		var r *row
		if k, ok := slices.BinarySearchFunc(rows, i, func(r row, i int) int { return cmp.Compare(r.entry, i) }); ok {
			r = &rows[k]
		}
		if err := c.entry(entries, i, r); err != nil {
			return err
		}
	}
	if hot == len(order) {
		if err := c.landmark(landmark); err != nil {
			return err
		}
	}
	return c.flush()
}

// landmark writes the file that tells stargz-snapshotter how far to prefetch:
// up to here, or, by its other name, not at all. It must begin a member; the
// latter must come before all content.
func (c *cutter) landmark(name string) error {
	const content = "\x0f"
	if err := c.head(plainHeader(name, int64(len(content)))); err != nil {
		return err
	}
	f := &file{entry: tableEntry{TOCEntry: estargz.TOCEntry{Name: name, Type: "reg", Size: 1, Mode: 0o444}}}
	c.alone = true
	if err := c.content(f, strings.NewReader(content), 1); err != nil {
		return err
	}
	c.append(make([]byte, blockSize-len(content)))
	c.open.tail += blockSize - len(content)
	c.alone = false
	return nil
}

// entry writes the i-th entry of the tar, and lists it if r is not nil.
func (c *cutter) entry(entries []entry, i int, r *row) error {
	e := &entries[i]
	h, tr, err := header(c.tar, e)
	if err != nil {
		return err
	}
	head, err := c.headers(e, h)
	if err != nil {
		return err
	}
	before := c.open
	if err := c.head(head); err != nil {
		return err
	}
	f, err := c.describe(entries, r, h)
	if err != nil {
		return err
	}
	if e.size == 0 {
		if c.open != before {
			f.heads = c.open
		}
		if r != nil {
			c.open.files = append(c.open.files, f)
		}
		return nil
	}
	var content io.Reader = tr
	if !e.sparse {
		content = io.NewSectionReader(c.tar, e.data, e.size)
	}
	if r == nil {
		return c.dead(content, e.size)
	}
	if err := c.content(f, content, e.size); err != nil {
		return fmt.Errorf("%q: %w", shorten(e.name), err)
	}
	c.pad(e.size)
	return nil
}

// headers returns the bytes in front of an entry's content: the source's own,
// except for a sparse file, whose holes are written out.
func (c *cutter) headers(e *entry, h *tar.Header) ([]byte, error) {
	if !e.sparse {
		b := make([]byte, e.data-e.start)
		if n, err := c.tar.ReadAt(b, e.start); n < len(b) {
			return nil, fmt.Errorf("%q: read header: %w", shorten(e.name), err)
		}
		return b, nil
	}
	plain := *h
	plain.Typeflag, plain.Format = tar.TypeReg, tar.FormatPAX
	plain.PAXRecords = map[string]string{}
	for k, v := range h.PAXRecords {
		if !strings.HasPrefix(k, "GNU.sparse.") {
			plain.PAXRecords[k] = v
		}
	}
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&plain); err != nil {
		return nil, fmt.Errorf("%w: %q: sparse file: %w", ErrInvalid, shorten(e.name), err)
	}
	return b.Bytes(), nil
}

// describe makes the table's entry for a row, as far as headers tell it.
func (c *cutter) describe(entries []entry, r *row, h *tar.Header) (*file, error) {
	f := &file{}
	if r == nil {
		return f, nil
	}
	e := &f.entry
	e.Name, e.LinkName, e.Type = r.name, r.link, typeNames[r.kind]
	switch r.kind {
	case tar.TypeDir:
		e.Name += "/"
		if r.name == "" {
			e.Name = "./"
		}
	case tar.TypeReg:
		e.Size = h.Size
	case tar.TypeSymlink:
		e.LinkName = h.Linkname
	case tar.TypeChar, tar.TypeBlock:
		e.DevMajor, e.DevMinor = int(h.Devmajor), int(h.Devminor)
	}
	attributes(e, h)
	for _, i := range r.attrs {
		h, _, err := header(c.tar, &entries[i])
		if err != nil {
			return nil, err
		}
		attributes(e, h)
	}
	return f, nil
}

// head adds headers to the open member, or to a new one where a run of headers
// has become long.
func (c *cutter) head(b []byte) error {
	if c.open != nil && c.open.tail+len(b) > maxHeaderRun {
		if err := c.flush(); err != nil {
			return err
		}
	}
	c.append(b)
	c.open.tail += len(b)
	return nil
}

// content cuts a file's content into chunks.
func (c *cutter) content(f *file, r io.Reader, size int64) error {
	if size > c.o.chunkSize() {
		f.sum = sha256.New()
	}
	for off := int64(0); off < size; {
		n := min(c.o.chunkSize(), size-off)
		if c.startsMember(n) {
			if err := c.flush(); err != nil {
				return err
			}
		}
		b, err := c.read(r, n)
		if err != nil {
			return err
		}
		if f.sum != nil {
			f.sum.Write(b)
		}
		p := piece{member: c.open, offset: off, size: n, inner: int64(len(c.open.raw)) - n, id: new(chunk.ID)}
		f.chunks = append(f.chunks, p)
		c.open.chunks = append(c.open.chunks, p)
		c.open.tail = 0
		off += n
	}
	c.open.files = append(c.open.files, f)
	return nil
}

// startsMember decides whether a chunk of n bytes begins a member.
func (c *cutter) startsMember(n int64) bool {
	if c.open == nil || c.alone || c.o.GroupSize == 0 {
		return true
	}
	have := int64(len(c.open.raw))
	return have >= c.o.GroupSize || have+n > c.o.chunkSize()+c.o.GroupSize
}

// dead writes content that a later entry replaces. It is in the tar, because
// an unpacker may need it for a hardlink on the way, and in no table.
func (c *cutter) dead(r io.Reader, size int64) error {
	for off := int64(0); off < size; {
		n := min(c.o.chunkSize(), size-off)
		if err := c.flush(); err != nil {
			return err
		}
		if _, err := c.read(r, n); err != nil {
			return err
		}
		off += n
	}
	c.pad(size)
	return nil
}

func (c *cutter) pad(size int64) {
	n := int(pad(size) - size)
	c.append(make([]byte, n))
	c.open.tail += n
}

// read appends n bytes of r to the open member and returns them.
func (c *cutter) read(r io.Reader, n int64) ([]byte, error) {
	c.need(int(n))
	have := len(c.open.raw)
	b := c.open.raw[have : have+int(n)]
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("read content: %w", err)
	}
	c.open.raw = c.open.raw[:have+int(n)]
	c.sum(b)
	return b, nil
}

func (c *cutter) append(b []byte) {
	c.need(len(b))
	c.open.raw = append(c.open.raw, b...)
	c.sum(b)
}

func (c *cutter) sum(b []byte) {
	c.diffID.Write(b)
	c.uncompressed += int64(len(b))
	if c.advance != nil {
		c.advance(int64(len(b)))
	}
}

// need opens a member if none is, and makes room for n more bytes.
func (c *cutter) need(n int) {
	if c.open == nil {
		c.open = &member{done: make(chan struct{})}
	}
	if len(c.open.raw)+n > cap(c.open.raw) {
		b := make([]byte, len(c.open.raw), len(c.open.raw)+n+4*blockSize)
		copy(b, c.open.raw)
		c.open.raw = b
	}
}

// flush sends the open member on its way.
func (c *cutter) flush() error {
	m := c.open
	if m == nil {
		return nil
	}
	c.open = nil
	for _, to := range []chan<- *member{c.order, c.work} {
		select {
		case to <- m:
		case <-c.ctx.Done():
			return c.ctx.Err()
		}
	}
	return nil
}
