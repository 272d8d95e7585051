package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/internal/catalog"
)

// pace is what the mirror's waits are measured by. Tests have another.
type pace struct {
	// silence is how long the link may say nothing at all, once it was asked,
	// before a cached meaning is used. A first question after a start crosses a
	// satellite in four round trips of 600 ms (name, connection, TLS, answer),
	// and TLS is heard after three of them. So a link that lives gets its
	// whole patience, and a dead one holds up a start for this long, once.
	silence time.Duration

	// dark is how long a registry may take that has not answered lately:
	// a round trip on a short link, should it be back. A guess.
	dark time.Duration

	// answer is how long a request that nothing cached can answer waits before
	// it is told that the registry does not answer, and darkAnswer how long on a
	// link that has been dark for a while. containerd gives up a request that
	// has had no answer for 30 s, and says then that it timed out, which helps
	// nobody; it asks three times.
	answer, darkAnswer time.Duration

	// refreshGap lies between two questions that nobody waits for, and
	// refreshTry is how often a dark link is tried, if nobody else does. A
	// question has a few hundred bytes.
	refreshGap, refreshTry time.Duration
}

var defaultPace = pace{
	silence: 3 * time.Second, dark: 50 * time.Millisecond, answer: 20 * time.Second, darkAnswer: 5 * time.Second,
	refreshGap: time.Second, refreshTry: 2 * time.Minute,
}

// resolve returns what a tag means: as the registry says, or as it said last if
// that takes too long. stale tells which.
func (m *Mirror) resolve(ctx context.Context, q request) (man registry.Manifest, stale bool, err error) {
	tag, err := m.catalog.Tag(q.name())
	old := registry.Manifest{}
	if err == nil {
		old, err = m.cached(tag.Digest)
	}
	if err != nil { // there is nothing else to answer with
		if m.locked(q) {
			return old, false, errLocked
		}
		man, err = m.askTag(q, fetcher.Demand, registry.Manifest{}).wait(ctx, m.limit())
		return man, false, err
	}
	if tag.Held {
		return old, false, nil
	}
	if m.locked(q) && !m.away(q) {
		return old, false, errLocked
	}
	asked := time.Now()
	fl := m.askTag(q, fetcher.Demand, old)
	patience := m.patience(q)
	first := min(patience, max(m.pace.silence, 4*m.reg.Link().RTT))
	before := m.reg.Link().Bytes
	man, err = fl.wait(ctx, first)
	if errors.Is(err, errLate) && first < patience {
		if m.reg.Heard().After(asked) || m.reg.Link().Bytes > before {
			man, err = fl.wait(ctx, patience-first)
		} else {
			m.mu.Lock()
			m.silent = time.Now()
			m.mu.Unlock()
		}
	}
	if !errors.Is(err, errLate) && !registry.Temporary(err) {
		return man, false, err
	}
	if errors.Is(err, errLate) {
		m.mu.Lock()
		m.quiet[q.from.Host] = true // until it answers
		m.mu.Unlock()
	}
	m.log.InfoContext(ctx, "the registry does not answer; the tag means what it meant last", slog.String("image", q.name()), slog.Duration("age", time.Since(tag.Seen).Round(time.Second)))
	m.refresh.add(q)
	return old, true, nil
}

// away tells whether q's registry was out of reach when it was last asked.
func (m *Mirror) away(q request) bool {
	m.mu.Lock()
	quiet := m.quiet[q.from.Host] || !m.silent.IsZero() && !m.reg.Heard().After(m.silent)
	m.mu.Unlock()
	return quiet || m.reg.Dark()
}

// patience returns how long q's registry may take to say what a tag means.
func (m *Mirror) patience(q request) time.Duration {
	if m.away(q) {
		// The question goes out all the same, and its answer is kept.
		return min(m.opts.Patience, m.pace.dark)
	}
	return m.opts.Patience
}

// askTag asks what a tag means, and stores the answer also if nobody waits for
// it any more. old is what it meant last, or nothing: then the registry is
// asked for a digest first, and sends a manifest only if that has changed.
func (m *Mirror) askTag(q request, class fetcher.Class, old registry.Manifest) *flight[registry.Manifest] {
	return question(m, q, fmt.Sprint("tag ", class, " ", q.name()), old.Digest == "", func(ctx context.Context) (registry.Manifest, error) {
		ref := q.ref
		if old.Digest == "" && !m.locked(q) {
			// Another question may have ended between the look into the cache
			// and this one.
			if tag, err := m.catalog.Tag(q.name()); err == nil {
				if man, err := m.cached(tag.Digest); err == nil {
					return man, nil
				}
			}
		}
		if old.Digest != "" {
			d, err := m.reg.Head(ctx, class, q.from, q.ref)
			if err != nil {
				return registry.Manifest{}, err
			}
			if d == old.Digest {
				m.refresh.remove(q)
				return old, m.setTag(q, old)
			}
			if d != "" {
				ref = d.String()
			}
		}
		man, err := m.reg.Manifest(ctx, class, q.from, ref)
		if err != nil {
			return man, err
		}
		m.refresh.remove(q)
		return man, m.keep(q, man)
	})
}

// keep stores a manifest and what its tag means.
func (m *Mirror) keep(q request, man registry.Manifest) error {
	if err := m.store.PutBlob(man.Digest, man.Body); err != nil {
		return err
	}
	if strings.Contains(q.ref, ":") {
		return m.catalog.SetMediaType(man.Digest, man.MediaType)
	}
	return m.setTag(q, man)
}

// tagGrain is how often it is written down that a tag means what it meant.
const tagGrain = time.Hour

// setTag remembers what a tag means, unless it is held. Nothing is written if that
// is known: a write waits for the disk, and whoever pulls for the write.
func (m *Mirror) setTag(q request, man registry.Manifest) error {
	old, err := m.catalog.Tag(q.name())
	if err == nil && (old.Held || old.Digest == man.Digest && old.MediaType == man.MediaType && time.Since(old.Seen).Abs() < tagGrain) {
		return nil
	}
	return m.catalog.SetTag(q.name(), tagOf(man))
}

func tagOf(man registry.Manifest) catalog.Tag {
	return catalog.Tag{Digest: man.Digest, MediaType: man.MediaType, Size: int64(len(man.Body)), Seen: time.Now().UTC()}
}

func (m *Mirror) cached(d digest.Digest) (registry.Manifest, error) {
	b, err := m.store.ReadBlob(d, registry.MaxManifestSize)
	if err != nil {
		return registry.Manifest{}, err
	}
	mediaType, err := m.catalog.MediaType(d)
	if err != nil {
		return registry.Manifest{}, err
	}
	return registry.Manifest{Digest: d, MediaType: mediaType, Body: b}, nil
}
