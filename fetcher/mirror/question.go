package mirror

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/airstream-io/airstream/fetcher/registry"
)

// darkForAWhile is how long a link is dark that nobody should wait for.
const darkForAWhile = time.Minute

// parallelQuestions is how many questions go to one registry at a time. More
// would only share the same link, and a registry that is dead would hold a
// connection for each.
const parallelQuestions = 8

// errLate says that a registry has not answered yet.
var errLate = errors.New("the registry has not answered yet; it is asked on, so try again")

// flight is one question under way, that any number of requests wait for.
type flight[T any] struct {
	done chan struct{}
	v    T
	err  error
}

// wait returns the answer, or errLate after at most limit; limit < 0 waits until
// ctx ends.
func (f *flight[T]) wait(ctx context.Context, limit time.Duration) (T, error) {
	var late <-chan time.Time
	if limit >= 0 {
		t := time.NewTimer(limit)
		defer t.Stop()
		late = t.C
	}
	var none T
	select {
	case <-f.done:
		return f.v, f.err
	case <-late:
		select {
		case <-f.done: // both at once
			return f.v, f.err
		default:
			return none, errLate
		}
	case <-ctx.Done():
		return none, fmt.Errorf("mirror: waiting for an answer: %w", ctx.Err())
	}
}

// once asks a question on the mirror's own time, unless it is being asked: a
// client that goes away takes nothing from the others. One key always has
// answers of one type.
func once[T any](m *Mirror, key string, ask func(ctx context.Context) (T, error)) *flight[T] {
	m.mu.Lock()
	defer m.mu.Unlock()
	if fl, ok := m.flights[key].(*flight[T]); ok {
		return fl
	}
	fl := &flight[T]{done: make(chan struct{})}
	if m.closing {
		fl.err = fmt.Errorf("mirror: stopping: %w", context.Canceled)
		close(fl.done)
		return fl
	}
	m.flights[key] = fl
	m.work.Go(func() {
		fl.v, fl.err = ask(m.run)
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.flights, key)
		close(fl.done)
	})
	return fl
}

// question asks q's registry something. If the link is what fails, and insist
// says so, it is asked again and again for a while.
func question[T any](m *Mirror, q request, key string, insist bool, ask func(ctx context.Context) (T, error)) *flight[T] {
	// Whoever asks for others must not get what only they may see.
	key += " " + q.from.Host + "/" + q.from.Repo + " " + q.login.ID()
	return once(m, key, func(ctx context.Context) (v T, err error) {
		if ctx = registry.Through(ctx, q.via); !q.self {
			ctx = registry.As(ctx, q.login)
		}
		place := m.place(q.from.Host)
		until := time.Now().Add(m.pace.answer)
		for pause := 250 * time.Millisecond; ; pause *= 2 {
			select {
			case place <- struct{}{}:
			case <-ctx.Done():
				return v, ctx.Err()
			}
			if err = m.held(q.from.Host); err == nil {
				v, err = ask(ctx)
				m.answered(ctx, q, err)
			}
			<-place
			wait := max(pause/2+rand.N(pause/2), registry.RetryAfter(err)) //nolint:gosec // jitter, no secret
			if !insist || !registry.Temporary(err) || time.Now().Add(wait).After(until) {
				return v, err
			}
			t := time.NewTimer(wait)
			select {
			case <-t.C:
			case <-m.reg.Changed(): // it may be back
			case <-ctx.Done():
			}
			t.Stop()
			if ctx.Err() != nil {
				return v, err
			}
		}
	})
}

// place returns the places for questions to a registry.
func (m *Mirror) place(host string) chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.places[host]
	if !ok {
		p = make(chan struct{}, parallelQuestions)
		m.places[host] = p
	}
	return p
}

// hold is a registry's request to be left alone.
type hold struct {
	until time.Time
	err   error
}

// held returns why a registry must not be asked now, or nil. containerd asks
// again at once, several times, whatever it is told.
func (m *Mirror) held(host string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h, ok := m.holds[host]; ok && time.Now().Before(h.until) {
		return h.err
	}
	return nil
}

// answered notes what came of a question.
func (m *Mirror) answered(ctx context.Context, q request, err error) {
	locked := m.locks(ctx, q, err)
	m.mu.Lock()
	defer m.mu.Unlock()
	if after := registry.RetryAfter(err); after > 0 && registry.Temporary(err) {
		m.holds[q.from.Host] = hold{time.Now().Add(after), err}
	}
	if len(m.quiet)+len(m.holds)+len(m.private) > maxListed { // hints, all of them
		clear(m.quiet)
		clear(m.holds)
		clear(m.private)
	}
	switch {
	case registry.Temporary(err):
		m.quiet[q.from.Host] = true
	case m.run.Err() == nil:
		delete(m.quiet, q.from.Host)
	}
	if locked {
		m.private[q.from] = time.Now()
	} else if err == nil && q.login.ID() == "" {
		delete(m.private, q.from)
	}
}

// limit returns how long a request may wait that nothing cached can answer.
func (m *Mirror) limit() time.Duration {
	if s := m.reg.Link(); s.Dark && time.Since(s.Since) > darkForAWhile {
		return m.pace.darkAnswer
	}
	return m.pace.answer
}
