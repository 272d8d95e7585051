// Package pack makes bundles: on shore, from images in registries and layouts, of
// what some receivers don't have.
//
// It reads each image's documents, says which files of which layers are wanted, and
// writes what a start reads first, in that order, then the rest. A layer that was
// converted crosses as its table of contents and its files' chunks, each content
// once whatever layers and images have it; others cross as the blobs that they are.
package pack

import (
	"context"
	"errors"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/bundle"
)

// Source is where an image is read from. What it returns is verified here.
type Source interface {
	// Root returns the manifest or index that the source stands for.
	Root(ctx context.Context) (v1.Descriptor, []byte, error)
	// Manifest returns a manifest that an index names.
	Manifest(ctx context.Context, d v1.Descriptor) ([]byte, error)
	// Blob returns a config or layer.
	Blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
	// BlobFrom returns a blob from an offset on, in bytes.
	BlobFrom(ctx context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error)
}

// Image is an image that is to be in the bundle.
type Image struct {
	Name   string // as bundle.Image has it
	Source Source
}

// Held is an image that a receiver has whole.
type Held struct {
	Name   string // "host/repo@sha256:…"
	Source Source
}

// File is a plain file that is to be in the bundle.
type File struct {
	bundle.File
	Open func() (io.ReadCloser, error)
}

// Order says what a bundle is to hold.
type Order struct {
	Images []Image
	Files  []File
	// Receivers are who is to get it, each with what it has. What all of them have is
	// left out. None: nothing is.
	Receivers [][]Held
	// Platforms, "OS/ARCH" or "OS/ARCH/VARIANT", choose from indexes; empty: all that
	// there are.
	Platforms []string
	// Blobs has layers that were converted cross as the registry's bytes, so that the
	// image can be exported for other tools. A node makes no use of these.
	Blobs bool
	// Referrers has what refers to the images go in as well, from sources that are
	// Referring.
	Referrers bool
	WorkDir   string         // for the layers; "": the system's
	Bundle    bundle.Options // its WorkDir is the same
	// Progress is told what is being done, and may be nil.
	Progress func(doing string)
}

// Summary is what was written.
type Summary struct {
	ID       bundle.ID
	Contents *bundle.Contents
	Skipped  int64 // bytes that all receivers have: of files, and of layers that they have whole as the registry has these
}

// ErrContent says that a source doesn't hold what it says. ErrNoPlatform says that
// an index has nothing for a platform.
var (
	ErrContent    = errors.New("content does not match its digest")
	ErrNoPlatform = errors.New("no image for the platform")
)

// Limits on what is read into memory, in bytes.
const (
	maxDocument = 4 << 20
	maxConfig   = 8 << 20
)

// Write makes a bundle and writes it to out.
func Write(ctx context.Context, o Order, out io.Writer) (s Summary, err error) {
	o.Bundle.WorkDir = o.WorkDir
	w, err := bundle.Create(o.Bundle)
	if err != nil {
		return s, err
	}
	p := &packer{Order: o, w: w, docs: map[digest.Digest]bool{}, byTOC: map[digest.Digest]*layer{}, claims: map[objectID]claim{}}
	defer func() { err = errors.Join(err, p.close(), w.Close()) }()
	for _, step := range []func(context.Context) error{p.receivers, p.images, p.trees, p.tables, p.claimAll, p.hot, p.rest, p.blobs, p.files} {
		if err := step(ctx); err != nil {
			return s, fmt.Errorf("pack: %w", err)
		}
	}
	p.contents.Bases = p.bases()
	p.say("writing the bundle")
	s.ID, err = w.Finish(&p.contents, out)
	s.Contents, s.Skipped = &p.contents, p.skipped
	return s, err
}

// packer is one Write.
type packer struct {
	Order
	w        *bundle.Writer
	contents bundle.Contents
	have     have
	docs     map[digest.Digest]bool // documents and blobs that were added, or are to be
	whole    []blob                 // that are still to be added
	layers   []*layer               // converted ones, each once
	byTOC    map[digest.Digest]*layer
	claims   map[objectID]claim
	skipped  int64
	group    group
}

type blob struct {
	source Source
	desc   ocispec.Descriptor
}

func (p *packer) say(doing string) {
	if p.Progress != nil {
		p.Progress(doing)
	}
}

func (p *packer) close() error {
	var errs []error
	for _, l := range p.layers {
		if l.file != nil {
			errs = append(errs, l.file.Close())
		}
	}
	return errors.Join(errs...)
}

// files adds the plain files.
func (p *packer) files(context.Context) error {
	for _, f := range p.Files {
		p.contents.Files = append(p.contents.Files, f.File)
		if p.docs[f.Digest] {
			continue
		}
		p.docs[f.Digest] = true
		rc, err := f.Open()
		if err != nil {
			return err
		}
		if err := p.addBlob(bundle.PriorityRest, f.Digest, f.Size, rc); err != nil {
			return fmt.Errorf("file %s: %w", f.Path, err)
		}
	}
	return nil
}

// addBlob adds a blob and closes rc.
func (p *packer) addBlob(priority uint8, d digest.Digest, size int64, rc io.ReadCloser) error {
	sum, err := bundle.SumOf(d)
	if err == nil {
		err = p.w.AddBlob(bundle.KindBlob, priority, bundle.Part{Sum: sum, Size: size}, rc)
	}
	if errors.Is(err, bundle.ErrDamaged) {
		err = fmt.Errorf("%w: %w", ErrContent, err)
	}
	return errors.Join(err, rc.Close())
}
