package pack

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/bundle"
	"github.com/airstream-io/airstream/internal/toc"
)

// layer is a converted layer.
type layer struct {
	source Source
	desc   ocispec.Descriptor
	toc    digest.Digest
	had    bool // all receivers have its table and all of its files

	file *os.File // the blob
	at   int64    // where the table begins in it
	tree *toc.Tree
	mine []bool // by entry: its content comes from here
	sent []bool // by chunk
}

func tocOf(d ocispec.Descriptor) digest.Digest {
	return digest.Digest(d.Annotations[annotation.TOCDigest])
}

const tableName = "stargz.index.json"

// trees brings the layers here, and reads the tables of what receivers have.
func (p *packer) trees(ctx context.Context) error {
	fetched := false
	for _, l := range p.layers {
		if l.had {
			continue
		}
		p.say("reading layer " + l.desc.Digest.String())
		if err := l.fetch(ctx, p.WorkDir); err != nil {
			return fmt.Errorf("layer %s: %w", l.desc.Digest, err)
		}
		fetched = true
	}
	if !fetched {
		return nil
	}
	return p.have.readTrees(ctx, p.WorkDir)
}

// fetch copies a layer's blob into a file and reads its table.
func (l *layer) fetch(ctx context.Context, dir string) error {
	desc, err := descriptor(l.desc)
	if err != nil {
		return err
	}
	if l.file, err = os.CreateTemp(dir, ".airstream-layer-"); err != nil {
		return err
	}
	if err := os.Remove(l.file.Name()); err != nil { // it is gone with the process
		return err
	}
	rc, err := l.source.Blob(ctx, desc)
	if err != nil {
		return err
	}
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(l.file, h), io.LimitReader(rc, l.desc.Size+1))
	if err = errors.Join(err, rc.Close()); err != nil {
		return err
	}
	if n != l.desc.Size || hex.EncodeToString(h.Sum(nil)) != l.desc.Digest.Encoded() {
		return fmt.Errorf("%w: %d bytes of %d", ErrContent, n, l.desc.Size)
	}
	tail := make([]byte, min(toc.FooterSize, n))
	if _, err := l.file.ReadAt(tail, n-int64(len(tail))); err != nil {
		return err
	}
	if l.at, err = parseFooter(tail, n); err != nil {
		return err
	}
	l.tree, err = parseTable(l.openTable, l.toc, l.at)
	return err
}

// openTable opens the JSON of a layer that is here.
func (l *layer) openTable() (io.Reader, int64, error) {
	return unpackTable(io.NewSectionReader(l.file, l.at, l.desc.Size-l.at))
}

// parseFooter returns where the table of a blob begins, as its footer, all of it and
// nothing else, says.
func parseFooter(b []byte, size int64) (int64, error) {
	offset, err := toc.ParseFooter(b)
	if err == nil && (len(b) != toc.FooterSize || offset >= size) {
		err = errors.New("it has no eStargz footer")
	}
	return offset, err
}

// unpackTable opens the JSON in the gzip member that holds a table: a tar with one
// file.
func unpackTable(r io.Reader) (io.Reader, int64, error) {
	zr, err := gzip.NewReader(bufio.NewReaderSize(r, 32<<10))
	if err != nil {
		return nil, 0, err
	}
	tr := tar.NewReader(zr)
	h, err := tr.Next()
	if err != nil {
		return nil, 0, err
	}
	if h.Name != tableName || h.Size > toc.MaxJSONSize {
		return nil, 0, fmt.Errorf("%q of %d bytes where %s should be", h.Name, h.Size, tableName)
	}
	return tr, h.Size, nil
}

// parseTable verifies a table and then parses it.
func parseTable(open func() (io.Reader, int64, error), d digest.Digest, at int64) (*toc.Tree, error) {
	r, _, err := open()
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return nil, err
	}
	if hex.EncodeToString(h.Sum(nil)) != d.Encoded() {
		return nil, fmt.Errorf("%w: its table of contents", ErrContent)
	}
	if r, _, err = open(); err != nil {
		return nil, err
	}
	return toc.Parse(r, at)
}

// remoteTable reads the tree of a layer without the rest of it.
func remoteTable(ctx context.Context, s Source, d ocispec.Descriptor, workDir string) (t *toc.Tree, err error) {
	desc, err := descriptor(d)
	if err != nil {
		return nil, err
	}
	at, err := strconv.ParseInt(d.Annotations[annotation.TOCOffset], 10, 64)
	if err != nil || at <= 0 || at >= d.Size {
		tail, err := s.BlobFrom(ctx, desc, max(0, d.Size-toc.FooterSize))
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(io.LimitReader(tail, toc.FooterSize+1))
		if err = errors.Join(err, tail.Close()); err == nil {
			at, err = parseFooter(b, d.Size)
		}
		if err != nil {
			return nil, err
		}
	}
	work, err := os.CreateTemp(workDir, ".airstream-table-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(work.Name()), work.Close()) }()
	rc, err := s.BlobFrom(ctx, desc, at)
	if err != nil {
		return nil, err
	}
	n, err := io.Copy(work, io.LimitReader(rc, d.Size-at))
	if err = errors.Join(err, rc.Close()); err != nil {
		return nil, err
	}
	return parseTable(func() (io.Reader, int64, error) { return unpackTable(io.NewSectionReader(work, 0, n)) }, tocOf(d), at)
}

// tables adds the tables of layers that are here.
func (p *packer) tables(context.Context) error {
	for _, l := range p.layers {
		if l.had {
			continue
		}
		r, size, err := l.openTable()
		if err != nil {
			return err
		}
		sum, err := bundle.SumOf(l.toc)
		if err != nil {
			return err
		}
		if err := p.w.AddBlob(bundle.KindTable, bundle.PriorityTables, bundle.Part{Sum: sum, Size: size, At: l.at}, r); err != nil {
			return fmt.Errorf("layer %s: table of contents: %w", l.desc.Digest, err)
		}
	}
	return nil
}
