package fetcher

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/airstream-io/airstream/fetcher/uplink"
)

// rubbish answers with other bytes of the right length, except for the table.
func (s *shore) rubbish(w http.ResponseWriter, r *http.Request) bool {
	bad := append(random(9, int(s.at)), s.blob[s.at:]...)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(bad))
	return true
}

// A source that sends nothing but wrong bytes is not asked for ever in a row: a
// completion ends and says why, a reader waits, and gets the right bytes when
// they come. Another image doesn't notice.
func TestWrongContentEndsCompletionAndLetsReadersWait(t *testing.T) {
	b, first, second, other := twoShores(t, Options{})
	c := b.open(t, "last")
	first.setMood(first.rubbish)
	err := b.Complete(t.Context(), slot)
	if !errors.Is(err, ErrWrongContent) {
		t.Errorf("complete: %v", err)
	}
	if n := first.asked(); n > 400 {
		t.Errorf("%d requests", n)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := c.ReadAt(ctx, make([]byte, 10), 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a read of what can't be had: %v", err)
	}
	second.want(t, b.openIn(t, other, "mine"), "mine", 0, 200_000)
	first.setMood(nil)
	first.want(t, c, "last", 0, 300_000)
	if err := b.Complete(t.Context(), slot); err != nil {
		t.Error(err)
	}
}

// Where the policy is not to wait, reads of what is not here fail while the link
// is dark, those that wait already too; what is here is served.
func TestFailFast(t *testing.T) {
	s := newShore(t)
	b := newBenchWith(t, s, t.TempDir(), s.at, Options{FailFast: true}, nil)
	c, last := b.open(t, "big"), b.open(t, "last")
	s.want(t, c, "big", 0, 100)
	b.idle(t)
	s.setMood(reset)
	for i := range int64(3) {
		if _, err := last.ReadAt(t.Context(), make([]byte, 10), i); !errors.Is(err, ErrDark) {
			t.Errorf("read %d: %v, want ErrDark", i, err)
		}
	}
	s.want(t, c, "big", 0, 100)
	if err := b.Blocked(Prefetch); !errors.Is(err, ErrDark) {
		t.Errorf("blocked: %v", err)
	}
	s.setMood(nil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := b.Complete(ctx, slot); err != nil { // this waits, and finds the link
		t.Fatal(err)
	}
	s.want(t, last, "last", 0, 10)
}

// idle waits until nothing is under way.
func (b *bench) idle(t *testing.T) {
	t.Helper()
	waitFor(t, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.queue.transfers) == 0
	})
}

// Outside of the contact window nothing crosses but what somebody waits for, and
// status says why. When the policy changes, all goes on at once.
func TestClosedWindowLetsOnlyReadersPass(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	c := b.open(t, "big")
	soon := time.Now().Add(3 * time.Hour)
	at := time.Duration(soon.Hour()) * time.Hour
	b.meter.SetPolicy(uplink.Policy{Windows: []uplink.Window{{From: at, To: at + time.Minute}}})
	done := make(chan error, 1)
	go func() { done <- b.Complete(t.Context(), slot) }()
	s.want(t, c, "big", 500_000, 10)
	if err := b.Blocked(Prefetch); !errors.Is(err, ErrBudget) {
		t.Errorf("blocked: %v, want ErrBudget", err)
	}
	if held := b.Queue().Held; held[Prefetch] == "" || held[Demand] != "" {
		t.Errorf("status says %q", held)
	}
	if sent, _ := s.traffic(); sent > 70_000 {
		t.Errorf("%d bytes crossed for a read of 10", sent)
	}
	select {
	case err := <-done:
		t.Fatalf("complete outside of the window: %v", err)
	default:
	}
	b.meter.SetPolicy(uplink.Policy{})
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A table of contents that is cut again and again goes on where it was, also in
// another process.
func TestTableGoesOnAfterCutsAndRestarts(t *testing.T) {
	s := newShore(t)
	dir := t.TempDir()
	var cuts atomic.Int32
	var sent atomic.Int64
	table := int64(len(s.blob)) - s.at
	s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
		cuts.Add(1)
		http.ServeContent(&metered{&limited{w, r, int(table / 5), reset2}, &sent}, r, "", time.Time{}, bytes.NewReader(s.blob))
		return true
	})
	b := newBench(t, s, dir, s.at)
	if err := b.Announce(slot); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return cuts.Load() >= 2 })
	b.close(t)
	b = newBench(t, s, dir, s.at)
	s.want(t, b.openAfter(t, s, "two"), "two", 0, 100)
	if cuts.Load() > 10 {
		t.Errorf("%d requests for a table that comes in fifths", cuts.Load())
	}
}

func reset2(*http.Request) { panic(http.ErrAbortHandler) }

// openAfter opens a file once the table is here, with the shore well again.
func (b *bench) openAfter(t *testing.T, s *shore, name string) *Content {
	t.Helper()
	if _, err := b.Tree(t.Context(), slot); err != nil {
		t.Fatal(err)
	}
	s.setMood(nil)
	return b.open(t, name)
}

// After a restart the node goes on by itself with what was incomplete.
func TestResumeGoesOnByItself(t *testing.T) {
	s := newShore(t)
	dir := t.TempDir()
	b := newBench(t, s, dir, s.at)
	s.want(t, b.open(t, "two"), "two", 0, 10)
	b.idle(t)
	b.close(t)
	b = newBenchWith(t, s, dir, s.at, Options{Background: true, IdleAfter: 50 * time.Millisecond}, nil)
	images, err := b.catalog.Images()
	if err != nil || len(images) != 1 {
		t.Fatalf("%d images, %v", len(images), err)
	}
	if err := b.Resume(images...); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return b.completeness(t, slot).Complete() })
	if _, twice := s.traffic(); twice > 0 {
		t.Errorf("%d bytes crossed twice", twice)
	}
}
