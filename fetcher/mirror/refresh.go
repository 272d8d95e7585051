package mirror

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/fetcher/registry"
)

// maxStale bounds how many tags wait to be asked again; the ones used longest
// ago are forgotten.
const maxStale = 1000

// refresh holds the tags that were answered from the cache, to be asked again
// when the link is back: each once, the one used last first.
type refresh struct {
	mu    sync.Mutex
	stale []request     // guarded by mu; the one used last at the end
	wake  chan struct{} // of one; something was added
}

func (r *refresh) add(q request) {
	q.login, q.via, q.self = registry.Login{}, nil, true
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop(q)
	if len(r.stale) >= maxStale {
		r.stale = slices.Delete(r.stale, 0, 1)
	}
	r.stale = append(r.stale, q)
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// remove forgets a tag whose meaning is known again.
func (r *refresh) remove(q request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop(q)
}

// postpone lets the others go first.
func (r *refresh) postpone(q request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.ContainsFunc(r.stale, func(o request) bool { return o.name() == q.name() }) {
		r.drop(q)
		r.stale = slices.Insert(r.stale, 0, q)
	}
}

// drop removes a tag. r.mu is held.
func (r *refresh) drop(q request) {
	r.stale = slices.DeleteFunc(r.stale, func(o request) bool { return o.name() == q.name() })
}

// next returns the tag that was used last.
func (r *refresh) next() (request, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.stale) == 0 {
		return request{}, false
	}
	return r.stale[len(r.stale)-1], true
}

// refreshTags asks for stale tags until ctx ends, one after the other, when the
// link is up and nothing forbids it.
func (m *Mirror) refreshTags(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		q, ok := m.refresh.next()
		if !ok {
			select {
			case <-m.refresh.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		if m.reg.Admit(ctx, fetcher.Background, m.pace.refreshTry) != nil {
			return
		}
		if err := m.refreshTag(ctx, q); registry.Temporary(err) {
			m.refresh.postpone(q) // it may be the registry, and not the link
		} else {
			m.refresh.remove(q) // whoever wants it next is told what is wrong
		}
		timer.Reset(m.pace.refreshGap)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
	}
}

func (m *Mirror) refreshTag(ctx context.Context, q request) error {
	tag, err := m.catalog.Tag(q.name())
	if err != nil {
		return err
	}
	old, err := m.cached(tag.Digest)
	if err != nil {
		return err
	}
	man, err := m.askTag(q, fetcher.Background, old).wait(ctx, -1)
	if err != nil {
		m.log.DebugContext(ctx, "a tag could not be asked again", slog.String("image", q.name()), slog.Any("error", err))
		return err
	}
	if man.Digest != old.Digest {
		m.log.InfoContext(ctx, "a tag has moved while the link was dark", slog.String("image", q.name()), slog.String("manifest", man.Digest.String()))
	}
	return nil
}
