package fetcher

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func TestReadBringsWhatIsReadAndNothingTwice(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	c := b.open(t, "big")
	s.want(t, c, "big", 500_000, 1000)
	if sent, _ := s.traffic(); sent == 0 || sent == len(s.blob) {
		t.Errorf("%d of %d bytes crossed for a read of 1000", sent, len(s.blob))
	}
	s.want(t, c, "big", 0, len(s.files["big"]))
	s.want(t, b.open(t, "small/07"), "small/07", 100, 2900)
	for range 3 {
		s.want(t, c, "big", 1<<20-10, 10)
	}
	if _, twice := s.traffic(); twice > 0 {
		t.Errorf("%d bytes crossed twice", twice)
	}
	if _, err := c.ReadAt(t.Context(), make([]byte, 1), 1<<20); !errors.Is(err, io.EOF) {
		t.Errorf("behind the end: %v", err)
	}
	if c.Complete() != nil {
		t.Error("a trace of the first start would miss what is read of the file")
	}
}

func TestWhatCrossedSurvivesARestartWithoutALink(t *testing.T) {
	s := newShore(t)
	dir := t.TempDir()
	b := newBench(t, s, dir, s.at)
	if err := b.Complete(t.Context(), slot); err != nil {
		t.Fatal(err)
	}
	if sent, twice := s.traffic(); twice > 0 || sent == 0 {
		t.Errorf("%d bytes crossed, %d of them twice", sent, twice)
	}
	b.close(t)
	before := s.asked()
	s.setMood(func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) })
	b = newBench(t, s, dir, s.at)
	if missing, total, ok, err := b.Missing(slot); missing != 0 || total == 0 || !ok && err != nil {
		// The tree may still be on its way from the disk.
		if _, terr := b.Tree(t.Context(), slot); terr != nil {
			t.Fatal(terr)
		}
	}
	for name, want := range s.files {
		s.want(t, b.open(t, name), name, 0, len(want))
	}
	if err := b.Complete(t.Context(), slot); err != nil {
		t.Error(err)
	}
	if n := s.asked() - before; n != 0 {
		t.Errorf("%d requests for what is here", n)
	}
	if b.open(t, "big").Complete() == nil {
		t.Error("a file that was read whole is not complete")
	}
}

func TestManyReadersOfOneChunkAskOnce(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	c := b.open(t, "big")
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { s.want(t, c, "big", 10, 1000) })
	}
	wg.Wait()
	if n := b.Counts().Demands; n != 1 {
		t.Errorf("%d requests for one chunk", n)
	}
}

func TestInterruptedReaderDisturbsNobody(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	c := b.open(t, "big")
	hold := make(chan struct{})
	s.setMood(func(_ http.ResponseWriter, r *http.Request) bool {
		select {
		case <-hold:
		case <-r.Context().Done():
		}
		return false
	})
	b.meter.MinStall = time.Minute
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() {
		_, err := c.ReadAt(ctx, make([]byte, 10), 0)
		gone <- err
	}()
	var wg sync.WaitGroup
	wg.Go(func() { s.want(t, c, "big", 0, 10) })
	waitFor(t, func() bool { return b.Counts().Waits == 2 })
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	close(hold)
	wg.Wait()
	if n := b.Counts().Demands; n != 1 {
		t.Errorf("%d requests, want 1: the interrupted reader's went on for the other", n)
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatal("waited 20 s in vain")
		}
		time.Sleep(time.Millisecond)
	}
}

