package fetcher

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/airstream-io/airstream/internal/store"
	"github.com/airstream-io/airstream/internal/toc"
)

// ErrBadTable says that a layer's table of contents is not what the image's
// manifest says, or not one that can be served. Waiting doesn't help.
var ErrBadTable = errors.New("the layer's table of contents is not valid")

// errWrongBytes says that what arrived is not the table; the next attempt may
// bring it.
var errWrongBytes = errors.New("what arrived is not its table of contents")

const (
	tableName = "stargz.index.json"

	// tailGuess is how much of a layer's end is fetched when nothing says
	// where its table begins: enough for some 600 files, and below a round
	// trip's worth on most links.
	tailGuess = 64 << 10

	maxTable       = 64 << 20 // bytes, compressed
	maxWrongTables = 5        // times that a table may arrive wrong
)

// fetchTable gets a layer's table across the link, for as long as it takes.
func (f *Fetcher) fetchTable(ctx context.Context, l *layer) (tree *toc.Tree, err error) {
	t := &tableFetch{f: f, l: l, offset: l.TOCOffset}
	if t.part, err = f.store.Partial(l.TOC); err != nil { // what has crossed survives a restart
		return nil, fmt.Errorf("fetcher: %w", err)
	}
	tree, err = t.run(ctx)
	err = errors.Join(err, t.part.Close())
	if err != nil && !errors.Is(err, ErrBadTable) {
		return nil, err
	}
	if _, delErr := f.store.DeletePartial(l.TOC); delErr != nil {
		f.log.WarnContext(ctx, "what is left of a table of contents cannot be deleted", slog.String("layer", l.Blob.String()), slog.Any("error", delErr))
	}
	return tree, err
}

// tableFetch is a table that is crossing.
type tableFetch struct {
	f      *Fetcher
	l      *layer
	part   *store.Partial // the blob from offset on
	offset int64          // where the table begins; 0: unknown
}

// run makes attempts until one succeeds, or it is plain that none will.
func (t *tableFetch) run(ctx context.Context) (*toc.Tree, error) {
	l := t.l
	pause := backoff{max: wrongPauses * t.f.opts.MaxPause}
	for wrong := 0; ; {
		err := t.try(ctx)
		if err == nil && t.part.Len() == l.Size-t.offset {
			var tree *toc.Tree
			if tree, err = t.parse(ctx); err == nil {
				return tree, nil
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err == nil, errors.Is(err, ErrBadTable):
		case errors.Is(err, errWrongBytes):
			// The link, the source or the hint may be what is wrong; several
			// times in a row it is the image.
			if wrong++; wrong == maxWrongTables {
				return nil, fmt.Errorf("%w: %w", ErrBadTable, err)
			}
			if err = t.startOver(); err != nil {
				return nil, err
			}
			t.offset = 0
			if !sleep(ctx, pause.failed(time.Now(), 0)) {
				return nil, ctx.Err()
			}
		case isLocal(err):
			t.f.noRoom(l, err)
			if pause.failures == 0 {
				t.f.log.WarnContext(ctx, "a layer's table of contents cannot be stored; trying again", slog.String("layer", l.Blob.String()), slog.Any("error", err))
			}
			if !sleep(ctx, pause.failed(time.Now(), 0)) {
				return nil, ctx.Err()
			}
			t.f.noRoom(l, nil)
		}
		if errors.Is(err, ErrBadTable) {
			return nil, err
		}
	}
}

// startOver throws away what has crossed.
func (t *tableFetch) startOver() error {
	err := t.part.Close()
	if err == nil {
		_, err = t.f.store.DeletePartial(t.l.TOC)
	}
	if err == nil {
		t.part, err = t.f.store.Partial(t.l.TOC)
	}
	if err != nil {
		return fmt.Errorf("fetcher: %w", err)
	}
	return nil
}

// try makes one attempt to bring what is missing. Pauses after failures are
// those of the host, and of the layer there.
func (t *tableFetch) try(ctx context.Context) error {
	l := t.l
	if l.Size-t.offset > maxTable && t.offset > 0 {
		return fmt.Errorf("fetcher: layer %s: %w: it has %d bytes, compressed", l.Blob, errWrongBytes, l.Size-t.offset)
	}
	if t.offset > 0 {
		if t.part.Expect(l.Size - t.offset); t.part.Len() == l.Size-t.offset {
			return nil // it was here already
		}
	}
	ticket, err := t.f.ask(ctx, &errand{kind: forTable, class: l.tableClass, from: &l.from})
	if err != nil {
		return err
	}
	before := t.part.Len()
	if t.offset == 0 {
		err = t.find(ctx, ticket)
	} else {
		err = t.more(ctx, ticket)
	}
	t.f.mu.Lock()
	defer t.f.mu.Unlock()
	t.f.giveBack(ticket, &l.from, err, t.part.Len() > before)
	t.f.dispatch()
	return err
}

// tableClass is how urgent a layer's table is: somebody waits for it, or will.
// f.mu is held.
func (l *layer) tableClass() Class {
	if l.waiters > 0 {
		return Demand
	}
	return Hot
}

// find looks at the end of the blob for where the table begins.
func (t *tableFetch) find(ctx context.Context, ticket *ticket) error {
	l := t.l
	begin := max(0, l.Size-tailGuess)
	var tail bytes.Buffer
	if err := t.copy(ctx, ticket, &tail, begin); err != nil {
		return err
	}
	at, err := toc.ParseFooter(tail.Bytes())
	if err != nil || at >= l.Size || l.Size-at > maxTable {
		return fmt.Errorf("fetcher: layer %s: %w: no eStargz footer", l.Blob, errWrongBytes)
	}
	t.offset = at
	if at < begin || t.part.Len() > 0 {
		return nil // the next attempt brings it, or what an earlier process has left out
	}
	t.part.Expect(l.Size - at)
	if _, err := t.part.Write(tail.Bytes()[at-begin:]); err != nil {
		return fmt.Errorf("%w: %w", errLocal, err)
	}
	return nil
}

// more appends what the link brings.
func (t *tableFetch) more(ctx context.Context, ticket *ticket) error {
	return t.copy(ctx, ticket, t.part, t.offset+t.part.Len())
}

// copy copies the blob from off on to w.
func (t *tableFetch) copy(ctx context.Context, ticket *ticket, w io.Writer, off int64) error {
	n := t.l.Size - off
	rc, err := t.f.part(ctx, ticket, t.l, off, n)
	if err != nil {
		return err
	}
	stop := t.f.promoteTable(t.l, ticket, rc)
	_, err = io.CopyN(local{w}, heard{rc, ticket}, n)
	stop()
	return errors.Join(err, rc.Close())
}

// local marks errors of writing as the node's.
type local struct{ w io.Writer }

func (l local) Write(p []byte) (int, error) {
	n, err := l.w.Write(p)
	if err != nil {
		err = fmt.Errorf("%w: %w", errLocal, err)
	}
	return n, err
}

// promoteTable makes a stream that brings a table go as urgently as a demand
// as soon as somebody waits for it. stop must be called before it is closed.
func (f *Fetcher) promoteTable(l *layer, t *ticket, rc io.Reader) (stop func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := rc.(promotable)
	if !ok {
		return func() {}
	}
	l.arriving = func() {
		if c := l.tableClass(); c != t.class {
			t.class = c
			s.SetClass(c)
		}
	}
	l.arriving()
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		l.arriving = nil
	}
}

