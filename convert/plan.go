package convert

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

	"github.com/airstream-io/airstream/convert/internal/rawjson"
	"github.com/airstream-io/airstream/convert/location"
)

// Limits on what an image may ask the converter to hold.
const (
	maxManifest  = 32 << 20 // bytes; registries accept 4 MiB
	maxConfig    = 32 << 20 // bytes
	maxManifests = 1024     // in all indexes of an image
	maxNesting   = 4        // indexes in indexes
	maxLayers    = 1024     // overlayfs takes 500
)

// plan is what is to be done with an image: a tree of indexes and manifests.
type plan struct {
	d        v1.Descriptor // in the source
	raw      []byte
	index    *rawjson.Object // if it is an index
	children []*plan         // of the index, those that were asked for, in order
	image    *image          // if it is to be converted; else it passes through
	blobs    []v1.Descriptor // what a manifest that passes through refers to
}

// image is a manifest that is to be converted.
type image struct {
	manifest  *rawjson.Object
	config    *rawjson.Object
	rawConfig []byte
	configD   v1.Descriptor
	is        v1.Platform
	layers    []sourceLayer
	rawLayers []*rawjson.Object
	matchers  []int // numbers of works.matchers that are for it
}

// sourceLayer is a layer as the source has it.
type sourceLayer struct {
	d      v1.Descriptor
	diffID v1.Hash
	first  []string // files that are to be prioritized, in order
	firstI string   // identifies that list; "" if it is empty
}

// readPlan reads all manifests and configs, and finds out what can't be
// converted before any work is done.
func readPlan(ctx context.Context, src Source, platforms []v1.Platform) (*plan, error) {
	d, raw, err := src.Root(ctx)
	if err != nil {
		return nil, err
	}
	r := &planner{src: src, platforms: platforms}
	p, err := r.read(ctx, d, raw, 0)
	if err != nil {
		return nil, err
	}
	if p.index == nil {
		if p.image == nil {
			return nil, fmt.Errorf("manifest %s: %w: %w", d.Digest, location.ErrNotImage, r.why)
		}
		if pl := p.image.is; len(platforms) > 0 && !slices.ContainsFunc(platforms, pl.Satisfies) {
			return nil, fmt.Errorf("manifest %s: %w: it is for %s and no other platform", d.Digest, location.ErrNotFound, pl)
		}
		return p, nil
	}
	images := p.images()
	if len(images) == 0 {
		return nil, fmt.Errorf("index %s: %w: it has no Linux image%s", d.Digest, location.ErrNotFound, r.offered())
	}
	if len(platforms) == 1 {
		if len(images) > 1 {
			return nil, fmt.Errorf("index %s: %w: %d images for %s%s", d.Digest, location.ErrNotFound, len(images), platforms[0], r.offered())
		}
		return images[0], nil
	}
	return p, nil
}

type planner struct {
	src       Source
	platforms []v1.Platform
	seen      []string // platforms there are, for an error message
	count     int
	why       error // why the last manifest isn't converted
}

func (r *planner) offered() string {
	if len(r.platforms) == 0 || len(r.seen) == 0 {
		return ""
	}
	return fmt.Sprintf(" for the platform asked for; it has: %s", strings.Join(r.seen, ", "))
}

// images returns the manifests that are to be converted, in order.
func (p *plan) images() (list []*plan) {
	if p.image != nil {
		return []*plan{p}
	}
	for _, c := range p.children {
		list = append(list, c.images()...)
	}
	return list
}

