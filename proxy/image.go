package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/internal/link/wire"
)

// maxLayers bounds what an image may have; overlayfs takes 500.
const maxLayers = 1000

// image is one platform's image.
type image struct {
	repo      name.Repository
	index     *document // that lists it; nil if it was named itself
	manifest  document
	config    []byte
	configOf  ocispec.Image
	layers    []ocispec.Descriptor
	reference string
}

// document is a manifest or an index.
type document struct {
	mediaType string
	digest    digest.Digest
	body      []byte
}

func refuse(reason wire.Reason, format string, args ...any) error {
	return &link.Refusal{Reason: reason, Text: fmt.Sprintf(format, args...)}
}

// image resolves a reference, for a platform if it names an index.
func (s *Server) image(ctx context.Context, reference, platform string) (*image, error) {
	ref, err := name.ParseReference(reference, name.StrictValidation)
	if err != nil {
		return nil, refuse(wire.Reason_REASON_REQUEST, "%q is no image reference: %v", reference, err)
	}
	root, err := s.document(ctx, ref)
	if err != nil {
		return nil, err
	}
	img := &image{repo: ref.Context(), manifest: root, reference: reference}
	if isIndex(root.mediaType) {
		d, err := choose(root, platform)
		if err != nil {
			return nil, err
		}
		img.index = &root
		if img.manifest, err = s.document(ctx, ref.Context().Digest(d.String())); err != nil {
			return nil, err
		}
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(img.manifest.body, &m); err != nil || m.Config.Digest.Validate() != nil || len(m.Layers) > maxLayers || m.Config.Size > link.MaxConfig {
		return nil, refuse(wire.Reason_REASON_IMAGE, "%s is no container image", reference)
	}
	img.layers = m.Layers
	img.config, err = s.cache.bytes(ctx, s.run, "config/"+m.Config.Digest.Encoded(), link.MaxConfig, func(ctx context.Context) ([]byte, error) {
		return s.whole(ctx, img.repo, m.Config.Digest, m.Config.Size)
	})
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(img.config, &img.configOf); err != nil {
		return nil, refuse(wire.Reason_REASON_IMAGE, "%s is no container image: %v", reference, err)
	}
	return img, nil
}

func isIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == "application/vnd.docker.distribution.manifest.list.v2+json"
}

// choose returns the manifest for a platform: the first that has it, as
// containerd does.
func choose(index document, platform string) (digest.Digest, error) {
	var list ocispec.Index
	if err := json.Unmarshal(index.body, &list); err != nil {
		return "", refuse(wire.Reason_REASON_IMAGE, "the index is damaged: %v", err)
	}
	os, rest, _ := strings.Cut(platform, "/")
	arch, variant, _ := strings.Cut(rest, "/")
	var best digest.Digest
	for _, m := range list.Manifests {
		p := m.Platform
		if p == nil || p.OS != os || p.Architecture != arch || m.Digest.Validate() != nil {
			continue
		}
		if p.Variant == variant || variant == "" {
			return m.Digest, nil
		}
		if p.Variant == "" && best == "" {
			best = m.Digest
		}
	}
	if best == "" {
		return "", refuse(wire.Reason_REASON_IMAGE, "the image is not for %s", platform)
	}
	return best, nil
}

// document reads a manifest or an index. What a digest names is cached, its
// media type before it.
func (s *Server) document(ctx context.Context, ref name.Reference) (document, error) {
	read := func(ctx context.Context) ([]byte, error) {
		mediaType, body, err := s.upstream.manifest(ctx, ref)
		return append([]byte(mediaType+"\n"), body...), err
	}
	by, named := ref.(name.Digest)
	var b []byte
	var err error
	if named {
		b, err = s.cache.bytes(ctx, s.run, "manifest/"+digest.Digest(by.DigestStr()).Encoded(), link.MaxManifest+maxMediaType, read)
	} else {
		b, err = read(ctx) // a tag is asked for whenever somebody wants it
	}
	if err != nil {
		return document{}, err
	}
	mediaType, body, _ := bytes.Cut(b, []byte("\n"))
	doc := document{mediaType: string(mediaType), digest: digest.FromBytes(body), body: body}
	if named && doc.digest.String() != by.DigestStr() {
		s.cache.drop("manifest/" + digest.Digest(by.DigestStr()).Encoded())
		return document{}, refuse(wire.Reason_REASON_UPSTREAM, "manifest %s is not what its digest says", by.DigestStr())
	}
	return doc, nil
}

const maxMediaType = 256

// whole reads a small blob and verifies it.
func (s *Server) whole(ctx context.Context, repo name.Repository, d digest.Digest, size int64) ([]byte, error) {
	rc, err := s.upstream.blob(ctx, repo, d, 0, size)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(rc)
	if closeErr := rc.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return nil, err
	}
	if digest.FromBytes(b) != d {
		return nil, refuse(wire.Reason_REASON_IMAGE, "blob %s of %s is not what its digest says", d, repo.Name())
	}
	return b, nil
}
