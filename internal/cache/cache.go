// Package cache decides what of the store is kept when there is not room for
// all of it.
//
// It joins what the catalog knows, which images there are and when each was
// used, to what the store holds, objects and blobs. Content that a pinned image
// or a mount uses is never touched; what several images share stays while any
// of those that stay uses it.
package cache

import (
	"context"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/store"
)

// Options say what must stay, and how much must go.
type Options struct {
	// Limit is how many bytes of disk the store may take; 0: what the store's
	// own limit says.
	Limit int64
	// All makes Collect free all that it may, whatever the limit; not pinned
	// and not in use is all that counts then.
	All bool
	// InUse returns the slots of the layers that snapshots use. If it fails,
	// nothing is evicted. nil: none is in use.
	InUse func() (map[uint32]bool, error)
	// Unpacked tells whether containerd has a plain layer's snapshot, so that
	// its blob here is only of use for pulling it again. nil: it has none.
	Unpacked func(chainID digest.Digest) bool
	// Forget makes the fetcher let go of layers before their trees are
	// deleted. nil: there is nothing to let go.
	Forget func(slots ...uint32) error
	DryRun bool // say what would go, and leave it
}

// Freed is what Collect did, or would do.
type Freed struct {
	Bytes   int64           `json:"bytes"` // of disk
	Objects int             `json:"objects"`
	Blobs   int             `json:"blobs"` // and partial ones
	Trees   int             `json:"trees"`
	Images  []digest.Digest `json:"images"` // manifests that lost content, oldest use first
}

// Collect frees disk until the store is within its limit: first what nobody
// knows, then, the image first that was not used for longest, layer blobs,
// content, hot sets, and tables at last.
func Collect(ctx context.Context, s *store.Store, c *catalog.Catalog, opts Options) (Freed, error) {
	return collect(ctx, s, c, opts)
}

// Verify is store.Verify with what the catalog knows: which layers and blobs
// somebody may ask for.
func Verify(ctx context.Context, s *store.Store, c *catalog.Catalog, opts store.VerifyOptions, report func(store.Finding)) error {
	return verify(ctx, s, c, opts, report)
}
