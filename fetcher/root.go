package fetcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/internal/artifact"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/toc"
)

// Trees from a root
//
// The root of an image's artifact says in one small piece what the tables of its
// layers say in large ones, but for the IDs of chunks that a start doesn't read. The
// image's manifest names it, so the layers of that image, in slots of their own, get
// their trees from it; what an image's root says is never served to another image. No
// table crosses unless the root can't be had, or is not one: the table is vouched for
// by the same manifest.

// root is an image's root while somebody needs it: in memory it is several times what
// it is on the disk.
type root struct {
	f     *Fetcher
	ref   artifact.Ref
	ready chan struct{} // closed when root or err is set
	root  *artifact.Root
	err   error
	end   context.CancelFunc

	// guarded by Fetcher.mu
	from  origins
	users []*layer // one for each use; nil: somebody who is in no hurry
}

// useRoot returns a root that is here or on its way. l, which may be nil, makes it
// urgent when somebody waits for it. leaveRoot ends the use.
func (f *Fetcher) useRoot(ref artifact.Ref, sources []catalog.Source, l *layer) *root {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.roots[ref.Root.Digest]
	if r == nil {
		ctx, cancel := context.WithCancel(f.run)
		r = &root{f: f, ref: ref, ready: make(chan struct{}), end: cancel, from: origins{sources: sources}}
		f.roots[ref.Root.Digest] = r
		if f.closing {
			r.err = fmt.Errorf("fetcher: stopping: %w", context.Canceled)
			close(r.ready)
		} else {
			f.work.Go(func() { r.load(ctx) })
		}
	}
	r.from.refresh(sources)
	r.users = append(r.users, l)
	return r
}

func (f *Fetcher) leaveRoot(r *root, l *layer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r.users = slices.Delete(r.users, slices.Index(r.users, l), slices.Index(r.users, l)+1)
	if len(r.users) == 0 {
		r.end()
		if f.roots[r.ref.Root.Digest] == r {
			delete(f.roots, r.ref.Root.Digest)
		}
	}
}

