package convert

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/airstream-io/airstream/convert/internal/rawjson"
	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/artifact"
	"github.com/airstream-io/airstream/internal/trace"
)

// publish writes configs and manifests, the children of an index before the
// index, and gives the root its name last.
func (w *works) publish(ctx context.Context, p *plan) (*Result, error) {
	r := &Result{}
	d, raw, err := w.write(ctx, p, r)
	if err != nil {
		return nil, err
	}
	if err := w.dst.Commit(ctx, d, raw); err != nil {
		return nil, err
	}
	if len(w.traces) > 0 && !slices.ContainsFunc(r.Manifests, func(m Mapping) bool { return m.Hot > 0 }) {
		w.o.Log.WarnContext(ctx, "the trace has no effect: the image has none of the files that it says were read", slog.String("traced", w.traces[0].Image))
	}
	r.Old, r.New, r.MediaType, r.Traces = p.d.Digest, d.Digest, string(d.MediaType), w.traces
	return r, nil
}

// write writes all that a manifest or index refers to, and returns what it has
// become.
func (w *works) write(ctx context.Context, p *plan, r *Result) (v1.Descriptor, []byte, error) {
	switch {
	case p.index != nil:
		return w.writeIndex(ctx, p, r)
	case p.image != nil:
		return w.writeImage(ctx, p, r)
	}
	for _, d := range p.blobs {
		if !d.MediaType.IsDistributable() {
			continue // a runtime gets it from its vendor
		}
		if err := w.copyBlob(ctx, w.src, d, w.o.Progress.Layer(d.Digest, d.Size)); err != nil {
			return v1.Descriptor{}, nil, err
		}
	}
	m := Mapping{Old: p.d.Digest, New: p.d.Digest, Unchanged: true}
	if p.d.Platform != nil {
		m.Platform = p.d.Platform.String()
	}
	r.Manifests = append(r.Manifests, m)
	return v1.Descriptor{MediaType: p.d.MediaType, Digest: p.d.Digest, Size: p.d.Size}, p.raw, nil
}

func (w *works) writeImage(ctx context.Context, p *plan, r *Result) (v1.Descriptor, []byte, error) {
	m := Mapping{Platform: p.image.is.String(), Old: p.d.Digest}
	plans := w.plans(p.image)
	for i, l := range p.image.layers {
		c := w.done[w.o.key(l)]
		m.Layers = append(m.Layers, Layer{Old: l.d.Digest, New: c.Digest, OldSize: l.d.Size, NewSize: c.Size, TOCDigest: c.TOCDigest.String(), TOCOffset: c.TOCOffset, Hot: plans[i].Size(), HotRuns: len(plans[i]), How: c.how})
		m.Hot += plans[i].Size()
	}
	config, configD, err := w.config(p.image)
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	err = w.dst.PutBlob(ctx, configD, func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(config)), nil
	})
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	ref, err := w.blobs(ctx, p.image, plans)
	if err != nil {
		return v1.Descriptor{}, nil, fmt.Errorf("artifact of manifest %s: %w", p.d.Digest, err)
	}
	raw, err := w.manifest(p, configD, plans, ref)
	if err != nil {
		return v1.Descriptor{}, nil, fmt.Errorf("manifest %s: %w", p.d.Digest, err)
	}
	d, err := describe(types.OCIManifestSchema1, raw)
	if err == nil && ref != (artifact.Ref{}) {
		m.Artifact, err = w.refer(ctx, d, raw, ref)
	}
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	m.New = d.Digest
	m.Unchanged = m.New == m.Old
	r.Manifests = append(r.Manifests, m)
	return d, raw, nil
}

// config returns the config with the diff IDs of the converted layers, and
// the very bytes of the source if these are the same.
func (w *works) config(img *image) ([]byte, v1.Descriptor, error) {
	ids := make([]v1.Hash, len(img.layers))
	same := true
	for i, l := range img.layers {
		ids[i] = w.done[w.o.key(l)].DiffID
		same = same && ids[i] == l.diffID
	}
	if same {
		d, err := describe(types.OCIConfigJSON, img.rawConfig)
		return img.rawConfig, d, err
	}
	rootfs, err := img.config.Object("rootfs")
	if err == nil {
		err = rootfs.Set("diff_ids", ids)
	}
	if err == nil {
		err = img.config.Set("rootfs", rootfs)
	}
	if err != nil {
		return nil, v1.Descriptor{}, fmt.Errorf("config %s: %w", img.configD.Digest, err)
	}
	raw, err := img.config.Bytes()
	if err != nil {
		return nil, v1.Descriptor{}, fmt.Errorf("config %s: %w", img.configD.Digest, err)
	}
	d, err := describe(types.OCIConfigJSON, raw)
	return raw, d, err
}

