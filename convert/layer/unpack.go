package layer

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxWindow bounds the memory that a zstd source may ask for: what zstd
// --long=27 uses, the most that tools unpack without being told to.
const maxWindow = 128 << 20

// Decompress returns the tar in a layer blob that is compressed with gzip or
// zstd or not at all. It looks at the bytes, as unpackers do, because media
// types lie. Errors in the compressed data are ErrInvalid.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	magic, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("layer: decompress: %w", err)
	}
	var rc io.ReadCloser
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, fmt.Errorf("layer: decompress: %w", corrupt(err))
		}
		rc = z
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), isSkippable(magic):
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, fmt.Errorf("layer: decompress: %w", err)
		}
		rc = z.IOReadCloser()
	default:
		return io.NopCloser(br), nil
	}
	return &decompressor{rc}, nil
}

// isSkippable tells whether a zstd stream begins with a skippable frame, as
// zstd:chunked ones may.
func isSkippable(magic []byte) bool {
	return len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18})
}

type decompressor struct{ io.ReadCloser }

func (d *decompressor) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = corrupt(err)
	}
	return n, err
}

// readError keeps an error of the source apart from errors of what it holds.
type readError interface{ SourceError() bool }

func corrupt(err error) error {
	var src readError
	if errors.As(err, &src) && src.SourceError() {
		return err
	}
	return fmt.Errorf("%w: %w", ErrInvalid, err)
}
