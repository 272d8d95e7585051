package toc

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/airstream-io/airstream/internal/chunk"
)

// An outline is a tar stream in which the content of files is replaced by the
// IDs of its chunks. It is the table of contents of a layer that was never
// converted, and more: with the chunks it makes the tar again, byte for byte, so
// that the diffID of the image's config can be compared at last. That is why the
// tree is made from it and from nothing beside it: what the diffID vouches for
// then is the very thing that was served.
//
// Layout, version 1; versions that can't be read by this one get another magic:
//
//	8 bytes   "AIRSOUT1"
//	parts     up to the end, in the order of the tar:
//	  0x01, uvarint n, n bytes        of the tar, as they are; 1 to 65536
//	  0x02, uvarint n                 n bytes that are 0; 1 to 2^40
//	  0x03, uvarint n, 32 bytes each  content of n bytes, in chunks of 64 KiB, the
//	                                  last one shorter: their SHA-256
//
// Content is that of regular files, and of all of them that have any.

const (
	outlineMagic = "AIRSOUT1"
	partBytes    = 1
	partZeros    = 2
	partContent  = 3

	maxPartBytes = 64 << 10
	maxTarSize   = 1 << 40 // bytes; no layer has a terabyte
	minZeros     = 8       // in a row, that are worth a part
	maxTarEnd    = 1 << 20 // bytes behind the last file; writers fill up 10 KiB
)

// OutlineChunk is how files are cut in an outline, in bytes: as converted images
// are, so that the same file in both is one object.
const OutlineChunk = 64 << 10

// ParseOutline makes the tree of a layer from its outline. size is how long the
// tar is; the offsets of members are those in it. The bytes are hostile: errors
// are ErrInvalid, or the reader's.
func ParseOutline(r io.Reader, size int64) (*Tree, error) {
	t, err := parseOutline(r, size)
	if err != nil {
		return nil, fmt.Errorf("toc: parse outline: %w", err)
	}
	return t, nil
}

func parseOutline(r io.Reader, size int64) (*Tree, error) {
	o, err := openOutline(r)
	if err != nil {
		return nil, err
	}
	b := newBuilder(size)
	tr := tar.NewReader(o)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) && o.err == nil {
			break
		}
		if err == nil {
			err = servable(h)
		}
		if err == nil && h.Typeflag != tar.TypeXGlobalHeader {
			err = b.addTar(h, o)
		}
		if err = errors.Join(o.err, err); err != nil {
			return nil, fmt.Errorf("%w: entry %d: %w", ErrInvalid, n, err)
		}
	}
	if n, err := io.CopyN(io.Discard, o, maxTarEnd+1); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: %d bytes or more behind the last file: %w", ErrInvalid, n, errors.Join(err, errors.New("too many")))
	}
	if o.at != size {
		return nil, fmt.Errorf("%w: it is of a tar of %d bytes, not %d", ErrInvalid, o.at, size)
	}
	t, err := b.tree()
	if err == nil && t.NumChunks() != o.chunks {
		// The tar can't be made again without it.
		return nil, fmt.Errorf("%w: content that a later entry replaces, or that no name has", ErrInvalid)
	}
	return t, err
}

// addTar plays an entry of a tar, whose content is next in o.
func (b *builder) addTar(h *tar.Header, o *outlineReader) error {
	e := jsonEntry{
		Name: h.Name, LinkName: h.Linkname, Mode: h.Mode, UID: int64(h.Uid), GID: int64(h.Gid),
		Type: typeOf[h.Typeflag], DevMajor: h.Devmajor, DevMinor: h.Devminor,
	}
	if t := h.ModTime; t.After(time.Unix(0, 0)) && t.Before(time.Unix(0, math.MaxInt64)) {
		e.ModTime = t.UTC().Format(time.RFC3339Nano) // others are the epoch, as containerd unpacks them
	}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			if e.Xattrs == nil {
				e.Xattrs = map[string][]byte{}
			}
			e.Xattrs[name] = []byte(v)
		}
	}
	if h.Typeflag != tar.TypeReg || h.Size == 0 {
		return b.add(&e)
	}
	e.Size, e.Offset = h.Size, o.at
	err := o.content(h.Size, func(id chunk.ID, n int64) error {
		e.ChunkDigest, e.ChunkSize = id.String(), n
		if err := b.add(&e); err != nil {
			return err
		}
		e.Type = "chunk"
		e.Offset, e.ChunkOffset = e.Offset+n, e.ChunkOffset+n
		return nil
	})
	if err != nil {
		return fmt.Errorf("%q: %w", shorten(h.Name), err)
	}
	return nil
}

var typeOf = map[byte]string{
	tar.TypeReg: "reg", tar.TypeDir: "dir", tar.TypeSymlink: "symlink", tar.TypeLink: "hardlink",
	tar.TypeChar: "char", tar.TypeBlock: "block", tar.TypeFifo: "fifo",
}
