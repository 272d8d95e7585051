package convert

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/airstream-io/airstream/convert/internal/rawjson"
	"github.com/airstream-io/airstream/internal/artifact"
	"github.com/airstream-io/airstream/internal/trace"
)

// artifactManifest is the manifest of an image's artifact, as OCI 1.1 has it.
type artifactManifest struct {
	SchemaVersion int64           `json:"schemaVersion"`
	MediaType     types.MediaType `json:"mediaType"`
	ArtifactType  string          `json:"artifactType"`
	Config        v1.Descriptor   `json:"config"`
	Layers        []v1.Descriptor `json:"layers"`
	Subject       v1.Descriptor   `json:"subject"`
}

// blobs brings the blobs of an image's artifact to the destination. The result is
// zero if the image gets none.
func (w *works) blobs(ctx context.Context, img *image, plans []trace.Plan) (artifact.Ref, error) {
	if w.o.WithoutArtifact || len(img.layers) == 0 {
		return artifact.Ref{}, nil
	}
	for _, l := range img.layers {
		if w.done[w.o.key(l)].spool == nil {
			return artifact.Ref{}, nil // look has said why
		}
	}
	name := w.artifactName(img, plans)
	if ref, ok := w.records.getArtifact(name); ok && !w.o.Rebuild {
		if there, err := w.haveBlobs(ctx, ref); err != nil || there {
			return ref, err
		}
	}
	ref, err := w.buildBlobs(ctx, img, plans)
	if errors.Is(err, artifact.ErrTooLarge) {
		w.o.Log.WarnContext(ctx, "the image is too large for an artifact and does without", slog.Any("error", err))
		return artifact.Ref{}, nil
	}
	if err != nil {
		return artifact.Ref{}, err
	}
	if err := w.records.putArtifact(name, ref); err != nil {
		w.o.Log.WarnContext(ctx, "artifact not recorded, the next conversion will make it again", slog.Any("error", err))
	}
	return ref, nil
}

// artifactName names all that the bytes of an artifact depend on.
func (w *works) artifactName(img *image, plans []trace.Plan) string {
	var name strings.Builder
	fmt.Fprintf(&name, "artifact %d", artifact.Format)
	for i, l := range img.layers {
		fmt.Fprintf(&name, " %s %s", w.done[w.o.key(l)].Digest, plans[i])
	}
	return name.String()
}

func (w *works) haveBlobs(ctx context.Context, ref artifact.Ref) (bool, error) {
	for _, b := range []artifact.Blob{ref.TOC, ref.Hot} {
		if b == (artifact.Blob{}) {
			continue
		}
		d, err := blobDescriptor(artifact.TOCMediaType, b)
		if err != nil {
			return false, err
		}
		if ok, err := w.dst.HasBlob(ctx, d); err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

func blobDescriptor(mediaType types.MediaType, b artifact.Blob) (v1.Descriptor, error) {
	h, err := v1.NewHash(b.Digest)
	return v1.Descriptor{MediaType: mediaType, Digest: h, Size: b.Size}, err
}

func (w *works) buildBlobs(ctx context.Context, img *image, plans []trace.Plan) (ref artifact.Ref, err error) {
	spools := make([]*spool, len(img.layers))
	var order artifact.Order
	for i, l := range img.layers {
		spools[i] = w.done[w.o.key(l)].spool
		if len(plans[i]) == 0 {
			continue
		}
		tree, err := spools[i].load()
		if err != nil {
			return ref, err
		}
		order.Add(i, tree, plans[i])
	}
	wanted := order.Wanted()
	var frames []uint32
	if len(wanted) > 0 {
		if ref.Hot, frames, err = w.putHot(ctx, spools, wanted); err != nil {
			return ref, err
		}
	}
	e := artifact.NewEncoder(wanted, frames)
	for _, s := range spools { // one tree at a time: they may be large
		tree, err := s.load()
		if err != nil {
			return ref, err
		}
		if err := e.Add(tree); err != nil {
			return ref, err
		}
	}
	blob, root, err := e.Blob()
	if err != nil {
		return ref, err
	}
	if _, err := artifact.ParseRoot(blob[:root]); err != nil {
		return ref, err // what no node could read isn't published
	}
	ref.TOC, ref.Root = artifact.BlobOf(blob), artifact.BlobOf(blob[:root])
	return ref, w.putBytes(ctx, artifact.TOCMediaType, blob)
}

// putHot makes the hot blob in a scratch file and sends it.
func (w *works) putHot(ctx context.Context, spools []*spool, wanted []artifact.Wanted) (b artifact.Blob, frames []uint32, err error) {
	f, err := w.scratch()
	if err != nil {
		return b, nil, err
	}
	defer f.Close() //nolint:errcheck // a scratch file
	sum := sha256.New()
	frames, err = artifact.WriteHot(ctx, io.MultiWriter(f, sum), wanted, func(_ context.Context, k artifact.Wanted) ([]byte, error) {
		return spools[k.Layer].content(k)
	})
	if err != nil {
		return b, nil, err
	}
	for _, n := range frames {
		b.Size += int64(n)
	}
	b.Digest = "sha256:" + hex.EncodeToString(sum.Sum(nil))
	d, err := blobDescriptor(artifact.HotMediaType, b)
	if err != nil {
		return b, nil, err
	}
	return b, frames, w.dst.PutBlob(ctx, d, func() (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(f, 0, b.Size)), nil
	})
}

func (w *works) putBytes(ctx context.Context, mediaType types.MediaType, raw []byte) error {
	d, err := describe(mediaType, raw)
	if err != nil {
		return err
	}
	return w.dst.PutBlob(ctx, d, func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(raw)), nil
	})
}

