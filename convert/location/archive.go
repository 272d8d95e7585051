package location

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/airstream-io/airstream/convert/internal/cancelable"
	"github.com/airstream-io/airstream/convert/layer"
)

// archive is an image in the output of docker save. Its manifest is made up:
// docker's own format has none.
type archive struct {
	Location

	file     *os.File
	root     v1.Descriptor
	manifest []byte
	blobs    map[v1.Hash]span
}

type span struct{ offset, size int64 }

func openArchive(ctx context.Context, l Location, workDir string) (*archive, error) {
	a := &archive{Location: l, blobs: map[v1.Hash]span{}}
	err := a.open(ctx, workDir)
	if err == nil {
		err = a.load(ctx)
	}
	if err != nil {
		if a.file != nil {
			_ = a.file.Close()
		}
		return nil, fmt.Errorf("location: read %s: %w", l, err)
	}
	return a, nil
}

// open opens the archive, unpacked if it is compressed as a whole.
func (a *archive) open(ctx context.Context, workDir string) error {
	f, err := os.Open(a.path)
	if err != nil {
		return notFound(err)
	}
	a.file = f
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%w: it is not a regular file", ErrNotImage)
	}
	magic := make([]byte, 4)
	if _, err := f.ReadAt(magic, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !bytes.HasPrefix(magic, []byte{0x1f, 0x8b}) && !bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) {
		return nil
	}
	r, err := layer.Decompress(cancelable.Reader(ctx, f))
	if err != nil {
		return err
	}
	defer r.Close() //nolint:errcheck // a reader
	plain, err := layer.ScratchIn(workDir)()
	if err != nil {
		return err
	}
	if _, err := io.Copy(plain, r); err != nil {
		return errors.Join(err, plain.Close())
	}
	a.file = plain
	return f.Close()
}

// load finds the image in the archive and makes up its manifest.
func (a *archive) load(ctx context.Context) error {
	members, links, err := a.list(ctx)
	if err != nil {
		return err
	}
	find := func(name string) (span, error) {
		name = path.Clean(name)
		for range 8 {
			if s, ok := members[name]; ok {
				return s, nil
			}
			target, ok := links[name]
			if !ok {
				break
			}
			name = target
		}
		return span{}, fmt.Errorf("%w: the archive has no file %s", ErrNotImage, name)
	}
	s, err := find("manifest.json")
	if err != nil {
		return fmt.Errorf("%w; is it really from docker save?", err)
	}
	raw, err := a.readAll(s)
	if err != nil {
		return err
	}
	var list tarball.Manifest
	if err := json.Unmarshal(raw, &list); err != nil {
		return fmt.Errorf("%w: manifest.json: %w", ErrNotImage, err)
	}
	image, err := a.choose(list)
	if err != nil {
		return err
	}
	if s, err = find(image.Config); err != nil {
		return err
	}
	config, err := a.readAll(s)
	if err != nil {
		return err
	}
	h, size, err := v1.SHA256(bytes.NewReader(config))
	if err != nil {
		return err
	}
	a.blobs[h] = s
	m := v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		Config:        v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: h, Size: size},
		Layers:        []v1.Descriptor{},
	}
	for _, name := range image.Layers {
		if s, err = find(name); err != nil {
			return err
		}
		d, err := a.describe(ctx, s)
		if err != nil {
			return err
		}
		a.blobs[d.Digest] = s
		m.Layers = append(m.Layers, d)
	}
	if a.manifest, err = json.Marshal(m); err != nil {
		return err
	}
	h, size, err = v1.SHA256(bytes.NewReader(a.manifest))
	a.root = v1.Descriptor{MediaType: m.MediaType, Digest: h, Size: size}
	return err
}

// list goes through the archive once and notes where its files are. Older
// dockers save a layer that two images share once, and a link to it.
func (a *archive) list(ctx context.Context) (files map[string]span, links map[string]string, err error) {
	if _, err := a.file.Seek(0, io.SeekStart); err != nil {
		return nil, nil, err
	}
	files, links = map[string]span{}, map[string]string{}
	tr := tar.NewReader(a.file)
	for {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files, links, nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			if len(files)+len(links) == 0 {
				return nil, nil, fmt.Errorf("%w: not a tar: %w", ErrNotImage, err)
			}
			return nil, nil, fmt.Errorf("%w: after %d files: %w", layer.ErrInvalid, len(files)+len(links), err)
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			off, err := a.file.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, nil, err
			}
			files[name] = span{off, h.Size}
		case tar.TypeSymlink:
			links[name] = path.Join(path.Dir(name), h.Linkname)
		case tar.TypeLink:
			links[name] = path.Clean(h.Linkname)
		}
	}
}

func (a *archive) choose(list tarball.Manifest) (*tarball.Descriptor, error) {
	var names []string
	for i := range list {
		if a.tag != "" && slices.Contains(list[i].RepoTags, a.tag) {
			return &list[i], nil
		}
		names = append(names, list[i].RepoTags...)
	}
	switch {
	case a.tag != "":
		return nil, fmt.Errorf("%w: no image %s in the archive; it has: %s", ErrNotFound, a.tag, strings.Join(names, ", "))
	case len(list) == 0:
		return nil, fmt.Errorf("%w: manifest.json lists no image", ErrNotImage)
	case len(list) > 1:
		return nil, fmt.Errorf("%w: %d images in the archive; say which with docker-archive:%s:NAME:TAG: %s", ErrNotFound, len(list), a.path, strings.Join(names, ", "))
	}
	return &list[0], nil
}

// describe hashes a layer. Nothing else in the archive says what it is called.
func (a *archive) describe(ctx context.Context, s span) (v1.Descriptor, error) {
	d := v1.Descriptor{MediaType: types.OCIUncompressedLayer, Size: s.size}
	magic := make([]byte, 4)
	if _, err := a.file.ReadAt(magic[:min(4, s.size)], s.offset); err != nil && !errors.Is(err, io.EOF) {
		return d, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		d.MediaType = types.OCILayer
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d.MediaType = types.OCILayerZStd
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, cancelable.Reader(ctx, a.section(s))); err != nil {
		return d, err
	}
	d.Digest = v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", sum.Sum(nil))}
	return d, nil
}

func (a *archive) section(s span) *io.SectionReader {
	return io.NewSectionReader(a.file, s.offset, s.size)
}

func (a *archive) readAll(s span) ([]byte, error) {
	if s.size > maxManifest {
		return nil, fmt.Errorf("%w: a file of %d bytes where JSON should be", ErrNotImage, s.size)
	}
	return io.ReadAll(a.section(s))
}

func (a *archive) Root(context.Context) (v1.Descriptor, []byte, error) {
	return a.root, a.manifest, nil
}

func (a *archive) Manifest(_ context.Context, d v1.Descriptor) ([]byte, error) {
	if d.Digest != a.root.Digest {
		return nil, fmt.Errorf("location: read manifest %s of %s: %w", d.Digest, a, ErrNotFound)
	}
	return a.manifest, nil
}

func (a *archive) Blob(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	s, ok := a.blobs[d.Digest]
	if !ok {
		return nil, fmt.Errorf("location: read blob %s of %s: %w", d.Digest, a, ErrNotFound)
	}
	return io.NopCloser(a.section(s)), nil
}

func (a *archive) Close() error { return a.file.Close() }
