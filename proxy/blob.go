package proxy

import (
	"context"
	"errors"
	"io"
	"log/slog"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/internal/link/wire"
)

// maxBlobs is how many blobs a session is sent at a time. A guess; a node asks for
// one for each layer that is not lazy.
const maxBlobs = 32

// blob sends a part of a blob as the registry has it: a layer that is not lazy must
// cross whole, and the node may reach no registry.
func (ss *session) blob(ctx context.Context, req *wire.Blob) {
	p := newPull(ss, &wire.Pull{Id: req.GetId(), Reference: req.GetReference()})
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if _, ok := ss.pulls[req.GetId()]; ok {
		return
	}
	if ss.blobs >= maxBlobs {
		ss.work.Go(func() {
			_ = p.refuse(ctx, refuse(wire.Reason_REASON_LIMIT, "%d blobs at a time are enough", maxBlobs)) // the session ends anyway
		})
		return
	}
	ss.pulls[req.GetId()] = p
	ss.blobs++
	ctx, p.stop = context.WithCancel(ctx)
	p.owes.Add(1)
	ss.work.Go(func() {
		defer ss.blobEnded(req.GetId())
		err := p.sendBlob(ctx, req)
		if err != nil && ctx.Err() == nil && !errors.Is(err, link.ErrEnded) {
			ss.log.WarnContext(ctx, "a blob is not served", slog.String("blob", req.GetReference()), slog.Any("error", err))
			_ = p.refuse(ctx, err) // the session ends anyway
		}
	})
	ss.work.Go(func() { p.reassure(ctx) })
}

func (ss *session) blobEnded(id uint32) {
	ss.cancel(id)
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.blobs--
}

func (p *pull) sendBlob(ctx context.Context, req *wire.Blob) error {
	ref, err := name.NewDigest(req.GetReference(), name.StrictValidation)
	if err != nil {
		return refuse(wire.Reason_REASON_REQUEST, "%q is no blob by digest", req.GetReference())
	}
	lane := link.Lane(req.GetLane()) //nolint:gosec // checked when it came
	var body io.ReadCloser
	if n := req.GetLength(); n >= 0 {
		l := &layer{s: p.ss.s, repo: ref.Context(), desc: ocispec.Descriptor{Digest: digest.Digest(ref.DigestStr()), Size: req.GetOffset() + n}}
		body = io.NopCloser(&blobReader{ctx: ctx, l: l, off: req.GetOffset(), end: req.GetOffset() + n})
	} else if body, err = p.ss.s.upstream.blob(ctx, ref.Context(), digest.Digest(ref.DigestStr()), req.GetOffset(), -1); err != nil {
		return err
	}
	err = p.copyBlob(ctx, lane, body)
	if closeErr := body.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return p.put(ctx, lane, &wire.Head{Kind: &wire.Head_Done{Done: &wire.Done{}}}, nil)
}

func (p *pull) copyBlob(ctx context.Context, lane link.Lane, body io.Reader) error {
	for {
		part := make([]byte, link.PartSize)
		n, err := io.ReadFull(body, part)
		if n > 0 {
			h := &wire.Head{Length: uint64(n), Kind: &wire.Head_Part{Part: &wire.Part{}}} //nolint:gosec // not negative
			if err := p.put(ctx, lane, h, part[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
