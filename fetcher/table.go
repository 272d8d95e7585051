package fetcher

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/toc"
)

// ErrBadTable says that a layer's table of contents is not what the image's
// manifest says, or not one that can be served. Waiting doesn't help.
var ErrBadTable = errors.New("the layer's table of contents is not valid")

// errWrongBytes says that what arrived is not the table; the next attempt may
// bring it.
var errWrongBytes = errors.New("what arrived is not its table of contents")

const (
	tableName  = "stargz.index.json"
	footerSize = 51 // bytes, of eStargz

	// tailGuess is how much of a layer's end is fetched when nothing says
	// where its table begins: enough for some 600 files, and below a round
	// trip's worth on most links.
	tailGuess = 64 << 10

	maxTable = 64 << 20 // bytes, compressed
	maxWrong = 5        // times that a table may arrive wrong
)

// fetchTable gets a layer's table across the link, for as long as it takes.
func (f *Fetcher) fetchTable(ctx context.Context, l *layer) (*toc.Tree, error) {
	pause := backoff{max: f.opts.MaxPause}
	offset, wrong := l.TOCOffset, 0
	for {
		src := f.sourceOf(l)
		tree, err := f.tryTable(ctx, l, src, offset)
		switch {
		case err == nil:
			if err := f.store.PutTree(l.TOC, tree); err != nil {
				return nil, fmt.Errorf("fetcher: %w", err)
			}
			return f.store.Tree(l.TOC)
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, ErrBadTable):
			return nil, err
		case errors.Is(err, errWrongBytes):
			// The link, the source or the hint may be what is wrong; several
			// times in a row it is the image.
			if wrong++; wrong == maxWrong {
				return nil, fmt.Errorf("%w: %w", ErrBadTable, err)
			}
			offset = 0
		}
		if !registry.Temporary(err) {
			f.nextSource(l)
			f.log.WarnContext(ctx, "a layer's table of contents cannot be fetched; trying again", slog.String("layer", l.Blob.String()), slog.Any("error", err))
		}
		if !sleep(ctx, pause.failed(time.Now(), registry.RetryAfter(err))) {
			return nil, ctx.Err()
		}
	}
}

func (f *Fetcher) sourceOf(l *layer) catalog.Source {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.source(l)
}

func (f *Fetcher) nextSource(l *layer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l.source++
}

// tryTable makes one attempt. offset is where the table begins, 0 if unknown.
func (f *Fetcher) tryTable(ctx context.Context, l *layer, src catalog.Source, offset int64) (*toc.Tree, error) {
	if offset > 0 {
		tail, err := f.rangeOf(ctx, l, src, offset, l.Size-offset)
		if err != nil {
			return nil, err
		}
		return readTable(tail, l, offset)
	}
	begin := max(0, l.Size-tailGuess)
	tail, err := f.rangeOf(ctx, l, src, begin, l.Size-begin)
	if err != nil {
		return nil, err
	}
	at, err := parseFooter(tail)
	if err != nil || at >= l.Size {
		return nil, fmt.Errorf("fetcher: layer %s: %w: no eStargz footer", l.Blob, errWrongBytes)
	}
	if at >= begin {
		return readTable(tail[at-begin:], l, at)
	}
	head, err := f.rangeOf(ctx, l, src, at, begin-at)
	if err != nil {
		return nil, err
	}
	return readTable(append(head, tail...), l, at)
}

// rangeOf fetches bytes of a layer blob that nothing verifies yet.
func (f *Fetcher) rangeOf(ctx context.Context, l *layer, src catalog.Source, off, n int64) ([]byte, error) {
	if n > maxTable {
		return nil, fmt.Errorf("fetcher: layer %s: %w: it has %d bytes, compressed", l.Blob, errWrongBytes, n)
	}
	rc, err := f.part(ctx, Demand, l, src, off, n)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	_, err = io.CopyN(&buf, rc, n)
	if err = errors.Join(err, rc.Close()); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// parseFooter returns where the table begins, as the last bytes of an eStargz
// blob say: an empty gzip member whose extra field "SG" is the offset in 16
// hex digits and the word STARGZ.
func parseFooter(tail []byte) (offset int64, err error) {
	bad := errors.New("not an eStargz footer")
	if len(tail) < footerSize {
		return 0, bad
	}
	b := tail[len(tail)-footerSize:]
	extra := b[12 : 12+26]
	if b[0] != 0x1f || b[1] != 0x8b || b[3]&4 == 0 || binary.LittleEndian.Uint16(b[10:]) != 26 ||
		extra[0] != 'S' || extra[1] != 'G' || binary.LittleEndian.Uint16(extra[2:]) != 22 || string(extra[20:]) != "STARGZ" {
		return 0, bad
	}
	offset, err = strconv.ParseInt(string(extra[4:20]), 16, 64)
	if err != nil || offset <= 0 {
		return 0, bad
	}
	return offset, nil
}

// readTable verifies and parses a table: a gzip member that holds a tar with
// one file. It is decompressed twice, once to hash it and once to parse it, so
// that a bomb costs time and no memory, and nothing is parsed that the
// manifest doesn't vouch for.
func readTable(b []byte, l *layer, offset int64) (*toc.Tree, error) {
	wrong := func(err error) error {
		return fmt.Errorf("fetcher: layer %s: %w: %w", l.Blob, errWrongBytes, err)
	}
	r, err := openTable(b)
	if err != nil {
		return nil, wrong(err)
	}
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return nil, wrong(err)
	}
	if hex.EncodeToString(h.Sum(nil)) != l.TOC.Encoded() {
		return nil, wrong(errors.New("its digest is not the manifest's"))
	}
	if r, err = openTable(b); err != nil {
		return nil, wrong(err)
	}
	tree, err := toc.Parse(r, offset)
	if err != nil {
		return nil, fmt.Errorf("fetcher: layer %s: %w: %w", l.Blob, ErrBadTable, err)
	}
	return tree, nil
}

func openTable(b []byte) (io.Reader, error) {
	zr, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	tr := tar.NewReader(zr)
	h, err := tr.Next()
	if err != nil {
		return nil, err
	}
	if h.Name != tableName || h.Size > toc.MaxJSONSize {
		return nil, fmt.Errorf("%q of %d bytes where %s should be", h.Name, h.Size, tableName)
	}
	return tr, nil
}
