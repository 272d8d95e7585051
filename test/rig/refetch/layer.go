package refetch

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/toc"
)

// Add makes the watch know the lazy layers of an image, which it reads whole.
func (w *Watch) Add(img v1.Image) error {
	manifest, err := img.Manifest()
	if err != nil {
		return fmt.Errorf("refetch: %w", err)
	}
	for _, desc := range manifest.Layers {
		if desc.Annotations[annotation.TOCDigest] == "" {
			continue
		}
		if err := w.addLayer(img, desc); err != nil {
			return fmt.Errorf("refetch: layer %s: %w", desc.Digest, err)
		}
	}
	return nil
}

func (w *Watch) addLayer(img v1.Image, desc v1.Descriptor) error {
	offset, err := strconv.ParseInt(desc.Annotations[annotation.TOCOffset], 10, 64)
	if err != nil {
		return fmt.Errorf("the offset of its table: %w", err)
	}
	blob, err := img.LayerByDigest(desc.Digest)
	if err != nil {
		return err
	}
	rc, err := blob.Compressed()
	if err != nil {
		return err
	}
	b, err := io.ReadAll(rc)
	if err = errors.Join(err, rc.Close()); err != nil {
		return err
	}
	if offset < 0 || offset >= int64(len(b)) {
		return fmt.Errorf("its table begins at %d of %d bytes", offset, len(b))
	}
	zr, err := gzip.NewReader(bytes.NewReader(b[offset:]))
	if err != nil {
		return err
	}
	table := tar.NewReader(zr)
	if _, err := table.Next(); err != nil {
		return err
	}
	l := &layer{table: digest.Digest(desc.Annotations[annotation.TOCDigest]), offset: offset, size: desc.Size}
	if l.tree, err = toc.Parse(table, offset); err != nil {
		return err
	}
	l.files = make([]string, l.tree.NumChunks())
	names := map[uint32]string{} // an ID is a hash over all chunks of its file
	for c := range uint32(l.tree.NumChunks()) {
		entry := l.tree.ChunkFile(c)
		if names[entry] == "" {
			names[entry] = l.tree.ObjectID(entry).String()
		}
		l.files[c] = filepath.Join(w.dir, "objects", names[entry][:2], names[entry])
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.layers[desc.Digest.Hex] = l
	return nil
}

// Have returns how many bytes of an image's lazy layers are on disk, verified,
// and how many there are in all.
func (w *Watch) Have(img v1.Image) (have, total int64, err error) {
	manifest, err := img.Manifest()
	if err != nil {
		return 0, 0, fmt.Errorf("refetch: %w", err)
	}
	for _, desc := range manifest.Layers {
		w.mu.Lock()
		l := w.layers[desc.Digest.Hex]
		w.mu.Unlock()
		if l == nil {
			continue
		}
		for m := range uint32(l.tree.NumMembers()) {
			at := l.tree.Member(m)
			if first, end := l.tree.MemberChunks(m); first == end {
				continue // a tar header alone
			}
			total += at.End - at.Offset
			if w.member(l, m) {
				have += at.End - at.Offset
			}
		}
	}
	return have, total, nil
}