// maxParses is how many tables are parsed at a time: parsing takes memory, and
// there is little to win on small machines.
const maxParses = 1

// parse verifies and parses what has arrived, and stores the tree.
func (t *tableFetch) parse(ctx context.Context) (*toc.Tree, error) {
	select {
	case t.f.parses <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-t.f.parses }()
	l := t.l
	tree, err := readTable(func() io.Reader { return io.NewSectionReader(t.part, 0, t.part.Len()) }, l, t.offset)
	if err != nil {
		return nil, err
	}
	switch err := t.f.store.PutTree(l.TOC, tree); {
	case isFull(err):
		// What somebody waits for is served from memory; the next process
		// stores it if there is room then.
		t.f.log.WarnContext(ctx, "there is no room for a layer's tree; it is kept in memory", slog.String("layer", l.Blob.String()), slog.Any("error", err))
		return tree, nil
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errLocal, err)
	}
	return t.f.store.Tree(l.TOC)
}

// readTable verifies and parses a table: a gzip member that holds a tar with
// one file. It is decompressed twice, once to hash it and once to parse it, so
// that a bomb costs time and no memory, and nothing is parsed that the
// manifest doesn't vouch for.
func readTable(open func() io.Reader, l *layer, offset int64) (*toc.Tree, error) {
	wrong := func(err error) error {
		return fmt.Errorf("fetcher: layer %s: %w: %w", l.Blob, errWrongBytes, err)
	}
	r, err := openTable(open())
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
	if r, err = openTable(open()); err != nil {
		return nil, wrong(err)
	}
	tree, err := toc.Parse(r, offset)
	if err != nil {
		return nil, fmt.Errorf("fetcher: layer %s: %w: %w", l.Blob, ErrBadTable, err)
	}
	return tree, nil
}

func openTable(r io.Reader) (io.Reader, error) {
	zr, err := gzip.NewReader(bufio.NewReaderSize(r, 32<<10))
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
