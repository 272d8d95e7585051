package proxy

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/klauspost/compress/gzip"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/link/wire"
	"github.com/airstream-io/airstream/internal/toc"
)

const tableName = "stargz.index.json"

// tableOffset asks a blob's end where its table begins, for images whose
// manifest doesn't say.
func (s *Server) tableOffset(ctx context.Context, repo name.Repository, desc ocispec.Descriptor) (int64, error) {
	if desc.Size < toc.FooterSize {
		return 0, refuse(wire.Reason_REASON_IMAGE, "layer %s is no eStargz blob", desc.Digest)
	}
	b, err := s.cache.bytes(ctx, s.run, "footer/"+desc.Digest.Encoded(), toc.FooterSize, func(ctx context.Context) ([]byte, error) {
		return s.part(ctx, repo, desc.Digest, desc.Size-toc.FooterSize, toc.FooterSize)
	})
	if err != nil {
		return 0, err
	}
	at, err := toc.ParseFooter(b)
	if err != nil || len(b) != toc.FooterSize || at >= desc.Size {
		s.cache.drop("footer/" + desc.Digest.Encoded())
		return 0, refuse(wire.Reason_REASON_IMAGE, "layer %s is no eStargz blob", desc.Digest)
	}
	return at, nil
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
