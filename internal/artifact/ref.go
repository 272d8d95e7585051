package artifact

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/airstream-io/airstream/internal/annotation"
)

// Ref is what an image's manifest says of its artifact: enough to ask for the
// blobs and to verify them.
type Ref struct {
	TOC  Blob `json:"toc"`
	Root Blob `json:"root"`         // the first bytes of TOC
	Hot  Blob `json:"hot,omitzero"` // zero if there is no hot set
}

// Blob names content.
type Blob struct {
	Digest string `json:"digest"` // as OCI writes it, with sha256
	Size   int64  `json:"size"`   // bytes
}

// BlobOf names b.
func BlobOf(b []byte) Blob {
	sum := sha256.Sum256(b)
	return Blob{"sha256:" + hex.EncodeToString(sum[:]), int64(len(b))}
}

// Verify returns ErrMismatch, wrapped with the digest, unless raw is the blob.
func (b Blob) Verify(raw []byte) error {
	if BlobOf(raw) != b {
		return fmt.Errorf("artifact: blob %s: %w", b.Digest, ErrMismatch)
	}
	return nil
}

// Annotations returns what the manifest has to say.
func (r Ref) Annotations() map[string]string {
	a := map[string]string{annotation.ArtifactFormat: strconv.Itoa(Format)}
	put := func(digest, size string, b Blob) {
		a[digest], a[size] = b.Digest, strconv.FormatInt(b.Size, 10)
	}
	put(annotation.ArtifactTOC, annotation.ArtifactTOCSize, r.TOC)
	put(annotation.ArtifactRoot, annotation.ArtifactRootSize, r.Root)
	if r.Hot != (Blob{}) {
		put(annotation.ArtifactHot, annotation.ArtifactHotSize, r.Hot)
	}
	return a
}

// Names are the annotations that Annotations may return.
func Names() []string {
	return []string{
		annotation.ArtifactFormat, annotation.ArtifactTOC, annotation.ArtifactTOCSize, annotation.ArtifactRoot,
		annotation.ArtifactRootSize, annotation.ArtifactHot, annotation.ArtifactHotSize,
	}
}

// ParseRef reads the annotations of a manifest. ok is false if they name no
// artifact, none of a version that this one reads, or none that makes sense: the
// image is then used without. That the bytes are of a version that this one reads
// is for ParseRoot to say, for Format also changes where readers need not.
func ParseRef(annotations map[string]string) (r Ref, ok bool) {
	ok = true
	get := func(digest, size string, limit int64) Blob {
		b := Blob{Digest: annotations[digest]}
		sum, sha := strings.CutPrefix(b.Digest, "sha256:")
		raw, err := hex.DecodeString(sum)
		ok = ok && sha && err == nil && len(raw) == sha256.Size && sum == strings.ToLower(sum)
		b.Size, err = strconv.ParseInt(annotations[size], 10, 64)
		ok = ok && err == nil && b.Size > 0 && b.Size <= limit
		return b
	}
	r.TOC = get(annotation.ArtifactTOC, annotation.ArtifactTOCSize, maxTOC)
	r.Root = get(annotation.ArtifactRoot, annotation.ArtifactRootSize, min(MaxRoot, r.TOC.Size))
	if annotations[annotation.ArtifactHot] != "" {
		r.Hot = get(annotation.ArtifactHot, annotation.ArtifactHotSize, maxHotBlob)
	}
	if !ok {
		return Ref{}, false
	}
	return r, true
}

// Limits on blobs, in bytes.
const (
	maxTOC     = MaxRoot + maxChunks*64
	maxHotBlob = 8 << 30
)