// manifest returns the manifest with the converted layers and their plans, and
// the image's artifact.
func (w *works) manifest(p *plan, configD v1.Descriptor, plans []trace.Plan, ref artifact.Ref) ([]byte, error) {
	img := p.image
	same := p.d.MediaType == types.OCIManifestSchema1 && img.configD.MediaType == configD.MediaType && img.configD.Digest == configD.Digest
	for i, l := range img.layers {
		k := w.o.key(l)
		c := w.done[k]
		a := maps.Clone(l.d.Annotations)
		if a == nil {
			a = map[string]string{}
		}
		// What an earlier conversion wrote and this one doesn't must not stay.
		delete(a, annotation.Hot)
		if len(plans[i]) > 0 {
			a[annotation.Hot] = plans[i].String()
		}
		if c.how == Kept {
			if maps.Equal(a, l.d.Annotations) {
				continue
			}
		} else {
			if err := relink(img.rawLayers[i], c.descriptor()); err != nil {
				return nil, err
			}
			delete(a, annotation.GroupSize)
			delete(a, annotation.Prioritized)
			maps.Copy(a, k.annotations(c.converted))
		}
		same = false
		if err := img.rawLayers[i].Set("annotations", a); err != nil {
			return nil, err
		}
	}
	changed, err := annotate(img.manifest, ref)
	if err != nil {
		return nil, err
	}
	if same && !changed {
		return p.raw, nil
	}
	config, err := img.manifest.Object("config")
	if err != nil {
		return nil, err
	}
	if err := relink(config, configD); err != nil {
		return nil, err
	}
	for _, m := range []struct {
		name  string
		value any
	}{{"mediaType", types.OCIManifestSchema1}, {"config", config}, {"layers", img.rawLayers}} {
		if err := img.manifest.Set(m.name, m.value); err != nil {
			return nil, err
		}
	}
	return img.manifest.Bytes()
}

// relink points a descriptor at other content. Inlined data and foreign URLs
// would still be those of the old.
func relink(o *rawjson.Object, d v1.Descriptor) error {
	if err := o.Set("mediaType", d.MediaType); err != nil {
		return err
	}
	if err := o.Set("digest", d.Digest); err != nil {
		return err
	}
	o.Delete("data")
	o.Delete("urls")
	return o.Set("size", d.Size)
}

func (w *works) writeIndex(ctx context.Context, p *plan, r *Result) (v1.Descriptor, []byte, error) {
	all, err := p.index.Objects("manifests")
	if err != nil {
		return v1.Descriptor{}, nil, fmt.Errorf("index %s: %w", p.d.Digest, err)
	}
	byDigest := map[v1.Hash][]*rawjson.Object{}
	for _, o := range all {
		var h v1.Hash
		if err := o.Get("digest", &h); err != nil {
			return v1.Descriptor{}, nil, fmt.Errorf("index %s: %w", p.d.Digest, err)
		}
		byDigest[h] = append(byDigest[h], o)
	}
	var list []*rawjson.Object
	same := p.d.MediaType == types.OCIImageIndex && len(all) == len(p.children)
	for _, c := range p.children {
		d, raw, err := w.write(ctx, c, r)
		if err != nil {
			return v1.Descriptor{}, nil, err
		}
		if err := w.dst.PutManifest(ctx, d, raw); err != nil {
			return v1.Descriptor{}, nil, err
		}
		old := byDigest[c.d.Digest]
		byDigest[c.d.Digest] = old[1:]
		if d.Digest != c.d.Digest {
			same = false
			if err := relink(old[0], d); err != nil {
				return v1.Descriptor{}, nil, err
			}
		}
		list = append(list, old[0])
	}
	if same {
		return v1.Descriptor{MediaType: p.d.MediaType, Digest: p.d.Digest, Size: p.d.Size}, p.raw, nil
	}
	if err := p.index.Set("mediaType", types.OCIImageIndex); err != nil {
		return v1.Descriptor{}, nil, err
	}
	if err := p.index.Set("manifests", list); err != nil {
		return v1.Descriptor{}, nil, err
	}
	raw, err := p.index.Bytes()
	if err != nil {
		return v1.Descriptor{}, nil, fmt.Errorf("index %s: %w", p.d.Digest, err)
	}
	d, err := describe(types.OCIImageIndex, raw)
	return d, raw, err
}

func describe(mt types.MediaType, raw []byte) (v1.Descriptor, error) {
	h, size, err := v1.SHA256(bytes.NewReader(raw))
	return v1.Descriptor{MediaType: mt, Digest: h, Size: size}, err
}
