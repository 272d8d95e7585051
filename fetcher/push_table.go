package fetcher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/airstream-io/airstream/internal/toc"
)

// Tables that somebody delivers, unasked.

// PutTable delivers the table of contents of a layer, covered or not: the JSON, whose
// digest the caller has compared with the layer's, and where it begins in the blob; of a
// layer that was never converted, its outline and the size of its tar. It returns the
// layer's tree.
func (f *Fetcher) PutTable(ctx context.Context, slot uint32, table []byte, at int64) (*toc.Tree, error) {
	l, err := f.layer(slot, false)
	if err != nil {
		return nil, err
	}
	select {
	case <-l.ready:
		return l.tree, l.bad // it was here
	case f.parses <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	parse := toc.Parse
	if l.OnWord() {
		parse = toc.ParseOutline
	}
	tree, err := parse(bytes.NewReader(table), at)
	<-f.parses
	if err != nil {
		return nil, fmt.Errorf("fetcher: layer %s: %w: %w", l.Blob, ErrBadTable, err)
	}
	if err := f.store.PutTree(l.TOC, tree); err != nil && !isFull(err) {
		return nil, fmt.Errorf("%w: %w", errLocal, err)
	}
	select {
	case l.given <- tree:
	default: // it came twice
	}
	select {
	case <-l.ready:
		return l.tree, l.bad
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-f.run.Done():
		return nil, fmt.Errorf("fetcher: stopping: %w", context.Canceled)
	}
}

// TreeHere returns the tree of a layer if all of it is on the node; else it is nil.
func (f *Fetcher) TreeHere(slot uint32) (*toc.Tree, error) {
	l, here, err := f.here(slot)
	if err != nil || !here || l.partial {
		return nil, err
	}
	return l.tree, nil
}

// ChunksHere returns which chunks of a layer are on the node, in their order; none if
// its table is not.
func (f *Fetcher) ChunksHere(slot uint32) (numbers []uint32, err error) {
	l, here, err := f.here(slot)
	if err != nil || !here {
		return nil, err
	}
	f.count(l)
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range uint32(l.tree.NumChunks()) { //nolint:gosec // below 2^32
		if l.census.has(c) {
			numbers = append(numbers, c)
		}
	}
	return numbers, nil
}

// awaitTable waits for a table that a Pusher brings unasked. It returns nil if
// none does, or no longer.
func (f *Fetcher) awaitTable(ctx context.Context, l *layer) *toc.Tree {
	for {
		f.mu.Lock()
		c, changed := l.from.cover, f.recover
		f.mu.Unlock()
		if c.by == nil && len(l.given) == 0 {
			return nil
		}
		select {
		case tree := <-l.given:
			if mapped, err := f.store.Tree(l.TOC); err == nil {
				return mapped
			}
			return tree
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// bringTable has a layer's table come, from whoever brings it at the time.
func (f *Fetcher) bringTable(ctx context.Context, l *layer) (*toc.Tree, error) {
	for {
		if tree := f.awaitTable(ctx, l); tree != nil || ctx.Err() != nil {
			return tree, ctx.Err()
		}
		try, cancel := context.WithCancel(ctx)
		var watch sync.WaitGroup
		watch.Go(func() { f.awaitCover(try, l, cancel) })
		tree, err := f.fetchTable(try, l)
		cancel()
		watch.Wait()
		if err == nil || ctx.Err() != nil || len(l.given) == 0 && (!f.isCovered(l) || errors.Is(err, ErrBadTable)) {
			return tree, err
		}
	}
}

// isCovered tells whether a Pusher brings a layer.
func (f *Fetcher) isCovered(l *layer) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return l.from.cover.by != nil
}

// awaitCover calls do as soon as a Pusher brings a layer, or PutTable its table.
func (f *Fetcher) awaitCover(ctx context.Context, l *layer, do func()) {
	for {
		f.mu.Lock()
		covered, changed := l.from.cover.by != nil, f.recover
		f.mu.Unlock()
		if covered {
			do()
			return
		}
		select {
		case <-changed:
		case tree := <-l.given:
			select {
			case l.given <- tree: // for awaitTable
			default: // it came once more
			}
			do()
			return
		case <-ctx.Done():
			return
		}
	}
}
