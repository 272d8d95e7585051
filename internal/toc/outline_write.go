package toc

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// WriteOutline reads a tar to its end and writes its outline; size is how long the
// tar was. A tar that can't be served is ErrInvalid; ParseOutline finds more of
// those.
func WriteOutline(w io.Writer, r io.Reader) (size int64, err error) {
	o := &outliner{r: r, w: w}
	if _, err := io.WriteString(w, outlineMagic); err != nil {
		return 0, fmt.Errorf("toc: outline: %w", err)
	}
	if err := o.run(); err != nil {
		return 0, fmt.Errorf("toc: outline: %w", err)
	}
	return o.size, nil
}

// outliner passes a tar on to archive/tar, which asks for no more than it needs,
// and writes down what passes.
type outliner struct {
	r       io.Reader
	w       io.Writer
	size    int64
	content bool // what passes is a file's
	fatal   error
	pending []byte // of the tar, not written yet
}

// Read implements io.Reader.
func (o *outliner) Read(p []byte) (int, error) {
	n, err := o.r.Read(p)
	if o.size += int64(n); o.size > maxTarSize {
		return 0, fmt.Errorf("%w: more than %d bytes", ErrInvalid, int64(maxTarSize))
	}
	if !o.content {
		o.pending = append(o.pending, p[:n]...)
		if len(o.pending) >= maxPartBytes {
			if err := o.flush(); err != nil {
				return 0, err
			}
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		o.fatal = err // archive/tar may call it something else
	}
	return n, err
}

func (o *outliner) run() error {
	tr := tar.NewReader(o)
	buf := make([]byte, OutlineChunk)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = servable(h)
		}
		if err == nil && h.Typeflag == tar.TypeReg && h.Size > 0 {
			err = o.file(tr, h.Size, buf)
		}
		if o.fatal != nil {
			return o.fatal
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	at := o.size
	for { // what fills up the last record belongs to the diffID, too
		_, err := o.Read(buf)
		if errors.Is(err, io.EOF) {
			return o.flush()
		}
		if err != nil {
			return err
		}
		if o.size-at > maxTarEnd {
			return fmt.Errorf("%w: more than %d bytes behind the last file", ErrInvalid, maxTarEnd)
		}
	}
}

// servable refuses what unpackers make something of that a tree can't say.
func servable(h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo, tar.TypeXGlobalHeader:
	default:
		return fmt.Errorf("entry %q is of type %q", shorten(h.Name), h.Typeflag)
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return fmt.Errorf("file %q is sparse", shorten(h.Name))
		}
	}
	return nil
}

// file writes the part that stands for a file's content.
func (o *outliner) file(tr *tar.Reader, size int64, buf []byte) error {
	if err := o.flush(); err != nil {
		return err
	}
	o.content = true
	defer func() { o.content = false }()
	if _, err := o.w.Write(binary.AppendUvarint([]byte{partContent}, uint64(size))); err != nil { //nolint:gosec // not negative
		return err
	}
	for left := size; left > 0; {
		b := buf[:min(left, OutlineChunk)]
		if _, err := io.ReadFull(tr, b); err != nil {
			return err
		}
		left -= int64(len(b))
		id := sha256.Sum256(b)
		if _, err := o.w.Write(id[:]); err != nil {
			return err
		}
	}
	return nil
}

// flush writes what is pending, runs of zeros for themselves.
func (o *outliner) flush() error {
	var out []byte
	for b := o.pending; len(b) > 0; {
		n := bytes.Index(b, make([]byte, minZeros))
		if n < 0 {
			n = len(b)
		}
		if n = min(n, maxPartBytes); n > 0 {
			out = append(binary.AppendUvarint(append(out, partBytes), uint64(n)), b[:n]...)
			b = b[n:]
			continue
		}
		for n < len(b) && b[n] == 0 {
			n++
		}
		out = binary.AppendUvarint(append(out, partZeros), uint64(n))
		b = b[n:]
	}
	o.pending = o.pending[:0]
	_, err := o.w.Write(out)
	return err
}
