package pack

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/bundle"
)

// images reads the documents of all images and adds them, with the configs.
func (p *packer) images(ctx context.Context) error {
	for _, img := range p.Images {
		p.say("reading " + img.Name)
		if err := p.image(ctx, img); err != nil {
			return fmt.Errorf("%s: %w", img.Name, err)
		}
	}
	return nil
}

func (p *packer) image(ctx context.Context, img Image) error {
	desc, body, err := root(ctx, img.Source)
	if err != nil {
		return err
	}
	entry := bundle.Image{Name: img.Name, Digest: digest.Digest(desc.Digest.String()), MediaType: string(desc.MediaType), Size: int64(len(body))}
	manifests := []document{{entry.Digest, entry.MediaType, body, ""}}
	if desc.MediaType.IsIndex() {
		if err := p.document(manifests[0]); err != nil {
			return err
		}
		if manifests, err = p.choose(ctx, img.Source, body); err != nil {
			return err
		}
	}
	for _, m := range manifests {
		platform, err := p.manifest(ctx, img.Source, m)
		if err != nil {
			return err
		}
		entry.Parts = append(entry.Parts, bundle.Manifest{Digest: m.digest, Platform: platform})
	}
	if err := p.referrers(ctx, img.Source, &entry); err != nil {
		return err
	}
	p.contents.Images = append(p.contents.Images, entry)
	return nil
}

// document is a manifest or index.
type document struct {
	digest    digest.Digest
	mediaType string
	body      []byte
	platform  string // as an index says
}

func root(ctx context.Context, s Source) (v1.Descriptor, []byte, error) {
	desc, body, err := s.Root(ctx)
	if err == nil && (digest.FromBytes(body).String() != desc.Digest.String() || len(body) > maxDocument) {
		err = fmt.Errorf("%w: manifest %s, of %d bytes", ErrContent, desc.Digest, len(body))
	}
	return desc, body, err
}

// document adds a document, once.
func (p *packer) document(d document) error {
	if p.docs[d.digest] || p.have.all(d.digest) {
		return nil
	}
	p.docs[d.digest] = true
	if len(d.mediaType) > 255 {
		return fmt.Errorf("media type %.40q… is too long", d.mediaType)
	}
	doc := bundle.Document{MediaType: d.mediaType, Body: d.body}
	return p.w.Add(bundle.KindDocument, bundle.PriorityNames, doc.Encode())
}

// choose returns the manifests of an index that are wanted.
func (p *packer) choose(ctx context.Context, s Source, index []byte) (chosen []document, err error) {
	var list v1.IndexManifest
	if err := json.Unmarshal(index, &list); err != nil {
		return nil, fmt.Errorf("its index: %w", err)
	}
	var offered []string
	for _, d := range list.Manifests {
		platform := ""
		if d.Platform != nil {
			platform = strings.TrimSuffix(d.Platform.OS+"/"+d.Platform.Architecture+"/"+d.Platform.Variant, "/")
			if d.Platform.OS == "unknown" {
				continue // attestations
			}
			offered = append(offered, platform)
		}
		if !p.wants(platform) {
			continue
		}
		body, err := s.Manifest(ctx, d)
		if err != nil {
			return nil, err
		}
		if digest.FromBytes(body).String() != d.Digest.String() || len(body) > maxDocument {
			return nil, fmt.Errorf("%w: manifest %s, of %d bytes", ErrContent, d.Digest, len(body))
		}
		chosen = append(chosen, document{digest.Digest(d.Digest.String()), string(d.MediaType), body, platform})
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("%w %s; it has %s", ErrNoPlatform, strings.Join(p.Platforms, ", "), strings.Join(offered, ", "))
	}
	return chosen, nil
}

func (p *packer) wants(platform string) bool {
	return len(p.Platforms) == 0 || slices.ContainsFunc(p.Platforms, func(w string) bool {
		return platform == w || strings.HasPrefix(platform, w+"/")
	})
}

