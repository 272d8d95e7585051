package toc

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/airstream-io/airstream/internal/chunk"
)

// outlineReader reads an outline as the tar that it is of, without the content of
// files: that is read as zeros, after content was called for it.
type outlineReader struct {
	r     *bufio.Reader
	at    int64 // in the tar
	bytes int64 // left of a part of bytes
	zeros int64 // left of zeros, or of content that is skipped
	next  int64 // bytes of content that comes next; 0: something else does
	err   error // what is wrong with the outline

	chunks int // so far
}

func openOutline(r io.Reader) (*outlineReader, error) {
	o := &outlineReader{r: bufio.NewReaderSize(r, 32<<10)}
	magic := make([]byte, len(outlineMagic))
	if _, err := io.ReadFull(o.r, magic); err != nil || string(magic) != outlineMagic {
		return nil, fmt.Errorf("%w: not an outline that this version reads", ErrInvalid)
	}
	return o, nil
}

// part reads the head of the next part, if none is begun; io.EOF: there is none.
func (o *outlineReader) part() error {
	if o.bytes > 0 || o.zeros > 0 || o.next > 0 || o.err != nil {
		return o.err
	}
	kind, err := o.r.ReadByte()
	if errors.Is(err, io.EOF) {
		return io.EOF
	}
	n, nErr := binary.ReadUvarint(o.r)
	limit := uint64(maxTarSize)
	if kind == partBytes {
		limit = maxPartBytes
	}
	if err = errors.Join(err, nErr); err == nil && (n == 0 || n > limit || kind < partBytes || kind > partContent || o.at+int64(n) > maxTarSize) { //nolint:gosec // checked before
		err = fmt.Errorf("a part of kind %d with %d bytes", kind, n)
	}
	if err != nil {
		o.err = fmt.Errorf("outline, at %d of the tar: %w", o.at, err)
		return o.err
	}
	switch kind {
	case partBytes:
		o.bytes = int64(n) //nolint:gosec // checked
	case partZeros:
		o.zeros = int64(n) //nolint:gosec // checked
	default:
		o.next = int64(n) //nolint:gosec // checked
	}
	return nil
}

// Read implements io.Reader.
func (o *outlineReader) Read(p []byte) (n int, err error) {
	if err := o.part(); err != nil {
		return 0, err
	}
	switch {
	case o.bytes > 0:
		n, err = io.ReadFull(o.r, p[:min(int64(len(p)), o.bytes)])
		if o.bytes -= int64(n); err != nil {
			o.err = fmt.Errorf("outline, at %d of the tar: %w", o.at, io.ErrUnexpectedEOF)
			err = o.err
		}
	case o.zeros > 0:
		n = int(min(int64(len(p)), o.zeros))
		clear(p[:n])
		o.zeros -= int64(n)
	default:
		o.err = fmt.Errorf("outline: content at %d of the tar, where none belongs", o.at)
		return 0, o.err
	}
	o.at += int64(n)
	return n, err
}

// content reads a part of content, which must have size bytes. Behind it, Read
// returns as many zeros.
func (o *outlineReader) content(size int64, each func(id chunk.ID, n int64) error) error {
	if err := o.part(); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if o.next != size {
		return fmt.Errorf("%d bytes of content, not %d", o.next, size)
	}
	o.next = 0
	var id [sha256.Size]byte
	for left := size; left > 0; {
		if _, err := io.ReadFull(o.r, id[:]); err != nil {
			return io.ErrUnexpectedEOF
		}
		n := min(left, OutlineChunk)
		if err := each(id, n); err != nil {
			return err
		}
		left -= n
		o.chunks++
	}
	o.zeros = size
	return nil
}

// Rebuild writes the tar that an outline is of. content returns the chunks in
// their order, of which it is told the ID and the size in bytes; what it returns
// is valid until the next call.
func Rebuild(w io.Writer, outline io.Reader, content func(n uint32, id chunk.ID, size int64) ([]byte, error)) error {
	o, err := openOutline(outline)
	if err != nil {
		return fmt.Errorf("toc: rebuild: %w", err)
	}
	buf := make([]byte, 32<<10)
	for {
		switch err := o.part(); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("toc: rebuild: %w: %w", ErrInvalid, err)
		}
		if o.next > 0 {
			err := o.content(o.next, func(id chunk.ID, n int64) error {
				b, err := content(uint32(o.chunks), id, n) //nolint:gosec // below 2^32
				if err == nil {
					_, err = w.Write(b)
				}
				return err
			})
			if err != nil {
				return fmt.Errorf("toc: rebuild: %w", err)
			}
			o.at, o.zeros = o.at+o.zeros, 0
			continue
		}
		n, err := o.Read(buf)
		if err == nil {
			_, err = w.Write(buf[:n])
		}
		if err != nil {
			return fmt.Errorf("toc: rebuild: %w", err)
		}
	}
}
