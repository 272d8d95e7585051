package link

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/airstream-io/airstream/internal/link/wire"
)

// PartSize is how many bytes of a blob are a record, at most.
const PartSize = 64 << 10

// blobRoom is how many bytes of a blob wait for their reader before nothing more
// is taken from the link.
const blobRoom = 1 << 20

// ErrDown says that there is no session, or none any more. The next one may have
// what is missing.
var ErrDown = errors.New("link: there is no session with the proxy")

// Blob is a part of a blob that comes from the proxy, in its order. Nothing of it
// is verified here: only the whole has a digest. It has one reader, and ends with
// its session.
type Blob struct {
	s   *Session
	id  uint32
	req *wire.Blob

	mu      sync.Mutex
	parts   [][]byte      // guarded by mu; that came and were not read
	size    int           // guarded by mu; bytes of parts
	err     error         // guarded by mu; behind parts
	changed chan struct{} // guarded by mu; closed and replaced when what is above changes
}

// Blob asks for n bytes, or all if n < 0, of the blob that reference names,
// "registry.example/repo@sha256:…", from byte off on. The error is ErrDown, or comes
// with the first Read. The caller closes it.
func (s *Session) Blob(lane Lane, reference string, off, n int64) (*Blob, error) {
	s.mu.Lock()
	if s.watch == nil {
		s.mu.Unlock()
		return nil, ErrDown
	}
	s.next++
	b := &Blob{s: s, id: s.next, changed: make(chan struct{})}
	b.req = &wire.Blob{Id: b.id, Reference: reference, Offset: off, Length: n, Lane: uint32(lane)}
	s.blobs[b.id] = b
	s.mu.Unlock()
	s.say(s.counter(), &wire.Up{Kind: &wire.Up_Blob{Blob: b.req}})
	return b, nil
}

// change has everybody look again. b.mu is held.
func (b *Blob) change() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// ReadContext reads what has come, and waits until ctx ends if nothing has.
func (b *Blob) ReadContext(ctx context.Context, p []byte) (int, error) {
	for {
		b.mu.Lock()
		if len(b.parts) > 0 {
			n := copy(p, b.parts[0])
			if b.parts[0] = b.parts[0][n:]; len(b.parts[0]) == 0 {
				b.parts = b.parts[1:]
			}
			b.size -= n
			b.change()
			b.mu.Unlock()
			return n, nil
		}
		err, changed := b.err, b.changed
		b.mu.Unlock()
		if err != nil {
			return 0, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// Ready waits until something has come, or nothing will: then it returns why.
func (b *Blob) Ready(ctx context.Context) error {
	for {
		b.mu.Lock()
		some, err, changed := len(b.parts) > 0, b.err, b.changed
		b.mu.Unlock()
		if some || errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close ends it. What is under way is thrown away when it comes.
func (b *Blob) Close() error {
	b.s.mu.Lock()
	_, ok := b.s.blobs[b.id]
	delete(b.s.blobs, b.id)
	b.s.mu.Unlock()
	b.end(io.ErrClosedPipe)
	if ok {
		r := b.s.counter()
		b.s.say(r, &wire.Up{Kind: &wire.Up_Cancel{Cancel: &wire.Cancel{Pull: b.id, Records: r.Load()}}})
	}
	return nil
}

// end says what is behind what came, unless that is known.
func (b *Blob) end(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = err
		b.change()
	}
}

// take takes a record. It waits while the reader is far behind.
func (b *Blob) take(ctx context.Context, r *record) error {
	switch k := r.head.GetKind().(type) {
	case *wire.Head_Part:
		if r.head.GetCodec() != wire.Codec_CODEC_PLAIN || len(r.payload) == 0 {
			return broken("a part of a blob that can't be one")
		}
		return b.put(ctx, r.payload)
	case *wire.Head_Done:
		b.s.dropBlob(b.id)
		b.end(io.EOF)
	case *wire.Head_Refusal:
		b.s.dropBlob(b.id)
		b.end(refusalOf(k.Refusal))
	}
	return nil
}

func (b *Blob) put(ctx context.Context, part []byte) error {
	for {
		b.mu.Lock()
		if b.size < blobRoom || b.err != nil {
			if b.err == nil {
				b.parts, b.size = append(b.parts, part), b.size+len(part)
				b.change()
			}
			b.mu.Unlock()
			return nil
		}
		changed := b.changed
		b.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Session) dropBlob(id uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.blobs, id)
}