// Each attempt brings some bytes and breaks. What came must not cross again.
func TestBrokenConnectionsGoOnWhereTheyWere(t *testing.T) {
	for name, fault := range map[string]func(r *http.Request){
		"cut":   func(*http.Request) { panic(http.ErrAbortHandler) },
		"stall": func(r *http.Request) { <-r.Context().Done() },
	} {
		t.Run(name, func(t *testing.T) {
			s := newShore(t)
			b := newBench(t, s, t.TempDir(), s.at)
			if _, err := b.Tree(t.Context(), slot); err != nil {
				t.Fatal(err)
			}
			var broken atomic.Int32
			s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
				if broken.Add(1) > 4 {
					return false
				}
				http.ServeContent(&limited{w, r, 100_000, fault}, r, "", time.Time{}, &counter{s: s, r: bytes.NewReader(s.blob)})
				return true
			})
			c := b.open(t, "big")
			for off := int64(0); off < 1<<20; off += 128 << 10 {
				s.want(t, c, "big", off, 128<<10)
			}
			if broken.Load() < 5 {
				t.Errorf("only %d requests: the fault was not tried", broken.Load())
			}
			// A broken range may repeat the one chunk that was cut in two.
			if got := b.Counts().Chunks; got > 40+2+16+5 {
				t.Errorf("%d chunks arrived", got)
			}
		})
	}
}

// limited passes n bytes of a body on and then breaks.
type limited struct {
	http.ResponseWriter
	r     *http.Request
	n     int
	fault func(r *http.Request)
}

func (l *limited) Write(p []byte) (int, error) {
	if len(p) < l.n {
		l.n -= len(p)
		return l.ResponseWriter.Write(p)
	}
	if _, err := l.ResponseWriter.Write(p[:l.n]); err != nil {
		return 0, err
	}
	if err := http.NewResponseController(l.ResponseWriter).Flush(); err != nil {
		return 0, err
	}
	l.fault(l.r)
	return 0, io.ErrClosedPipe
}

func TestReadWaitsForTheLink(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	c := b.open(t, "two")
	var refusals atomic.Int32
	s.setMood(func(w http.ResponseWriter, _ *http.Request) bool {
		switch refusals.Add(1) {
		case 1:
			panic(http.ErrAbortHandler)
		case 2:
			http.Error(w, "come back", http.StatusServiceUnavailable)
			return true
		case 3: // even what looks final may pass
			http.Error(w, "never heard of it", http.StatusNotFound)
			return true
		}
		return false
	})
	s.want(t, c, "two", 0, 100_000)
	if refusals.Load() < 4 {
		t.Errorf("%d requests, want 4", refusals.Load())
	}
}

func TestWrongBytesAreNeverServed(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	b.meter.MinStall = time.Minute // an answer that is given up unread is no lie
	c := b.open(t, "big")
	good := s.blob
	bad := append([]byte(nil), good...)
	for i := 0; i < int(s.at); i += 1000 {
		bad[i] ^= 0x10
	}
	var lies atomic.Int32
	s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
		if lies.Add(1) > 2 {
			return false
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(bad))
		return true
	})
	s.want(t, c, "big", 0, 300_000)
	if b.Counts().Bad == 0 {
		t.Error("no bad chunk was counted")
	}
}

func TestSourceWithoutRangesSendsALayerOnce(t *testing.T) {
	s := newShore(t)
	var bytesSent atomic.Int64
	s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
		r.Header.Del("Range")
		http.ServeContent(&metered{w, &bytesSent}, r, "", time.Time{}, bytes.NewReader(s.blob))
		return true
	})
	b := newBench(t, s, t.TempDir(), s.at)
	for _, name := range []string{"last", "two", "small/33", "big"} {
		s.want(t, b.open(t, name), name, 0, len(s.files[name]))
	}
	if err := b.Complete(t.Context(), slot); err != nil {
		t.Error(err)
	}
	// The answer that showed it, as far as it was sent, and the blob itself.
	if n := bytesSent.Load(); n > 2*int64(len(s.blob)) {
		t.Errorf("%d bytes were sent of a blob of %d", n, len(s.blob))
	}
}

// metered counts what is written of a body.
type metered struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (m *metered) Write(p []byte) (int, error) {
	m.n.Add(int64(len(p)))
	return m.ResponseWriter.Write(p)
}

