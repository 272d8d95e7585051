// Package convert turns an OCI image into the same image with eStargz layers,
// so that a node can start it before it is all there.
//
// Run reads a manifest or index from a location.Source, converts each layer
// once, and writes layers, configs, manifests and last the name to a
// location.Destination. What package layer does with one layer is written
// there; this package knows images:
//
//   - Docker's media types become OCI's, because only OCI descriptors carry
//     the annotations that make a layer lazy. In the config the diff IDs
//     change; history, unknown fields and the order of all of them stay.
//     Annotations of manifests and of the index stay.
//
//   - In an index, what is not a Linux image passes through unchanged: images
//     for other systems, and attestations. An attestation (provenance, SBOM)
//     goes on naming the digest of the image that was built, which is what it
//     attests; tools that look for one of the converted image's digest find
//     none. Signatures are of digests as well: sign the result.
//
//   - A layer that this package has converted with the same options passes
//     through unchanged, so converting twice changes nothing.
//
//   - What a start reads (Options.Traces, Options.TraceFrom) is an annotation of
//     a layer's descriptor. It is that of this conversion's traces and of no
//     earlier one, whether the layer is built or not. The layer's bytes don't
//     depend on it unless Options.Prioritize says so.
//
//   - A layer whose conversion is on record, or that the destination's image
//     holds already, is not built again, and not sent if it is there. The
//     record is a small file for each layer (see records); what the
//     destination says of its own layers is believed, since whoever can write
//     there can replace the image anyway. Options.Rebuild believes neither.
//
//   - Beside each converted image an artifact is published, to which annotations
//     of its manifest commit: one table of contents for all layers, and what a
//     start reads in one blob. See package artifact, and Options.WithoutArtifact.
//
// Every byte that is read is checked against the digest that the manifest
// gives, and the unpacked layer against the config's diff ID.
//
// Memory doesn't grow with the image: a layer is unpacked to a scratch file
// and converted to another, both in Options.WorkDir and both without a name,
// so that no end of the process leaves anything behind. They take the layer's
// unpacked and packed size for each of Options.Jobs. Until the artifact is made, of
// every layer the tree and what a start reads stay in a third.
package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/airstream-io/airstream/convert/layer"
	"github.com/airstream-io/airstream/convert/location"
	"github.com/airstream-io/airstream/internal/trace"
)

// Errors that a caller tells apart, besides those of location and layer.
var (
	// ErrVerify says that bytes are not what their digest or size promises.
	ErrVerify = errors.New("verification failed")
	// ErrUnsupported says that an image has something that can't be converted.
	ErrUnsupported = errors.New("cannot be converted")
	// ErrIncomplete says that the source has an image and lacks part of it.
	ErrIncomplete = errors.New("the image is incomplete")
)

// Options say how to convert. The zero value works.
type Options struct {
	// Layer says how layers are cut.
	Layer layer.Options
	// Platforms selects from an index; empty means all. With exactly one, the
	// result is that image and no index.
	Platforms []v1.Platform
	// WorkDir holds scratch files; "" means os.TempDir.
	WorkDir string
	// Records is the directory of the records of earlier conversions; "" means
	// none are kept.
	Records string
	// Jobs is how many layers are worked on at once; 0 means 3. Compression
	// uses all CPUs whatever this is.
	Jobs int
	// Traces say what starts of the image, or of another version of it, read.
	// Layers carry what that means for them as an annotation. Several are
	// merged; see trace.Plans.
	Traces []*trace.Trace
	// TraceFrom is an image that was converted with a trace, an earlier version
	// of this one: its plans are one more trace, for each platform its own, or
	// that of the first image with plans. May be nil.
	TraceFrom Source
	// Prioritize puts the files that traces name at the beginning of their
	// layers. The layers' bytes depend on the traces then, and are not shared
	// with conversions that have other ones.
	Prioritize bool
	// AtHand is an image whose layers may be taken instead of built anew: what
	// another Run with the same Layer has made of the same source. May be nil.
	AtHand Source
	// Rebuild builds every layer, whatever is known of it.
	Rebuild bool
	// WithoutArtifact makes no artifact; see package artifact. Nodes fetch the
	// table of each layer then.
	WithoutArtifact bool
	// Progress is told how far the layers are; nil means nobody is.
	Progress Progress
	// Log gets what a user may want to know of and no caller needs to act on;
	// nil means nobody does.
	Log *slog.Logger
}

// Source is where an image comes from; location has those there are.
type Source interface {
	Root(ctx context.Context) (v1.Descriptor, []byte, error)
	Manifest(ctx context.Context, d v1.Descriptor) ([]byte, error)
	Blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
}

// Destination is where it goes to; location has those there are.
type Destination interface {
	Check(ctx context.Context) error
	HasBlob(ctx context.Context, d v1.Descriptor) (bool, error)
	PutBlob(ctx context.Context, d v1.Descriptor, open func() (io.ReadCloser, error)) error
	PutManifest(ctx context.Context, d v1.Descriptor, raw []byte) error
	PutReferrer(ctx context.Context, subject, d v1.Descriptor, raw []byte) error
	Commit(ctx context.Context, d v1.Descriptor, raw []byte) error
}

