// Package cancelable makes readers that a context ends.
package cancelable

import (
	"context"
	"io"
)

type reader struct {
	ctx context.Context //nolint:containedctx // an io.Reader has no other way to be told
	r   io.Reader
}

// Reader returns a reader of r whose next Read fails with ctx's error once ctx
// has ended. A Read under way is not interrupted.
func Reader(ctx context.Context, r io.Reader) io.Reader { return &reader{ctx, r} }

func (c *reader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
