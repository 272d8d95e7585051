package proxy

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/internal/link/wire"
	"github.com/airstream-io/airstream/internal/toc"
)

// plan opens the layers and plans what the node lacks.
func (p *pull) plan(ctx context.Context, img *image) (*plan, error) {
	layers := make([]*layer, len(img.layers))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	p.lists(img.layers)
	for i := range img.layers {
		group.Go(func() (err error) {
			layers[i], err = p.open(gctx, img, i)
			return err
		})
	}
	err := group.Wait()
	p.lists(nil)
	if err != nil {
		return nil, err
	}
	here, err := p.inventory(ctx, img)
	if err != nil {
		return nil, err
	}
	p.layers = layers
	depth := p.req.GetDepth()
	if sum, err := hex.DecodeString(img.manifest.digest.Encoded()); err == nil && bytes.Equal(sum, p.req.GetKnown()) {
		depth = link.Names
	}
	w := newWants(layers, here.objects, here.warm)
	p.bases = findBases(layers, here, w)
	return makePlan(img, layers, depth, w, p.req.GetHave(), p.req.GetWarm()), nil
}

// inventory is what a node has. Images that are not to be found any more are left
// out.
type inventory struct {
	objects [][]toc.ObjectID // of images that are there whole, by layer
	warm    pieces           // of those of which the hot set is
	// before are the layers of the image to build on: the first of the same
	// repository, preferably one that is there whole.
	before []*layer
	whole  bool // before is there whole; else what is warm
}

func (p *pull) inventory(ctx context.Context, wanted *image) (*inventory, error) {
	v := &inventory{warm: pieces{}}
	seen := map[digest.Digest]bool{}
	err := p.eachOf(ctx, p.req.GetHave(), func(img *image, layers []*layer) {
		if v.before == nil && img.repo.Name() == wanted.repo.Name() {
			v.before, v.whole = layers, true
		}
		for _, l := range layers {
			if !seen[l.toc] {
				seen[l.toc] = true
				v.objects = append(v.objects, l.objects())
				p.tables[prefixOf(l.toc)] = true
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return v, p.eachOf(ctx, p.req.GetWarm(), func(img *image, layers []*layer) {
		if v.before == nil && img.repo.Name() == wanted.repo.Name() {
			v.before = layers
		}
		eachHot(layers, func(i int, c uint32) { v.warm[layers[i].piece(c)] = struct{}{} })
		for _, l := range layers {
			p.tables[prefixOf(l.toc)] = true
		}
	})
}

// eachOf opens images of an inventory and calls do with the lazy layers of each.
func (p *pull) eachOf(ctx context.Context, refs []string, do func(img *image, layers []*layer)) error {
	for _, ref := range refs {
		if _, err := name.NewDigest(ref, name.StrictValidation); err != nil {
			return refuse(wire.Reason_REASON_REQUEST, "%q in the inventory is no image by digest", ref)
		}
		img, err := p.ss.s.image(ctx, ref, "")
		if r, ok := errors.AsType[*link.Refusal](err); ok && !r.Temporary() {
			p.ss.log.InfoContext(ctx, "an image of an inventory is not to be found", slog.String("image", ref), slog.Any("error", err))
			continue
		}
		if err != nil {
			return err
		}
		var layers []*layer
		for i, desc := range img.layers {
			if _, ok := desc.Annotations[annotation.TOCDigest]; !ok && !p.ss.s.outlined(desc.Digest) {
				// To read it for this would hold up the image that is wanted, for
				// longer than it saves: what a node has it doesn't demand.
				continue
			}
			l, err := p.open(ctx, img, i)
			if err != nil {
				return err
			}
			if l != nil {
				layers = append(layers, l)
			}
		}
		do(img, layers)
	}
	return nil
}

func prefixOf(d digest.Digest) string {
	b, err := hex.DecodeString(d.Encoded()[:16])
	if err != nil {
		return ""
	}
	return string(b)
}

// open opens a layer of an image; nil if it can't be served in pieces. One that was
// never converted is, for a node that takes the proxy's word.
func (p *pull) open(ctx context.Context, img *image, i int) (*layer, error) {
	desc := img.layers[i]
	if _, ok := desc.Annotations[annotation.TOCDigest]; ok {
		return p.ss.s.layer(ctx, img.repo, desc)
	}
	if !p.req.GetOutlines() || i >= len(img.configOf.RootFS.DiffIDs) {
		return nil, nil //nolint:nilnil // it crosses whole
	}
	l, err := p.ss.s.unconverted(ctx, img.repo, desc, img.configOf.RootFS.DiffIDs[i])
	if r, ok := errors.AsType[*link.Refusal](err); ok && !r.Temporary() {
		p.ss.log.InfoContext(ctx, "a layer is not served in pieces", slog.String("image", img.reference), slog.Any("error", err))
		return nil, nil //nolint:nilnil // as above
	}
	return l, err
}

// outlines returns the layers for which the proxy vouches.
func (p *pull) outlines() (all []uint32) {
	for i, l := range p.layers {
		if l != nil && l.outline != nil {
			all = append(all, uint32(i)) //nolint:gosec // below maxLayers
		}
	}
	return all
}

// lists notes which layers are being opened, for Status.
func (p *pull) lists(layers []ocispec.Descriptor) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.opening = layers
}

// doing says what the proxy is at.
func (p *pull) doing() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := []string{"the proxy is reading " + p.req.GetReference()}
	for _, desc := range p.opening {
		if at, ok := p.ss.s.indexed.Load(desc.Digest); ok {
			if at, ok := at.(*progress); ok {
				text = append(text, "layer "+desc.Digest.Encoded()[:12]+", which was not converted, for the first time: "+at.String())
			}
		}
	}
	return strings.Join(text, "; ")
}
