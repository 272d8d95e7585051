package fetcher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/airstream-io/airstream/internal/catalog"
)

var otherSrc = catalog.Source{Host: "other.example", Repo: "app"}

// another is a layer that shares the file "big" with the usual one.
var another = sync.OnceValues(func() (*shore, error) {
	return layerOf([]string{"mine", "big"}, map[string][]byte{"mine": random(77, 200_000), "big": random(1, 1<<20)})
})

// twoShores returns a bench that knows the usual layer, and another one in the
// second slot that a second registry has.
func twoShores(t *testing.T, opts Options) (b *bench, first, second *shore, otherSlot uint32) {
	t.Helper()
	proto, err := another()
	if err != nil {
		t.Fatal(err)
	}
	first, second = newShore(t), proto.open(t)
	b = newBenchWith(t, first, t.TempDir(), first.at, opts, map[string]*shore{otherSrc.Host: second})
	return b, first, second, b.learn(t, second, otherSrc, second.at)
}

func silence(_ http.ResponseWriter, r *http.Request) bool {
	<-r.Context().Done()
	panic(http.ErrAbortHandler)
}

func reset(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }

// A registry that takes requests and never answers must not hold up another
// one's readers, completion and tables.
func TestSilentRegistryHoldsUpNobodyElse(t *testing.T) {
	b, first, second, other := twoShores(t, Options{})
	b.meter.MinStall = time.Minute
	c := b.open(t, "last")
	first.setMood(silence)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for i := range 30 { // more than may be asked of one host at a time
		wg.Go(func() {
			if _, err := c.ReadAt(ctx, make([]byte, 10), int64(i)*10_000); !errors.Is(err, context.Canceled) {
				t.Errorf("read of what cannot come: %v", err)
			}
		})
	}
	wg.Go(func() {
		if err := b.Complete(ctx, slot); !errors.Is(err, context.Canceled) {
			t.Errorf("completion of what cannot come: %v", err)
		}
	})
	waitFor(t, func() bool { return b.Queue().Waiting == 30 && b.Queue().Active[Demand] > 0 })

	began := time.Now()
	mine := b.openIn(t, other, "mine")
	second.want(t, mine, "mine", 0, 1000)
	if took := time.Since(began); took > time.Second {
		t.Errorf("a read from another registry took %v", took)
	}
	if err := b.Complete(t.Context(), other); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("completing another registry's layer took %v", took)
	}
}

// A registry that fails is tried by one request at a time, whoever wants what,
// and all go on when it is back.
func TestDeadRegistryIsTriedByOneAtATime(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	c, two := b.open(t, "big"), b.open(t, "two")
	var now, most, asked atomic.Int32
	var failed atomic.Bool
	s.setMood(func(http.ResponseWriter, *http.Request) bool {
		n := now.Add(1)
		defer now.Add(-1)
		if failed.Load() {
			most.Store(max(most.Load(), n))
		}
		asked.Add(1)
		time.Sleep(2 * time.Millisecond)
		panic(http.ErrAbortHandler)
	})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() { s.want(t, c, "big", int64(i)*65536, 10) })
	}
	waitFor(t, func() bool { return len(b.Queue().PausedHosts) == 1 && b.Queue().Active[Demand] == 0 })
	failed.Store(true)
	for i := range 2 {
		wg.Go(func() { s.want(t, two, "two", int64(i)*65536, 10) })
	}
	from := asked.Load()
	waitFor(t, func() bool { return asked.Load() > from+10 })
	if n := most.Load(); n > 1 {
		t.Errorf("%d requests at a time at a registry that does not answer", n)
	}
	if p := b.Queue().PausedHosts; len(p) != 1 || p[0].Host != src.Host || p[0].Err == "" {
		t.Errorf("status says %+v", p)
	}
	s.setMood(nil)
	wg.Wait()
	if p := b.Queue().PausedHosts; len(p) != 0 {
		t.Errorf("paused after it answered: %+v", p)
	}
	if _, twice := s.traffic(); twice > 0 {
		t.Errorf("%d bytes crossed twice", twice)
	}
}

// What two layers share is had from the registry that answers, also for those
// who wanted it first from the one that doesn't.
func TestSharedFileComesFromWhoeverAnswers(t *testing.T) {
	b, first, second, other := twoShores(t, Options{})
	b.meter.MinStall = time.Minute
	c, same := b.open(t, "big"), b.openIn(t, other, "big")
	first.setMood(reset)
	var wg sync.WaitGroup
	wg.Go(func() { first.want(t, c, "big", 500_000, 1000) })
	waitFor(t, func() bool { return len(b.Queue().PausedHosts) == 1 })
	began := time.Now()
	second.want(t, same, "big", 500_000, 1000)
	wg.Wait()
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v", took)
	}
}

