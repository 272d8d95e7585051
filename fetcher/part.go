package fetcher

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"

	"github.com/airstream-io/airstream/internal/catalog"
)

// part opens n bytes of a layer blob from off on: of the blob on disk if it is
// here whole, and across the link else. The caller closes it.
//
// A source, or a proxy on the way, that answers a range with the whole blob
// would send megabytes for every chunk. Its layers are brought here whole, once,
// and read from disk then.
func (f *Fetcher) part(ctx context.Context, class Class, l *layer, src catalog.Source, off, n int64) (io.ReadCloser, error) {
	if rc, err := f.partHere(l, off, n); !errors.Is(err, fs.ErrNotExist) {
		return rc, err
	}
	f.mu.Lock()
	whole := l.whole
	f.mu.Unlock()
	if !whole {
		rc, start, err := f.reg.Blob(ctx, class, src, l.Blob, off, n)
		if err != nil || start == off {
			return rc, err
		}
		if err := rc.Close(); err != nil {
			f.log.DebugContext(ctx, "closing an answer that is not read", slog.Any("error", err))
		}
		f.mu.Lock()
		whole, l.whole = l.whole, true
		f.mu.Unlock()
		if !whole {
			f.log.WarnContext(ctx, "the registry does not send ranges; the layer must cross whole", slog.String("layer", l.Blob.String()),
				slog.String("repo", src.Host+"/"+src.Repo), slog.Int64("bytes", l.Size))
		}
	}
	blob, err := f.Blob(ctx, class, src, l.Blob, l.Size)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, blob)
	if err = errors.Join(err, blob.Close()); err != nil {
		return nil, err
	}
	return f.partHere(l, off, n)
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
