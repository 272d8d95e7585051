package fetcher

import (
	"bytes"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// covers tells whether a request asks for what begins at a place in the blob, and
// for more than that.
func covers(r *http.Request, at int64) bool {
	var from, to int64
	_, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to)
	return err == nil && from <= at && at < to && to-from > 10_000
}

// holdFirst lets the first request for a file and others stand still after a few
// bytes, until release is closed.
func (b *bench) holdFirst(t *testing.T, s *shore, name string, release chan struct{}) (held *atomic.Int32) {
	t.Helper()
	held = new(atomic.Int32)
	entry := b.entry(t, name)
	tree, err := b.Tree(t.Context(), slot)
	if err != nil {
		t.Fatal(err)
	}
	first, _ := tree.Chunks(entry)
	at := tree.Member(tree.Chunk(first).Member).Offset
	s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
		if !covers(r, at) || held.Add(1) > 1 {
			return false
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		body := &counter{s: s, r: bytes.NewReader(s.blob)}
		http.ServeContent(&pausing{w, r, 1000, release}, r, "", time.Time{}, body)
		return true
	})
	return held
}

// pausing passes n bytes on, waits, and passes the rest on.
type pausing struct {
	http.ResponseWriter
	r    *http.Request
	n    int
	wait chan struct{}
}

func (p *pausing) Write(b []byte) (int, error) {
	if p.n == 0 || len(b) < p.n {
		return p.ResponseWriter.Write(b)
	}
	n := p.n
	p.n = 0
	if _, err := p.ResponseWriter.Write(b[:n]); err != nil {
		return 0, err
	}
	if err := http.NewResponseController(p.ResponseWriter).Flush(); err != nil {
		return n, err
	}
	select {
	case <-p.wait:
	case <-p.r.Context().Done():
	}
	m, err := p.ResponseWriter.Write(b[n:])
	return n + m, err
}

// A bulk transfer stands still with a chunk in its range that somebody wants.
// The reader must not wait for it. When it goes on it brings the rest, and what
// crosses twice is no more than what the reader wanted.
func TestReaderDoesNotWaitForBulkThatStandsStill(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	b.meter.MinStall = time.Minute
	c := b.open(t, "small/07")
	release := make(chan struct{})
	held := b.holdFirst(t, s, "small/07", release)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := b.Complete(t.Context(), slot); err != nil {
			t.Error(err)
		}
	})
	waitFor(t, func() bool { return held.Load() > 0 })
	began := time.Now()
	s.want(t, c, "small/07", 0, 3000)
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("it took %v", took)
	}
	close(release)
	wg.Wait()
	if _, twice := s.traffic(); twice > 3200 {
		t.Errorf("%d bytes crossed twice; the file has 3000", twice)
	}
}

// A reader wants what a bulk transfer that gets on will bring soon: it waits for
// that, and nothing crosses twice.
func TestReaderRidesWithBulkThatGetsOn(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	b.meter.MinStall = time.Minute
	c := b.open(t, "small/07")
	release := make(chan struct{})
	held := b.holdFirst(t, s, "small/07", release)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := b.Complete(t.Context(), slot); err != nil {
			t.Error(err)
		}
	})
	waitFor(t, func() bool { return held.Load() > 0 })
	wg.Go(func() { s.want(t, c, "small/07", 0, 3000) })
	waitFor(t, func() bool { // the transfer becomes as urgent as its rider
		q := b.Queue()
		return q.Waiting == 1 && q.Active[Demand] == 1
	})
	close(release)
	wg.Wait()
	if n := b.Counts().Demands; n != 0 {
		t.Errorf("%d requests for what was on its way", n)
	}
	if _, twice := s.traffic(); twice > 0 {
		t.Errorf("%d bytes crossed twice", twice)
	}
}

// slowly sends a body in small pieces, for as long as the client stays.
func (s *shore) slowly(piece int, every time.Duration) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(&paced{w, r, piece, every}, r, "", time.Time{}, &counter{s: s, r: bytes.NewReader(s.blob)})
		return true
	}
}

type paced struct {
	http.ResponseWriter
	r     *http.Request
	piece int
	every time.Duration
}

func (p *paced) Write(b []byte) (int, error) {
	sent := 0
	for sent < len(b) {
		n, err := p.ResponseWriter.Write(b[sent:min(len(b), sent+p.piece)])
		if sent += n; err != nil {
			return sent, err
		}
		if err := http.NewResponseController(p.ResponseWriter).Flush(); err != nil {
			return sent, err
		}
		select {
		case <-time.After(p.every):
		case <-p.r.Context().Done():
			return sent, p.r.Context().Err()
		}
	}
	return sent, nil
}

// Bulk is paused because somebody waits for something else, over a link that is
// slow for all; then somebody wants a chunk of that very bulk. Nobody waits for
// anybody for ever.
func TestReaderOfPausedBulkIsServed(t *testing.T) {
	b, first, second, other := twoShores(t, Options{})
	slow, mine := b.open(t, "last"), b.openIn(t, other, "mine")
	first.setMood(first.slowly(500, 50*time.Millisecond)) // 64 KiB in 6.5 s
	second.setMood(second.slowly(4000, 20*time.Millisecond))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := b.Complete(t.Context(), other); err != nil {
			t.Error(err)
		}
	})
	waitFor(t, func() bool { return b.Queue().Active[Prefetch] > 0 })
	wg.Go(func() { first.want(t, slow, "last", 0, 10) })
	waitFor(t, func() bool { return b.Queue().Active[Demand] > 0 })
	began := time.Now()
	for off := int64(0); off < 200_000; off += 65_536 {
		second.want(t, mine, "mine", off, 10)
	}
	if took := time.Since(began); took > 6*time.Second {
		t.Errorf("it took %v", took)
	}
	wg.Wait()
	if _, twice := second.traffic(); twice > 70_000 {
		t.Errorf("%d bytes crossed twice", twice)
	}
}