// One layer has two registries. When one fails, says no, or sends rubbish, the
// other is asked.
func TestOtherSourceIsAskedWhenOneFails(t *testing.T) {
	for name, mood := range map[string]func(s *shore) func(http.ResponseWriter, *http.Request) bool{
		"reset": func(*shore) func(http.ResponseWriter, *http.Request) bool { return reset },
		"404": func(*shore) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, _ *http.Request) bool {
				http.Error(w, "no", http.StatusNotFound)
				return true
			}
		},
		"rubbish": func(s *shore) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(random(9, len(s.blob))))
				return true
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			bad, good := newShore(t), newShore(t)
			b := newBenchWith(t, good, t.TempDir(), good.at, Options{}, map[string]*shore{otherSrc.Host: bad})
			if got := b.learn(t, bad, otherSrc, bad.at); got != slot {
				t.Fatalf("slot %d", got)
			}
			bad.setMood(mood(bad))
			good.want(t, b.open(t, "last"), "last", 0, 300_000)
			if err := b.Complete(t.Context(), slot); err != nil {
				t.Error(err)
			}
			if bad.asked() == 0 {
				t.Error("the bad source was never asked: nothing was tried")
			}
			if n := bad.asked(); n > 12 {
				t.Errorf("the bad source was asked %d times", n)
			}
		})
	}
}

// Bursts of refusals and failures end in resume, for readers and completion.
func TestBurstsOfAnswersThatAreNone(t *testing.T) {
	truncated := func(w http.ResponseWriter, r *http.Request, s *shore) {
		w.Header().Set("Content-Length", "1000000")
		w.Header().Set("Content-Range", strings.Replace(r.Header.Get("Range"), "=", " ", 1)+fmt.Sprintf("/%d", len(s.blob)))
		w.WriteHeader(http.StatusPartialContent)
	}
	for _, tc := range []struct {
		name   string
		answer func(w http.ResponseWriter, r *http.Request, s *shore)
	}{
		{"401", status(401)},
		{"403", status(403)},
		{"404", status(404)},
		{"416", status(416)},
		{"429", status(429)},
		{"500", status(500)},
		{"503", status(503)},
		{"truncated", truncated},
		{"wrong range", func(w http.ResponseWriter, _ *http.Request, s *shore) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 900000-900009/%d", len(s.blob)))
			w.Header().Set("Content-Length", "10")
			w.WriteHeader(http.StatusPartialContent)
			if _, err := w.Write(s.blob[900000:900010]); err != nil {
				panic(err)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newShore(t)
			b := newBenchWith(t, s, t.TempDir(), s.at, Options{Patience: time.Minute}, nil)
			var n atomic.Int32
			s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
				if n.Add(1)%4 == 0 { // three of four requests, those for the table among them
					return false
				}
				tc.answer(w, r, s)
				return true
			})
			c := b.open(t, "big")
			s.want(t, c, "big", 0, 400_000)
			if err := b.Complete(t.Context(), slot); err != nil {
				t.Error(err)
			}
			s.want(t, c, "big", 0, 1<<20)
			if _, twice := s.traffic(); twice > 0 {
				t.Errorf("%d bytes crossed twice", twice)
			}
		})
	}
}

func status(code int) func(http.ResponseWriter, *http.Request, *shore) {
	return func(w http.ResponseWriter, _ *http.Request, _ *shore) { http.Error(w, "not now", code) }
}

// A blob that the registry has shortened never comes; asking for it must not
// be all that the node does.
func TestShortenedBlobDoesNotSpin(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	c := b.open(t, "last")
	s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(s.blob[:s.at/2]))
		return true
	})
	before := s.asked()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := c.ReadAt(ctx, make([]byte, 10), 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if n := s.asked() - before; n > 150 { // pauses of 10 to 20 ms
		t.Errorf("%d requests in a second", n)
	}
	if err := b.Complete(t.Context(), slot); err == nil {
		t.Error("it is complete")
	}
}

// Connections that last for fewer bytes than a chunk has must not keep it from
// arriving, nor make what has arrived cross again.
func TestConnectionsShorterThanAChunk(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	c := b.open(t, "big")
	var requests atomic.Int64
	s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
		requests.Add(1)
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(&limited{w, r, 20_000, reset2}, r, "", time.Time{}, bytes.NewReader(s.blob))
		return true
	})
	s.want(t, c, "big", 100_000, 200_000)
	if err := b.Complete(t.Context(), slot); err != nil {
		t.Error(err)
	}
	// Each brings 20,000 bytes of a blob that has 1.5 million, or the rest of a
	// member.
	if n := requests.Load(); n > 150 {
		t.Errorf("%d requests", n)
	}
	s.setMood(nil)
	s.want(t, c, "big", 0, 1<<20)
}
