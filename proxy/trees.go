package proxy

import (
	"container/list"
	"context"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/singleflight"

	"github.com/airstream-io/airstream/internal/toc"
)

// trees are the layers' trees that are in memory, within a limit: those that
// were used least lately are made anew of the cache when they are wanted.
type trees struct {
	limit int64 // bytes
	loads singleflight.Group

	mu    sync.Mutex
	all   map[digest.Digest]*list.Element // guarded by mu; of *loaded
	order *list.List                      // guarded by mu; the latest used first
	size  int64                           // guarded by mu
}

type loaded struct {
	toc  digest.Digest
	tree *toc.Tree
}

func newTrees(limit int64) *trees {
	return &trees{limit: limit, all: map[digest.Digest]*list.Element{}, order: list.New()}
}

// get returns a tree; load makes it if it is not in memory.
func (t *trees) get(ctx context.Context, d digest.Digest, load func() (*toc.Tree, error)) (*toc.Tree, error) {
	t.mu.Lock()
	if e, ok := t.all[d]; ok {
		t.order.MoveToFront(e)
		tree := e.Value.(*loaded).tree //nolint:errcheck,forcetypeassert // nothing else is in it
		t.mu.Unlock()
		return tree, nil
	}
	t.mu.Unlock()
	done := t.loads.DoChan(d.String(), func() (any, error) {
		tree, err := load()
		if err == nil {
			t.add(d, tree)
		}
		return tree, err
	})
	select {
	case r := <-done:
		tree, _ := r.Val.(*toc.Tree) // nil with an error
		return tree, r.Err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (t *trees) add(d digest.Digest, tree *toc.Tree) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all[d] = t.order.PushFront(&loaded{d, tree})
	t.size += int64(len(tree.Bytes()))
	for t.size > t.limit && t.order.Len() > 1 {
		last := t.order.Back()
		l := last.Value.(*loaded) //nolint:errcheck,forcetypeassert // nothing else is in it
		t.order.Remove(last)
		delete(t.all, l.toc)
		t.size -= int64(len(l.tree.Bytes()))
	}
}
