package proxy

import (
	"context"

	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/internal/link/wire"
)

// bases are images of a node's inventory that chunks may build on.
type bases struct {
	images []*image
}

func (b *bases) add(img *image) { b.images = append(b.images, img) }

// compress returns a chunk as it crosses.
func (p *pull) compress(_ context.Context, _ *layer, _ uint32, content []byte, _ *wire.Chunk) (wire.Codec, []byte) {
	return link.Encode(content)
}