// Progress is told about layers as they are worked on. Its methods are called
// concurrently.
type Progress interface {
	// Layer announces a layer, by the digest of its source and its size in
	// bytes there.
	Layer(digest v1.Hash, size int64) Task
}

// Task is told about one layer. Its methods are not called concurrently.
type Task interface {
	// Phase begins a phase: "fetch", "convert", "send". total is in bytes.
	Phase(name string, total int64)
	// Advance counts bytes of the phase; negative ones where it begins anew.
	Advance(n int64)
	// Done ends the layer. how says what was done: see Layer.How.
	Done(how string)
}

// Result says what became of an image.
type Result struct {
	Old       v1.Hash   `json:"old" yaml:"old"` // what the source named
	New       v1.Hash   `json:"new" yaml:"new"` // what the destination names now
	MediaType string    `json:"mediaType" yaml:"mediaType"`
	Manifests []Mapping `json:"manifests" yaml:"manifests"` // in the order of the index
	// Traces are those of Options, then those that Options.TraceFrom gave.
	Traces []*trace.Trace `json:"-" yaml:"-"`
}

// Mapping says what became of one manifest.
type Mapping struct {
	Platform  string  `json:"platform,omitempty" yaml:"platform,omitempty"`
	Old       v1.Hash `json:"old" yaml:"old"`
	New       v1.Hash `json:"new" yaml:"new"`
	Unchanged bool    `json:"unchanged,omitempty" yaml:"unchanged,omitempty"` // passed through
	Hot       int64   `json:"hot,omitempty" yaml:"hot,omitempty"`             // sum over its layers
	Layers    []Layer `json:"layers,omitempty" yaml:"layers,omitempty"`       // in the order of the image
	// Artifact is what was published beside it, nil if nothing was.
	Artifact *Artifact `json:"artifact,omitempty" yaml:"artifact,omitempty"`
}

// Artifact says what a node fetches before the first start.
type Artifact struct {
	Digest v1.Hash `json:"digest" yaml:"digest"`               // of its manifest
	Root   int64   `json:"root" yaml:"root"`                   // bytes of the TOC that the first start needs
	TOC    int64   `json:"toc" yaml:"toc"`                     // bytes, all of it
	Hot    int64   `json:"hot,omitempty" yaml:"hot,omitempty"` // bytes; 0 if it isn't known what a start reads
}

// Layer says what became of one layer.
type Layer struct {
	Old       v1.Hash `json:"old" yaml:"old"`
	New       v1.Hash `json:"new" yaml:"new"`
	OldSize   int64   `json:"oldSize" yaml:"oldSize"` // bytes of the blob
	NewSize   int64   `json:"newSize" yaml:"newSize"`
	TOCDigest string  `json:"tocDigest,omitempty" yaml:"tocDigest,omitempty"`
	TOCOffset int64   `json:"-" yaml:"-"` // bytes into the blob
	// Hot is how many bytes of the blob a start reads, as far as the traces
	// tell, and HotRuns in how many runs.
	Hot     int64 `json:"hot,omitempty" yaml:"hot,omitempty"`
	HotRuns int   `json:"hotRuns,omitempty" yaml:"hotRuns,omitempty"`
	// How is Built, Known or Kept.
	How string `json:"how" yaml:"how"`
}

// What became of a layer.
const (
	Built = "built" // converted now
	Known = "known" // converted earlier, and still at the destination
	Kept  = "kept"  // as it was in the source
)

// Run converts what src names and gives it to dst. previous is what dst's name
// holds so far, to be read from; nil, or one that has nothing, if that is not
// known. Nothing has a name at dst unless err is nil.
func Run(ctx context.Context, src Source, dst Destination, previous Source, o Options) (*Result, error) {
	r, err := run(ctx, src, dst, previous, o)
	if err != nil {
		return nil, fmt.Errorf("convert: %w", err)
	}
	return r, nil
}

func run(ctx context.Context, src Source, dst Destination, previous Source, o Options) (*Result, error) {
	if err := o.Layer.Validate(); err != nil {
		return nil, err
	}
	if o.Jobs <= 0 {
		o.Jobs = 3
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Progress == nil {
		o.Progress = silent{}
	}
	p, err := readPlan(ctx, src, o.Platforms)
	if err != nil {
		return nil, err
	}
	if err := dst.Check(ctx); err != nil {
		return nil, err
	}
	w := &works{
		src: src, dst: dst, o: o,
		pool:    layer.NewPool(0),
		scratch: layer.ScratchIn(o.WorkDir),
		records: records{dir: o.Records}, previous: previous,
	}
	if previous != nil && !o.Rebuild {
		w.earlier = readEarlier(ctx, previous, o)
	}
	if o.AtHand != nil {
		w.atHand = readEarlier(ctx, o.AtHand, o)
	}
	defer w.closeSpools()
	if err := w.collectTraces(ctx, p); err != nil {
		return nil, err
	}
	if err := w.layers(ctx, p); err != nil {
		return nil, err
	}
	return w.publish(ctx, p)
}

type silent struct{}

func (silent) Layer(v1.Hash, int64) Task { return silent{} }
func (silent) Phase(string, int64)       {}
func (silent) Advance(int64)             {}
func (silent) Done(string)               {}

var (
	_ Source      = location.Source(nil)
	_ Destination = location.Destination(nil)
)