func (r *planner) read(ctx context.Context, d v1.Descriptor, raw []byte, depth int) (*plan, error) {
	if r.count++; r.count > maxManifests || depth > maxNesting {
		return nil, fmt.Errorf("%s: %w: too many manifests", d.Digest, ErrUnsupported)
	}
	if err := check(d, raw); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	o, err := rawjson.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w: %w", d.Digest, location.ErrNotImage, err)
	}
	p := &plan{d: d, raw: raw}
	var inside types.MediaType
	if err := o.Get("mediaType", &inside); err != nil {
		return nil, fmt.Errorf("manifest %s: %w: %w", d.Digest, location.ErrNotImage, err)
	}
	if inside != "" {
		p.d.MediaType = inside // what the bytes say is what the digest covers
	}
	switch {
	case p.d.MediaType.IsSchema1() || o.Has("fsLayers"):
		return nil, fmt.Errorf("manifest %s: %w: it has docker's schema 1 of 2015; pull and push it with a newer docker first", d.Digest, ErrUnsupported)
	case p.d.MediaType.IsIndex() || inside == "" && o.Has("manifests"):
		p.index = o
		return p, r.readIndex(ctx, p, depth)
	case p.d.MediaType.IsImage() || inside == "" && o.Has("layers"):
		return p, r.readManifest(ctx, p, o)
	}
	return nil, fmt.Errorf("manifest %s: %w: its media type is %q", d.Digest, location.ErrNotImage, p.d.MediaType)
}

func (r *planner) readIndex(ctx context.Context, p *plan, depth int) error {
	var list []v1.Descriptor
	if err := p.index.Get("manifests", &list); err != nil {
		return fmt.Errorf("index %s: %w: %w", p.d.Digest, location.ErrNotImage, err)
	}
	for _, d := range list {
		if d.Platform != nil && d.Platform.OS != "unknown" && !slices.Contains(r.seen, d.Platform.String()) {
			r.seen = append(r.seen, d.Platform.String())
		}
		if !r.wanted(d) {
			p.children = append(p.children, nil)
			continue
		}
		raw, err := r.src.Manifest(ctx, d)
		if err != nil {
			return incomplete(err)
		}
		c, err := r.read(ctx, d, raw, depth+1)
		if err != nil {
			return err
		}
		c.d.Platform = d.Platform
		p.children = append(p.children, c)
	}
	p.children = slices.DeleteFunc(p.children, func(c *plan) bool { return c == nil })
	return nil
}

// wanted applies the selection. Nested indexes and manifests without a
// platform are looked into if there is no selection only.
func (r *planner) wanted(d v1.Descriptor) bool {
	if len(r.platforms) == 0 {
		return true
	}
	return d.Platform != nil && slices.ContainsFunc(r.platforms, func(p v1.Platform) bool { return d.Platform.Satisfies(p) })
}

// readManifest decides whether a manifest is converted or passes through.
func (r *planner) readManifest(ctx context.Context, p *plan, o *rawjson.Object) error {
	var m v1.Manifest
	if err := json.Unmarshal(p.raw, &m); err != nil {
		return fmt.Errorf("manifest %s: %w: %w", p.d.Digest, location.ErrNotImage, err)
	}
	p.blobs = append([]v1.Descriptor{m.Config}, m.Layers...)
	if !m.Config.MediaType.IsConfig() {
		r.why = fmt.Errorf("its config has the media type %q, so it is some other artifact", m.Config.MediaType)
		return nil
	}
	if attestation(p.d, m) {
		r.why = errors.New("it is an attestation")
		return nil
	}
	if len(m.Layers) > maxLayers {
		return fmt.Errorf("manifest %s: %w: %d layers", p.d.Digest, ErrUnsupported, len(m.Layers))
	}
	raw, err := readBlob(ctx, r.src, m.Config, maxConfig)
	if err != nil {
		return fmt.Errorf("config of manifest %s: %w", p.d.Digest, err)
	}
	img := &image{manifest: o, rawConfig: raw, configD: m.Config}
	if img.config, err = rawjson.Parse(raw); err != nil {
		return fmt.Errorf("config %s: %w: %w", m.Config.Digest, location.ErrNotImage, err)
	}
	var c v1.ConfigFile
	if err := json.Unmarshal(raw, &c); err != nil {
		return fmt.Errorf("config %s: %w: %w", m.Config.Digest, location.ErrNotImage, err)
	}
	if c.OS != "" && c.OS != "linux" {
		r.why = fmt.Errorf("it is for %s, and only Linux images can start lazily", c.OS)
		return nil
	}
	if pl := c.Platform(); pl != nil {
		img.is = *pl
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return fmt.Errorf("config %s: %w: it knows %d layers, and manifest %s has %d", m.Config.Digest, location.ErrNotImage, len(c.RootFS.DiffIDs), p.d.Digest, len(m.Layers))
	}
	if img.rawLayers, err = o.Objects("layers"); err != nil {
		return fmt.Errorf("manifest %s: %w: %w", p.d.Digest, location.ErrNotImage, err)
	}
	for i, d := range m.Layers {
		if err := convertible(d); err != nil {
			return fmt.Errorf("layer %d of %d, %s: %w", i+1, len(m.Layers), d.Digest, err)
		}
		img.layers = append(img.layers, sourceLayer{d: d, diffID: c.RootFS.DiffIDs[i]})
	}
	p.image = img
	return nil
}

