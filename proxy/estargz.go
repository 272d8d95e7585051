package proxy

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/klauspost/compress/gzip"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/link/wire"
	"github.com/airstream-io/airstream/internal/toc"
)

const (
	tableName  = "stargz.index.json"
	footerSize = 51 // bytes, of eStargz
)

// tableOffset asks a blob's end where its table begins, for images whose
// manifest doesn't say.
func (s *Server) tableOffset(ctx context.Context, repo name.Repository, desc ocispec.Descriptor) (int64, error) {
	if desc.Size < footerSize {
		return 0, refuse(wire.Reason_REASON_IMAGE, "layer %s is no eStargz blob", desc.Digest)
	}
	b, err := s.cache.bytes(ctx, s.run, "footer/"+desc.Digest.Encoded(), footerSize, func(ctx context.Context) ([]byte, error) {
		return s.part(ctx, repo, desc.Digest, desc.Size-footerSize, footerSize)
	})
	if err != nil {
		return 0, err
	}
	at, err := parseFooter(b)
	if err != nil || at >= desc.Size {
		s.cache.drop("footer/" + desc.Digest.Encoded())
		return 0, refuse(wire.Reason_REASON_IMAGE, "layer %s is no eStargz blob", desc.Digest)
	}
	return at, nil
}

// parseFooter returns where the table begins: an empty gzip member whose extra
// field "SG" is the offset in 16 hex digits and the word STARGZ.
func parseFooter(b []byte) (offset int64, err error) {
	bad := errors.New("not an eStargz footer")
	if len(b) != footerSize {
		return 0, bad
	}
	extra := b[12 : 12+26]
	if b[0] != 0x1f || b[1] != 0x8b || b[3]&4 == 0 || binary.LittleEndian.Uint16(b[10:]) != 26 ||
		extra[0] != 'S' || extra[1] != 'G' || binary.LittleEndian.Uint16(extra[2:]) != 22 || string(extra[20:]) != "STARGZ" {
		return 0, bad
	}
	offset, err = strconv.ParseInt(string(extra[4:20]), 16, 64)
	if err != nil || offset <= 0 {
		return 0, bad
	}
	return offset, nil
}

// unpackTable returns the JSON in the gzip member that holds a table: a tar with
// one file.
func unpackTable(member []byte) ([]byte, error) {
	zr, err := gzip.NewReader(bytes.NewReader(member))
	if err != nil {
		return nil, fmt.Errorf("proxy: table of contents: %w", err)
	}
	tr := tar.NewReader(zr)
	h, err := tr.Next()
	if err != nil {
		return nil, fmt.Errorf("proxy: table of contents: %w", err)
	}
	if h.Name != tableName || h.Size > toc.MaxJSONSize {
		return nil, fmt.Errorf("proxy: table of contents: %q of %d bytes where %s should be", h.Name, h.Size, tableName)
	}
	b, err := io.ReadAll(tr)
	if err != nil {
		return nil, fmt.Errorf("proxy: table of contents: %w", err)
	}
	return b, nil
}