// refer publishes the artifact of an image whose manifest is d, and says so. The
// blobs are there; the manifest ties them to the image for registries, which
// delete what nothing refers to.
func (w *works) refer(ctx context.Context, d v1.Descriptor, raw []byte, ref artifact.Ref) (*Artifact, error) {
	const empty = "{}"
	if err := w.putBytes(ctx, types.OCIEmptyJSON, []byte(empty)); err != nil {
		return nil, err
	}
	config, err := describe(types.OCIEmptyJSON, []byte(empty))
	if err != nil {
		return nil, err
	}
	m := artifactManifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: artifact.MediaType, Config: config, Subject: d}
	table, err := blobDescriptor(artifact.TOCMediaType, ref.TOC)
	if err != nil {
		return nil, err
	}
	m.Layers = append(m.Layers, table)
	if ref.Hot != (artifact.Blob{}) {
		hot, err := blobDescriptor(artifact.HotMediaType, ref.Hot)
		if err != nil {
			return nil, err
		}
		m.Layers = append(m.Layers, hot)
	}
	text, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	md, err := describe(types.OCIManifestSchema1, text)
	if err != nil {
		return nil, err
	}
	md.ArtifactType = artifact.MediaType
	// Some registries take no manifest whose subject they don't have.
	if err := w.dst.PutManifest(ctx, d, raw); err != nil {
		return nil, err
	}
	if err := w.dst.PutReferrer(ctx, d, md, text); err != nil {
		return nil, err
	}
	return &Artifact{Digest: md.Digest, Root: ref.Root.Size, TOC: ref.TOC.Size, Hot: ref.Hot.Size}, nil
}

// annotate lets a manifest name the image's artifact, and none that an earlier
// conversion made. changed says that it did not before.
func annotate(manifest *rawjson.Object, ref artifact.Ref) (changed bool, err error) {
	old := map[string]string{}
	if manifest.Has("annotations") {
		if err := manifest.Get("annotations", &old); err != nil {
			return false, err
		}
	}
	a := maps.Clone(old)
	if a == nil {
		a = map[string]string{}
	}
	for _, name := range artifact.Names() {
		delete(a, name)
	}
	if ref != (artifact.Ref{}) {
		maps.Copy(a, ref.Annotations())
	}
	switch {
	case maps.Equal(a, old):
		return false, nil
	case len(a) == 0:
		manifest.Delete("annotations")
		return true, nil
	}
	return true, manifest.Set("annotations", a)
}

// getArtifact returns the artifact that was made for a name, if it is on record.
func (r records) getArtifact(name string) (ref artifact.Ref, ok bool) {
	var annotations map[string]string
	if !r.read(r.file(name), &annotations) {
		return artifact.Ref{}, false
	}
	return artifact.ParseRef(annotations)
}

func (r records) putArtifact(name string, ref artifact.Ref) error {
	return r.write(r.file(name), ref.Annotations())
}