// attestation tells whether a manifest is one of buildkit's: they are made to
// look like images for an unknown platform, because some registries take
// nothing else.
func attestation(d v1.Descriptor, m v1.Manifest) bool {
	if d.Annotations["vnd.docker.reference.type"] == "attestation-manifest" {
		return true
	}
	return len(m.Layers) > 0 && !slices.ContainsFunc(m.Layers, func(l v1.Descriptor) bool {
		return !strings.HasPrefix(string(l.MediaType), "application/vnd.in-toto")
	})
}

var layerTypes = []types.MediaType{
	types.OCILayer, types.OCILayerZStd, types.OCIUncompressedLayer, types.DockerLayer, types.DockerUncompressedLayer,
}

func convertible(d v1.Descriptor) error {
	switch {
	case slices.Contains(layerTypes, d.MediaType):
		return nil
	case strings.HasSuffix(string(d.MediaType), "+encrypted"):
		return fmt.Errorf("%w: it is encrypted (%s); decrypt the image first, or convert before encrypting", ErrUnsupported, d.MediaType)
	case !d.MediaType.IsDistributable():
		return fmt.Errorf("%w: it may not be distributed (%s), so no registry has it", ErrUnsupported, d.MediaType)
	}
	return fmt.Errorf("%w: its media type %q is none that this version knows; a tar with gzip, with zstd, or plain is", ErrUnsupported, d.MediaType)
}

// check compares bytes with their descriptor.
func check(d v1.Descriptor, raw []byte) error {
	if len(raw) > maxManifest {
		return fmt.Errorf("%w: %d bytes", ErrUnsupported, len(raw))
	}
	h, size, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		return err
	}
	if d.Digest.Algorithm != "sha256" {
		return fmt.Errorf("%w: digest by %s, and only sha256 is supported", ErrUnsupported, d.Digest.Algorithm)
	}
	if h != d.Digest || size != d.Size {
		return fmt.Errorf("%w: got %d bytes with digest %s, want %d bytes with %s", ErrVerify, size, h, d.Size, d.Digest)
	}
	return nil
}

// readBlob reads a small blob and verifies it.
func readBlob(ctx context.Context, src Source, d v1.Descriptor, limit int64) ([]byte, error) {
	if d.Size < 0 || d.Size > limit {
		return nil, fmt.Errorf("blob %s: %w: %d bytes, where at most %d are expected", d.Digest, ErrUnsupported, d.Size, limit)
	}
	rc, err := open(ctx, src, d)
	if err != nil {
		return nil, err
	}
	defer rc.Close() //nolint:errcheck // a reader
	v := newVerifier(rc, d)
	raw, err := io.ReadAll(v)
	if err != nil {
		return nil, err
	}
	return raw, nil
}

// open opens a blob that a manifest refers to.
func open(ctx context.Context, src Source, d v1.Descriptor) (io.ReadCloser, error) {
	rc, err := src.Blob(ctx, d)
	return rc, incomplete(err)
}

// incomplete tells a part that is missing from an image that is missing.
func incomplete(err error) error {
	if errors.Is(err, location.ErrNotFound) {
		return fmt.Errorf("%w: %w", ErrIncomplete, err)
	}
	return err
}
