package fetcher

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"

	"github.com/airstream-io/airstream/fetcher/uplink"
)

// maxSkip is how far before its place an answer may begin and still be read, in
// bytes: less than a round trip costs, and no proof that ranges are ignored.
const maxSkip = 64 << 10

// part opens n bytes of a layer blob from off on: of the blob on disk if it is
// here whole, and across the link else. The caller closes it, and gives the
// ticket back.
//
// A source, or a proxy on the way, that answers a range with the whole blob
// would send megabytes for every chunk. Its layers are brought here whole, once,
// and read as they arrive.
func (f *Fetcher) part(ctx context.Context, t *ticket, l *layer, off, n int64) (io.ReadCloser, error) {
	if rc, err := f.partHere(l, off, n); !errors.Is(err, fs.ErrNotExist) {
		return rc, err
	}
	f.mu.Lock()
	whole, class := l.whole, t.class
	f.mu.Unlock()
	if !whole {
		rc, start, err := f.reg.Blob(ctx, class, t.src, l.Blob, off, n)
		if err != nil {
			return nil, err
		}
		t.answer()
		if off-start <= maxSkip {
			if _, err := io.CopyN(io.Discard, rc, off-start); err != nil {
				return nil, errors.Join(err, rc.Close())
			}
			return rc, nil
		}
		if err := rc.Close(); err != nil {
			f.log.DebugContext(ctx, "closing an answer that is not read", slog.Any("error", err))
		}
		f.mu.Lock()
		whole, l.whole = l.whole, true
		f.mu.Unlock()
		if !whole {
			f.log.WarnContext(ctx, "the registry does not send ranges; the layer must cross whole", slog.String("layer", l.Blob.String()),
				slog.String("repo", t.src.Host+"/"+t.src.Repo), slog.Int64("bytes", l.Size))
		}
	}
	f.mu.Lock()
	t.idle = true
	delete(t.host.tickets, t) // the blob has its own
	f.mu.Unlock()
	blob, err := f.Blob(ctx, class, t.src, l.Blob, l.Size)
	if err != nil {
		return nil, err
	}
	if err := blob.Skip(off); err != nil {
		return nil, errors.Join(err, blob.Close())
	}
	return follower{blob, io.LimitReader(blob, n)}, nil
}

// follower is a part of a blob that is crossing whole.
type follower struct {
	blob *Blob
	io.Reader
}

// Close implements io.Closer.
func (f follower) Close() error { return f.blob.Close() }

// SetClass implements promotable. A blob has many readers, so it only ever
// becomes more urgent.
func (f follower) SetClass(c uplink.Class) {
	if f.blob.d != nil {
		f.blob.d.promote(c)
	}
}

// partHere opens a part of a blob that is here whole; else it is fs.ErrNotExist.
func (f *Fetcher) partHere(l *layer, off, n int64) (io.ReadCloser, error) {
	file, err := f.store.Blob(l.Blob)
	if err != nil {
		return nil, err
	}
	return section{io.NewSectionReader(file, off, n), file}, nil
}

// section is a part of a file that closes it.
type section struct {
	io.Reader
	file *os.File
}

// Close implements io.Closer.
func (s section) Close() error { return s.file.Close() }