// What was pulled whole needs no link to be served lazily.
func TestBlobThatIsHereWholeIsReadFromDisk(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	if _, err := readBlob(t.Context(), b, digest.FromBytes(s.blob), int64(len(s.blob))); err != nil {
		t.Fatal(err)
	}
	before := s.asked()
	s.want(t, b.open(t, "last"), "last", 0, 300_000)
	if n := s.asked() - before; n != 0 {
		t.Errorf("%d requests for what is here", n)
	}
}

func TestTableIsFoundWithHintWithoutAndDespiteIt(t *testing.T) {
	for name, hint := range map[string]func(s *shore) int64{
		"right hint": func(s *shore) int64 { return s.at },
		"no hint":    func(*shore) int64 { return 0 },
		"wrong hint": func(s *shore) int64 { return s.at - 17 },
	} {
		t.Run(name, func(t *testing.T) {
			s := newShore(t)
			b := newBench(t, s, t.TempDir(), hint(s))
			s.want(t, b.open(t, "two"), "two", 0, 100)
		})
	}
}

func TestTableThatIsNotTheManifestsIsRefused(t *testing.T) {
	s := newShore(t)
	s.toc = digest.FromString("another")
	b := newBench(t, s, t.TempDir(), s.at)
	if _, err := b.Tree(t.Context(), slot); !errors.Is(err, ErrBadTable) {
		t.Errorf("got %v, want ErrBadTable", err)
	}
}

func TestUnknownSlot(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	if _, err := b.Tree(t.Context(), 99); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}

func TestDiskThatCannotStoreFailsTheRead(t *testing.T) {
	s := newShore(t)
	dir := t.TempDir()
	b := newBench(t, s, dir, s.at)
	c := b.open(t, "two")
	last := b.entry(t, "last")
	objects := filepath.Join(dir, "store", "objects")
	if err := errors.Join(os.RemoveAll(objects), os.WriteFile(objects, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Open(t.Context(), slot, last); err == nil {
		t.Error("an object was opened on a disk without room for it")
	}
	s.want(t, c, "two", 0, 100) // its file is open: nothing else is disturbed
}

func TestCompleteAndReadersTogether(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := b.Complete(t.Context(), slot); err != nil {
				t.Error(err)
			}
		})
	}
	for name, want := range s.files {
		c := b.open(t, name)
		wg.Go(func() { s.want(t, c, name, 0, len(want)) })
	}
	wg.Wait()
	if missing, total, ok, err := b.Missing(slot); missing != 0 || total < 1<<20 || !ok || err != nil {
		t.Errorf("%d of %d missing, %v, %v", missing, total, ok, err)
	}
	if _, twice := s.traffic(); twice > 0 {
		t.Errorf("%d bytes crossed twice", twice)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue.flights)+len(b.queue.waiting)+len(b.queue.walks) != 0 {
		t.Errorf("left in the queue: %d flights, %d waiting, %d walks", len(b.queue.flights), len(b.queue.waiting), len(b.queue.walks))
	}
}

func TestBackgroundFillsWhenNobodyWaits(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	b.opts.Background, b.opts.IdleAfter = true, 50*time.Millisecond
	if err := b.Fill(slot); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool {
		missing, _, ok, err := b.Missing(slot)
		return ok && err == nil && missing == 0
	})
}

func TestInterruptedCompleteKeepsWhatCame(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	ctx, cancel := context.WithCancel(t.Context())
	var n atomic.Int32
	s.setMood(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.Header.Get("Range"), "bytes=") && n.Add(1) == 6 {
			cancel()
		}
		return false
	})
	if err := b.Complete(ctx, slot); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want context.Canceled", err)
	}
	if err := b.Complete(t.Context(), slot); err != nil {
		t.Fatal(err)
	}
	if _, twice := s.traffic(); twice > 0 {
		t.Errorf("%d bytes crossed twice", twice)
	}
}