// wait waits until a root is here.
func (r *root) wait(ctx context.Context) (*artifact.Root, error) {
	select {
	case <-r.ready:
		return r.root, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// load brings the root from the disk or across the link.
func (r *root) load(ctx context.Context) {
	defer close(r.ready)
	f := r.f
	d := digest.Digest(r.ref.Root.Digest)
	raw, err := f.store.ReadBlob(d, r.ref.Root.Size)
	if err != nil {
		if raw, err = r.fetch(ctx); err != nil {
			r.err = err
			return
		}
		if err := f.store.PutBlob(d, raw); err != nil {
			f.log.WarnContext(ctx, "an image's root cannot be stored; it will cross again", slog.String("root", d.String()), slog.Any("error", err))
		}
	}
	r.root, r.err = artifact.ParseRoot(raw)
}

// class is how urgent a root is. Fetcher.mu is held.
func (r *root) class() Class {
	if slices.ContainsFunc(r.users, func(l *layer) bool { return l != nil && l.waiters > 0 }) {
		return Demand
	}
	return Hot
}

// maxFutile is how often a request for the root may bring nothing of it, although the
// other side answers, before its images do without. A guess.
const maxFutile = 6

// isFutile tells whether the other side answered a request with nothing of use.
func isFutile(err error) bool {
	return blameFor(err, true) == theThing && !registry.NoAnswer(err)
}

// fetch brings the root across the link, for as long as it takes. It goes on where a
// request broke off.
func (r *root) fetch(ctx context.Context) ([]byte, error) {
	raw := make([]byte, r.ref.Root.Size)
	have := 0
	for wrong, futile := 0, 0; ; {
		before := have
		err := r.f.request(ctx, r.class, &r.from, r.ref.TOC, int64(have), r.ref.Root.Size-int64(have), func(body io.Reader, stream io.Reader) error {
			defer r.promote(stream)()
			n, err := io.ReadFull(body, raw[have:])
			if have += n; err != nil {
				return err
			}
			return r.ref.Root.Verify(raw)
		})
		switch {
		case err == nil:
			return raw, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, artifact.ErrMismatch):
			have = 0
			if wrong++; wrong == maxRefusals {
				return nil, err
			}
		case isRefusal(err) && !isNotNow(err):
			if wrong++; wrong == maxRefusals {
				return nil, err
			}
		case have > before:
			futile = 0
		case isFutile(err):
			if futile++; futile == maxFutile {
				return nil, err
			}
		}
	}
}

// promote makes the stream that brings the root more urgent as soon as somebody waits
// for a layer that it is needed for.
func (r *root) promote(stream io.Reader) (stop func()) {
	f := r.f
	s, ok := stream.(promotable)
	if !ok {
		return func() {}
	}
	raise := func() {
		if r.class() == Demand {
			s.SetClass(Demand)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	users := slices.Clone(r.users)
	for _, l := range users {
		if l != nil {
			l.arriving = raise
		}
	}
	raise()
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, l := range users {
			if l != nil {
				l.arriving = nil
			}
		}
	}
}

// request makes one request for n bytes of a blob from off on, when it may be made.
// read gets the answer, and the stream that it comes by.
func (f *Fetcher) request(ctx context.Context, class func() Class, from *origins, b artifact.Blob, off, n int64, read func(body, stream io.Reader) error) error {
	t, err := f.ask(ctx, &errand{kind: forTable, class: class, from: from})
	if err != nil {
		return err
	}
	err = f.get(ctx, t, b, off, n, read)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.giveBack(t, from, err, false)
	f.dispatch()
	return err
}

// get makes one request with a ticket. read gets the answer, and the stream that it
// comes by.
func (f *Fetcher) get(ctx context.Context, t *ticket, b artifact.Blob, off, n int64, read func(body, stream io.Reader) error) error {
	f.mu.Lock()
	class := t.class
	f.mu.Unlock()
	rc, start, err := f.reg.Blob(ctx, class, t.src, digest.Digest(b.Digest), off, n)
	if err != nil {
		return err
	}
	t.answer()
	body := heard{rc, t}
	_, err = io.CopyN(io.Discard, body, off-start)
	if err == nil {
		err = read(body, rc)
	}
	return errors.Join(err, rc.Close())
}

// ownFromDisk makes the tree of a layer from its image's root if that is here, or from
// the layer's own table: an image may have come in a bundle, or before anybody asked for
// roots, and needs no link then. If neither is here it is nil.
func (f *Fetcher) ownFromDisk(ctx context.Context, l *layer) *toc.Tree {
	if _, here := f.store.HasBlob(digest.Digest(l.Own.Artifact.Root.Digest)); here {
		if tree, err := f.ownFromRoot(ctx, l); err == nil {
			return tree // else whoever brings it finds that, too
		}
		return nil
	}
	table, err := f.catalog.Layer(l.Own.Of)
	if err != nil {
		return nil
	}
	tree, err := f.store.Tree(table.TOC)
	if err != nil {
		return nil
	}
	return f.keepTree(ctx, l, tree)
}

// bringOwn has a layer's tree made from its image's root, or, if that is not to be
// had, from its table.
func (f *Fetcher) bringOwn(ctx context.Context, l *layer) (*toc.Tree, error) {
	tree, err := f.ownFromRoot(ctx, l)
	if err == nil || ctx.Err() != nil {
		return tree, ctx.Err()
	}
	f.log.WarnContext(ctx, "the root of an image's artifact is of no use; its layers' own tables cross", slog.String("layer", l.Blob.String()), slog.String("root", l.Own.Artifact.Root.Digest), slog.Any("error", err))
	return f.ownFromTable(ctx, l, nil)
}

func (f *Fetcher) ownFromRoot(ctx context.Context, l *layer) (*toc.Tree, error) {
	r := f.useRoot(l.Own.Artifact, l.Sources, l) //nolint:contextcheck // it is for all who use it
	defer f.leaveRoot(r, l)
	parsed, err := r.wait(ctx)
	if err != nil {
		return nil, err
	}
	tree, err := f.extend(ctx, l, nil, parsed, nil)
	if err != nil {
		return nil, err
	}
	return f.keepTree(ctx, l, tree), nil
}

// extend makes a layer's tree from a root, what an earlier tree knows, and pages.
func (f *Fetcher) extend(ctx context.Context, l *layer, earlier *toc.Tree, r *artifact.Root, pages *artifact.Pages) (*toc.Tree, error) {
	select {
	case f.parses <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-f.parses }()
	end := l.TOCOffset
	if end == 0 {
		end = l.Size
	}
	return r.Extend(earlier, l.Own.Number, end, pages)
}

// keepTree stores a layer's tree and returns it as the store has it.
func (f *Fetcher) keepTree(ctx context.Context, l *layer, tree *toc.Tree) *toc.Tree {
	err := f.store.PutTree(l.TOC, tree)
	if err == nil {
		var mapped *toc.Tree
		if mapped, err = f.store.Tree(l.TOC); err == nil {
			return mapped
		}
	}
	f.log.WarnContext(ctx, "a layer's tree cannot be stored; it is kept in memory", slog.String("layer", l.Blob.String()), slog.Any("error", err))
	return tree
}

// errDisagree says that a root and a table, which one manifest names, say different
// things.
var errDisagree = errors.New("the root of the image's artifact and the layer's table of contents contradict each other")

// ownFromTable takes the tree of a layer's own table for it, if that agrees with have,
// which may be nil.
func (f *Fetcher) ownFromTable(ctx context.Context, l *layer, have *toc.Tree) (*toc.Tree, error) {
	table, err := f.layer(l.Own.Of, true)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	table.waiters++
	if table.arriving != nil {
		table.arriving()
	}
	f.dispatch()
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		table.waiters--
	}()
	for err = f.awaitQuietly(ctx, table); isFull(err); err = f.awaitQuietly(ctx, table) {
		if !sleep(ctx, time.Second) {
			return nil, ctx.Err()
		}
	}
	if err != nil {
		return nil, err
	}
	if have != nil && !have.Agrees(table.tree) {
		return nil, fmt.Errorf("fetcher: layer %s: %w", l.Blob, errDisagree)
	}
	return f.keepTree(ctx, l, table.tree), nil
}