// manifest adds a manifest and its config, and notes its layers. It returns the
// platform.
func (p *packer) manifest(ctx context.Context, s Source, d document) (platform string, err error) {
	if p.docs[d.digest] {
		return d.platform, nil // another image has it, too
	}
	if err := p.document(d); err != nil {
		return "", err
	}
	p.docs[d.digest] = true
	var m ocispec.Manifest
	if err := json.Unmarshal(d.body, &m); err != nil {
		return "", fmt.Errorf("manifest %s: %w", d.digest, err)
	}
	config, err := read(ctx, s, m.Config, maxConfig)
	if err != nil {
		return "", err
	}
	if platform = d.platform; platform == "" {
		var about ocispec.Image
		if json.Unmarshal(config, &about) == nil { // else it is no image
			platform = strings.TrimRight(about.OS+"/"+about.Architecture+"/"+about.Variant, "/")
		}
	}
	if !p.docs[m.Config.Digest] && !p.have.all(m.Config.Digest) {
		p.docs[m.Config.Digest] = true
		if err := p.addBlob(bundle.PriorityNames, m.Config.Digest, m.Config.Size, io.NopCloser(bytes.NewReader(config))); err != nil {
			return "", err
		}
	}
	for _, l := range m.Layers {
		p.layer(s, l, isImage(m.Config.MediaType))
	}
	return platform, nil
}

func isImage(configType string) bool {
	return configType == ocispec.MediaTypeImageConfig || configType == string(types.DockerConfigJSON)
}

// read returns a small blob.
func read(ctx context.Context, s Source, d ocispec.Descriptor, limit int64) ([]byte, error) {
	if d.Size < 0 || d.Size > limit {
		return nil, fmt.Errorf("blob %s has %d bytes", d.Digest, d.Size)
	}
	desc, err := descriptor(d)
	if err != nil {
		return nil, err
	}
	rc, err := s.Blob(ctx, desc)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(rc, d.Size+1))
	if err = errors.Join(err, rc.Close()); err == nil && digest.FromBytes(b) != d.Digest {
		err = fmt.Errorf("%w: blob %s", ErrContent, d.Digest)
	}
	return b, err
}

func descriptor(d ocispec.Descriptor) (v1.Descriptor, error) {
	h, err := v1.NewHash(d.Digest.String())
	return v1.Descriptor{MediaType: types.MediaType(d.MediaType), Digest: h, Size: d.Size}, err
}

// layer notes a layer, of an image or of something else.
func (p *packer) layer(s Source, d ocispec.Descriptor, image bool) {
	toc := digest.Digest(d.Annotations[annotation.TOCDigest])
	lazy := image && lazy(d)
	if (!lazy || p.Blobs) && !p.docs[d.Digest] {
		p.docs[d.Digest] = true
		if base, ok := p.have.which(d.Digest); ok {
			p.have.used(base)
			p.skipped += d.Size
		} else {
			p.whole = append(p.whole, blob{s, d})
		}
	}
	if lazy && p.byTOC[toc] == nil {
		l := &layer{source: s, desc: d, toc: toc}
		if base, ok := p.have.which(toc); ok {
			p.have.used(base) // its table and all of its files
			l.had = true
			p.skipped += d.Size
		}
		p.byTOC[toc] = l
		p.layers = append(p.layers, l)
	}
}

// lazy tells whether a node makes a file tree of a layer and not a blob, by the
// rules of package catalog.
func lazy(d ocispec.Descriptor) bool {
	toc := digest.Digest(d.Annotations[annotation.TOCDigest])
	return toc.Validate() == nil && toc.Algorithm() == digest.SHA256 && d.Digest.Algorithm() == digest.SHA256 && strings.HasSuffix(d.MediaType, "gzip")
}

// blobs adds layers that cross as they are.
func (p *packer) blobs(ctx context.Context) error {
	for _, b := range p.whole {
		p.say("packing layer " + b.desc.Digest.String())
		desc, err := descriptor(b.desc)
		if err != nil {
			return err
		}
		rc, err := b.source.Blob(ctx, desc)
		if err != nil {
			return err
		}
		if err := p.addBlob(bundle.PriorityRest, b.desc.Digest, b.desc.Size, rc); err != nil {
			return err
		}
	}
	return nil
}
