package pack

import (
	"context"
	"encoding/json"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/artifact"
	"github.com/airstream-io/airstream/internal/bundle"
)

// Referring is a Source that knows what refers to its images: signatures, SBOMs.
type Referring interface {
	// Referrers returns the manifests whose subject is another.
	Referrers(ctx context.Context, subject v1.Descriptor) ([]v1.Descriptor, error)
}

// referrers adds what refers to an image: documents now, blobs behind all else.
func (p *packer) referrers(ctx context.Context, s Source, entry *bundle.Image) error {
	lister, ok := s.(Referring)
	if !ok || !p.Referrers {
		return nil
	}
	subjects := []digest.Digest{entry.Digest}
	for _, m := range entry.Parts {
		if m.Digest != entry.Digest {
			subjects = append(subjects, m.Digest)
		}
	}
	for _, subject := range subjects {
		h, err := v1.NewHash(subject.String())
		if err != nil {
			return err
		}
		list, err := lister.Referrers(ctx, v1.Descriptor{Digest: h})
		if err != nil {
			return err
		}
		for _, d := range list {
			if d.ArtifactType == artifact.MediaType || d.MediaType.IsIndex() {
				continue // a bundle has tables and hot sets in records of its own
			}
			if err := p.referrer(ctx, s, d); err != nil {
				return fmt.Errorf("what refers to it: %w", err)
			}
			entry.Referrers = append(entry.Referrers, bundle.Referrer{
				Subject: subject, Digest: digest.Digest(d.Digest.String()), MediaType: string(d.MediaType), ArtifactType: d.ArtifactType, Size: d.Size, Annotations: d.Annotations,
			})
		}
	}
	return nil
}

func (p *packer) referrer(ctx context.Context, s Source, d v1.Descriptor) error {
	name := digest.Digest(d.Digest.String())
	if p.docs[name] {
		return nil
	}
	body, err := s.Manifest(ctx, d)
	if err != nil {
		return err
	}
	if digest.FromBytes(body) != name || len(body) > maxDocument {
		return fmt.Errorf("%w: manifest %s, of %d bytes", ErrContent, name, len(body))
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return fmt.Errorf("manifest %s: %w", name, err)
	}
	if err := p.document(document{name, string(d.MediaType), body, ""}); err != nil {
		return err
	}
	for _, l := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		p.layer(s, l, false)
	}
	return nil
}
