// Package annotation names the annotations that a converted image carries: on
// its layers' descriptors in the manifest, and on the manifest itself.
//
// A manifest is named by its digest, so whoever has verified a manifest may
// believe what its author wrote here; it is still only what the author says.
// The converter writes all of them on every layer it makes.
package annotation

import "github.com/opencontainers/go-digest"

// TableOf returns what the table of a layer goes by: the digest that its TOCDigest
// says. A layer that was never converted says none; its table is somebody's word, not
// the image's, and goes by a name that follows from the blob and is no JSON's digest.
// So no image can have its own layer's table be taken for that of another.
func TableOf(blob digest.Digest, annotations map[string]string) digest.Digest {
	if d, ok := annotations[TOCDigest]; ok {
		return digest.Digest(d)
	}
	return digest.FromString("airstream: outline of " + blob.String())
}

const (
	// TOCDigest is the digest of the layer's table of contents: SHA-256 of the
	// uncompressed JSON. Its presence is what makes a layer lazy, here and in
	// stargz-snapshotter, which gave it its name.
	TOCDigest = "containerd.io/snapshot/stargz/toc.digest"

	// UncompressedSize is the size of the layer's tar in bytes, decimal, under
	// the name that containers/storage reads.
	UncompressedSize = "io.containers.estargz.uncompressed-size"

	// TOCOffset is where the gzip member with the table of contents begins in
	// the blob, in bytes, decimal. It saves a lazy reader the round trip for
	// the footer and is only a hint: the table is verified against TOCDigest.
	TOCOffset = "io.airstream.layer.toc-offset"

	// ChunkSize is where files were cut, in bytes, decimal.
	ChunkSize = "io.airstream.layer.chunk-size"

	// GroupSize is how many bytes of small files share a gzip member, decimal;
	// absent where every chunk has a member to itself.
	GroupSize = "io.airstream.layer.group-size"

	// Prioritized is the digest of the list of files that were to come first in
	// the blob; absent where none did.
	Prioritized = "io.airstream.layer.prioritized"

	// Format is the version of the converter's layout, layer.Format. Equal
	// Source, ChunkSize, GroupSize, Prioritized and Format mean equal bytes.
	Format = "io.airstream.layer.format"

	// Source is the digest of the layer blob that this one was made from.
	Source = "io.airstream.layer.source"

	// Hot is the plan of what a start reads of the layer, as package trace
	// writes it: what to fetch before anybody asks.
	Hot = "io.airstream.layer.hot"
)

// Annotations of the manifest. They commit to the blobs of package artifact, so
// that whoever has verified the manifest can ask for them by digest.
const (
	// ArtifactTOC is the digest of the TOC blob, ArtifactTOCSize its size in
	// bytes, decimal.
	ArtifactTOC     = "io.airstream.artifact.toc"
	ArtifactTOCSize = "io.airstream.artifact.toc-size"

	// ArtifactRoot is the digest of the first ArtifactRootSize bytes of it, its
	// root, so that these can be verified without the rest.
	ArtifactRoot     = "io.airstream.artifact.root"
	ArtifactRootSize = "io.airstream.artifact.root-size"

	// ArtifactHot is the digest of the hot blob, ArtifactHotSize its size; both
	// are absent where it isn't known what a start reads.
	ArtifactHot     = "io.airstream.artifact.hot"
	ArtifactHotSize = "io.airstream.artifact.hot-size"

	// ArtifactFormat is the version that wrote them, artifact.Format.
	ArtifactFormat = "io.airstream.artifact.format"
)
