package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"

	"github.com/airstream-io/airstream/convert/internal/cancelable"
)

const (
	blockSize = 512
	maxName   = 255 // bytes, as in Linux
	maxPath   = 4096
	maxDepth  = 256 // directories, as internal/toc
)

// entry is what is kept in memory of one entry of the source tar; the rest of
// its header is read again when it is written.
type entry struct {
	name, link string // as the tar has them
	start      int64  // where its first header begins; global headers before it belong to it
	data       int64  // where its content begins
	size       int64  // bytes of content
	end        int64  // behind its padding
	kind       byte   // tar.TypeReg and so on
	sparse     bool
	global     bool // global headers are among its headers
}

// scan lists the entries that are copied, in the order of the tar, and tells
// where the last one ends. Errors are ErrInvalid, ctx's or the reader's.
func scan(ctx context.Context, t Tar) ([]entry, error) {
	cr := &cursor{r: io.NewSectionReader(t, 0, t.Size)}
	tr := tar.NewReader(cr)
	var (
		entries  []entry
		start    int64
		expanded int64
		global   = int64(-1)
	)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return nil, invalid(err, "after %d entries", len(entries))
		}
		e := entry{name: h.Name, link: h.Linkname, start: start, data: cr.off, kind: h.Typeflag, sparse: isSparse(h)}
		if e.data-e.start > maxHeaderSize {
			return nil, fmt.Errorf("%w: %q: %d bytes of headers", ErrInvalid, shorten(h.Name), e.data-e.start)
		}
		if e.kind == tar.TypeXGlobalHeader {
			if global < 0 {
				global = start
			}
			start = e.data
			continue
		}
		if err := e.check(h); err != nil {
			return nil, fmt.Errorf("%w: %q: %w", ErrInvalid, shorten(h.Name), err)
		}
		if expanded += h.Size + blockSize; expanded > maxLayerSize {
			return nil, fmt.Errorf("%w: %q: the layer unpacks to more than %d bytes", ErrInvalid, shorten(h.Name), maxLayerSize)
		}
		e.end = pad(e.data + e.size)
		if e.sparse {
			// Only the reader knows how much of the file is there.
			if _, err := io.Copy(io.Discard, cancelable.Reader(ctx, tr)); err != nil {
				return nil, invalid(err, "%q", shorten(h.Name))
			}
			e.end = pad(cr.off)
		}
		start = e.end
		if reserved(cleanName(e.name)) {
			continue
		}
		if global >= 0 {
			e.start, e.global, global = global, true, -1
		}
		if len(entries) == maxEntries {
			return nil, fmt.Errorf("%w: more than %d entries", ErrInvalid, maxEntries)
		}
		entries = append(entries, e)
	}
}

// check refuses what an unpacker or a lazy reader would refuse, so that it is
// the converter who says so and not a node on the far side of a link.
func (e *entry) check(h *tar.Header) error {
	switch e.kind {
	case tar.TypeReg:
		e.size = h.Size
	case tar.TypeGNUSparse:
		e.kind, e.size = tar.TypeReg, h.Size
	case tar.TypeLink, tar.TypeDir, tar.TypeFifo:
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) >= maxPath {
			return errors.New("symbolic link without a usable target")
		}
	case tar.TypeChar, tar.TypeBlock:
		if h.Devmajor < 0 || h.Devmajor > 0xfff || h.Devminor < 0 || h.Devminor > 0xfffff {
			return fmt.Errorf("device %d:%d", h.Devmajor, h.Devminor)
		}
	default:
		return fmt.Errorf("tar entry of unknown type %q", e.kind)
	}
	if h.Uid < 0 || h.Uid >= math.MaxUint32 || h.Gid < 0 || h.Gid >= math.MaxUint32 {
		return fmt.Errorf("owner %d:%d", h.Uid, h.Gid)
	}
	clean := cleanName(h.Name)
	if clean == "" && e.kind != tar.TypeDir {
		return errors.New("the root of the layer is not a directory")
	}
	if len(clean) >= maxPath {
		return fmt.Errorf("path of %d bytes", len(clean))
	}
	depth := 0
	for part := range strings.SplitSeq(clean, "/") {
		if depth++; depth > maxDepth {
			return fmt.Errorf("path of more than %d directories", maxDepth)
		}
		if len(part) > maxName {
			return fmt.Errorf("name of %d bytes", len(part))
		}
	}
	return nil
}

// reserved tells whether a path is eStargz's own, and made anew.
func reserved(clean string) bool {
	switch clean {
	case estargz.PrefetchLandmark, estargz.NoPrefetchLandmark, estargz.TOCTarName:
		return true
	}
	return false
}

func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// cleanName is the path below the layer's root as unpackers see it: without
// leading slash, "..", or doubled slashes; "" is the root.
func cleanName(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

func pad(n int64) int64 { return (n + blockSize - 1) &^ (blockSize - 1) }

func shorten(s string) string {
	if len(s) > 120 {
		return s[:120] + "…"
	}
	return s
}

// invalid marks what the tar reader says of the tar as ErrInvalid and leaves
// the errors of the disk alone.
func invalid(err error, format string, args ...any) error {
	at := fmt.Sprintf(format, args...)
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %s: %w", ErrInvalid, at, err)
	}
	return fmt.Errorf("%s: %w", at, err)
}

// cursor counts where the tar reader is. It can seek, so that content is
// skipped and not read.
type cursor struct {
	r   *io.SectionReader
	off int64
}

func (c *cursor) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.off += int64(n)
	return n, err
}

func (c *cursor) Seek(offset int64, whence int) (int64, error) {
	n, err := c.r.Seek(offset, whence)
	if err == nil {
		c.off = n
	}
	return n, err
}
