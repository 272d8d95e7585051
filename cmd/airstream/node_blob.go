package main

import (
	"context"
	"errors"
	"io"
	"net/http"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/link"
)

// laneOf is the lane for a class.
func laneOf(class fetcher.Class) link.Lane {
	switch class {
	case fetcher.Demand:
		return link.Demand
	case fetcher.Hot:
		return link.Hot
	default: // what is read ahead, too: it is a guess, and the hot set is none
		return link.Rest
	}
}

// Blob implements registry.Shore: blobs come from the proxy while it is asked.
func (s *onShore) Blob(ctx context.Context, class uplink.Class, src catalog.Source, d digest.Digest, off, n int64) (io.ReadCloser, bool, error) {
	what := "blob " + d.String()
	for {
		given, turned := s.givenUp()
		if given {
			return nil, false, nil
		}
		state, changed := s.session.State()
		if !state.Up {
			select {
			case <-changed:
			case <-turned:
			case <-ctx.Done():
				return nil, true, &registry.Error{Source: src, What: what, Err: ctx.Err()}
			}
			continue
		}
		b, err := s.session.Blob(laneOf(class), src.Host+"/"+src.Repo+"@"+d.String(), off, n)
		if err == nil {
			if err = b.Ready(ctx); err == nil {
				stream := s.beginStream(class)
				stream.Answered()
				return &shoreBody{s: s, ctx: ctx, b: b, stream: stream, src: src, what: what, left: n}, true, nil
			}
			err = errors.Join(err, b.Close())
		}
		refused, ok := errors.AsType[*link.Refusal](err)
		switch {
		case ok && !refused.Temporary() && s.cfg.Registries:
			return nil, false, nil // the node's own credentials may do
		case ok && !refused.Temporary():
			return nil, true, &registry.Error{Source: src, What: what, Status: http.StatusNotFound, Detail: err.Error()}
		}
		return nil, true, &registry.Error{Source: src, What: what, Err: err}
	}
}

// shoreBody is a blob that comes from the proxy, as one that comes from a registry:
// caps and budgets hold, and a short one is an error.
type shoreBody struct {
	s      *onShore
	ctx    context.Context //nolint:containedctx // of the request, as in http.Request
	b      *link.Blob
	stream *uplink.Stream
	src    catalog.Source
	what   string
	left   int64 // < 0: unknown
}

// Read implements io.Reader.
func (b *shoreBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	err := b.stream.Wait(b.ctx)
	n := 0
	if err == nil {
		n, err = b.b.ReadContext(b.ctx, p[:b.stream.Piece(len(p))])
	}
	if n > 0 {
		b.stream.Arrived(n)
		b.s.counted(n)
	}
	if b.left > 0 {
		b.left = max(0, b.left-int64(n))
	}
	if errors.Is(err, io.EOF) && b.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = &registry.Error{Source: b.src, What: b.what, Err: err}
	}
	return n, err
}

// SetClass changes how urgent it is to read on; the proxy is not told.
func (b *shoreBody) SetClass(c uplink.Class) { b.stream.SetClass(c) }

// Close implements io.Closer.
func (b *shoreBody) Close() error {
	b.stream.End()
	return b.b.Close()
}
