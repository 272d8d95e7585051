package fetcher

import (
	"context"
	"errors"
	"log/slog"

	"github.com/airstream-io/airstream/internal/toc"
)

// takeTables gives the layers that somebody wants the trees of their own tables. One
// whose table says something else than the root is not served any more.
func (p *lookup) takeTables(ctx context.Context) error {
	f := p.f
	f.mu.Lock()
	layers := p.layers()
	f.mu.Unlock()
	for _, l := range layers {
		tree, err := f.ownFromTable(ctx, l, l.tree)
		switch {
		case errors.Is(err, errDisagree):
			f.condemn(ctx, l, errDisagree.Error())
		case err != nil:
			return err
		default:
			f.supersede(l, tree, false)
		}
	}
	return nil
}

// condemn ends the serving of a layer.
func (f *Fetcher) condemn(ctx context.Context, l *layer, why string) {
	l.quarantine.Store(&why)
	f.log.ErrorContext(ctx, "a layer is not served any more", slog.String("layer", l.Blob.String()), slog.String("why", why))
	if err := f.catalog.SetWrong(l.Slot, why); err != nil {
		f.log.ErrorContext(ctx, "what is wrong with a layer is not noted", slog.String("layer", l.Blob.String()), slog.Any("error", err))
	}
}

// supersede puts a layer with a tree that says more in the place of one.
func (f *Fetcher) supersede(l *layer, tree *toc.Tree, partial bool) {
	n := &layer{
		Layer: l.Layer, standing: l.standing, absent: l.absent, ready: l.ready, given: l.given, superseded: make(chan struct{}),
		tree: tree, partial: partial, fresh: l.fresh,
	}
	n.census.tally = tallyOf(tree)
	f.count(n) // before anybody looks at it
	f.mu.Lock()
	defer f.mu.Unlock()
	if n.gone || f.layers[l.Slot] != l {
		f.unindex(n)
		return
	}
	f.unindex(l)
	for _, plan := range l.plans {
		n.plan(plan)
	}
	f.queue.ahead.forget(l)
	f.diary.renew(l.Slot, tree)
	f.layers[l.Slot], l.next = n, n
	close(l.superseded)
	f.dispatch()
}
