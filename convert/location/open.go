package location

import (
	"context"
	"fmt"
	"io"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Source is where an image is read from. Its methods may be called
// concurrently.
type Source interface {
	// Root returns what the location names: a manifest or an index. The bytes
	// match the descriptor.
	Root(ctx context.Context) (v1.Descriptor, []byte, error)
	// Manifest returns a manifest that an index names, as it is found.
	Manifest(ctx context.Context, d v1.Descriptor) ([]byte, error)
	// Blob returns a config or layer, as it is found.
	Blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
	// Close releases what is held. It must come after all else.
	Close() error
}

// Destination is where an image is written to. Its methods, but Commit and
// Close, may be called concurrently.
type Destination interface {
	// Check tells whether the place can be reached and lets us write, before
	// any work is done for it.
	Check(ctx context.Context) error
	// HasBlob tells whether a blob is there already.
	HasBlob(ctx context.Context, d v1.Descriptor) (bool, error)
	// PutBlob writes a blob. It may call open more than once, and not at all
	// if the blob turns out to be there.
	PutBlob(ctx context.Context, d v1.Descriptor, open func() (io.ReadCloser, error)) error
	// PutManifest writes a manifest without giving it a name.
	PutManifest(ctx context.Context, d v1.Descriptor, raw []byte) error
	// PutReferrer writes a manifest that has a subject, which must be there, so
	// that it is found by it: with the referrers API, or where that is missing
	// with the tag that OCI has for it. A layout has it once there is a Commit.
	PutReferrer(ctx context.Context, subject, d v1.Descriptor, raw []byte) error
	// Commit writes the manifest or index and gives it the location's name.
	// All that it refers to must have been written.
	Commit(ctx context.Context, d v1.Descriptor, raw []byte) error
	// Close releases what is held, and takes back what can be taken back of
	// what was written without a Commit.
	Close() error
}

// OpenSource opens a location for reading. workDir is where an archive that
// is compressed as a whole is unpacked.
func (l Location) OpenSource(ctx context.Context, o Options, workDir string) (Source, error) {
	switch l.kind {
	case layoutKind:
		return openLayout(l), nil
	case archiveKind:
		return openArchive(ctx, l, workDir)
	default:
		return openRegistry(l.ref, o)
	}
}

// OpenDestination opens a location for writing. Nothing is written until a
// blob is put. Blobs that are in from's repository of the same registry are
// mounted and not sent.
func (l Location) OpenDestination(o Options, from Location) (Destination, error) {
	switch l.kind {
	case layoutKind:
		if l.hash != "" {
			return nil, fmt.Errorf("location: %s: %w: a destination can't be named by digest; write oci:DIR or oci:DIR:TAG", l, ErrSyntax)
		}
		return openLayout(l), nil
	case archiveKind:
		return nil, fmt.Errorf("location: %s: %w: docker load drops the annotations that make layers lazy; write to oci:DIR or a registry", l, ErrReadOnly)
	case registryKind:
	}
	if _, ok := l.ref.(name.Digest); ok {
		return nil, fmt.Errorf("location: %s: %w: a destination can't be named by digest; give a tag", l, ErrSyntax)
	}
	r, err := openRegistry(l.ref, o)
	if err != nil {
		return nil, err
	}
	if from.ref != nil && from.Host() == l.Host() {
		if repo := from.ref.Context(); repo.String() != l.ref.Context().String() {
			r.from = &repo
		}
	}
	return r, nil
}
