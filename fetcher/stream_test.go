package fetcher

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/airstream-io/airstream/internal/artifact"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/trace"
)

// hotImage is an image of one layer with an artifact: its hot set is the larger
// part of three files.
type hotImage struct {
	*shore
	info   catalog.Layer
	ref    artifact.Ref
	toc    []byte
	hot    []byte
	frames []artifact.Frame

	asked atomic.Int32 // requests for the hot blob
	sent  atomic.Int64 // bytes of it
}

var hotReads = []struct {
	name string
	off  int64
	n    int
}{{"last", 200_000, 100}, {"big", 700_000, 100_000}, {"small/30", 0, 3000}, {"big", 0, 500_000}, {"two", 0, 100}}

func newHotImage(t *testing.T) *hotImage {
	t.Helper()
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	tree, err := b.Tree(t.Context(), slot)
	if err != nil {
		t.Fatal(err)
	}
	tr := &trace.Trace{Version: trace.Version, Layers: 1}
	for _, r := range hotReads {
		tr.Reads = append(tr.Reads, trace.Read{Path: r.name, Offset: r.off, Size: int64(r.n)})
	}
	m := trace.NewMatcher(tr)
	plan := trace.Plans(1, m.Order([]*trace.Match{m.Match(tree)}))[0]
	img := &hotImage{shore: s}
	if img.info, err = b.catalog.Layer(slot); err != nil {
		t.Fatal(err)
	}
	img.info.Hot = plan.String()
	var order artifact.Order
	order.Add(0, tree, plan)
	paths := trace.Paths(tree)
	var hot bytes.Buffer
	frames, err := artifact.WriteHot(t.Context(), &hot, order.Wanted(), func(_ context.Context, w artifact.Wanted) ([]byte, error) {
		return s.files[paths[tree.ChunkFile(w.Number)]][w.Chunk.Offset:][:w.Chunk.Size], nil
	})
	if err != nil {
		t.Fatal(err)
	}
	e := artifact.NewEncoder(order.Wanted(), frames)
	if err := e.Add(tree); err != nil {
		t.Fatal(err)
	}
	blob, root, err := e.Blob()
	if err != nil {
		t.Fatal(err)
	}
	img.toc, img.hot = blob, hot.Bytes()
	img.ref = artifact.Ref{TOC: artifact.BlobOf(blob), Root: artifact.BlobOf(blob[:root]), Hot: artifact.BlobOf(img.hot)}
	parsed, err := artifact.ParseRoot(blob[:root])
	if err != nil {
		t.Fatal(err)
	}
	if img.frames = parsed.Hot().Frames(); len(img.frames) < 4 {
		t.Fatalf("%d frames are too few for these tests", len(img.frames))
	}
	b.close(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.sent)
	s.requests = 0
	s.mood = img.serveBlobs(nil)
	return img
}

// serveBlobs answers requests for the artifact; change, if it isn't nil, is asked
// about the hot blob first.
func (img *hotImage) serveBlobs(change func(w http.ResponseWriter, r *http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Type", "application/octet-stream")
		switch {
		case strings.HasSuffix(r.URL.Path, img.ref.TOC.Digest):
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(img.toc))
		case strings.HasSuffix(r.URL.Path, img.ref.Hot.Digest):
			img.asked.Add(1)
			if change == nil || !change(w, r) {
				http.ServeContent(&hotSent{w, &img.sent}, r, "", time.Time{}, bytes.NewReader(img.hot))
			}
		default:
			return false
		}
		return true
	}
}

type hotSent struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (m *hotSent) Write(p []byte) (int, error) {
	n, err := m.ResponseWriter.Write(p)
	m.n.Add(int64(n))
	return n, err
}

// warmed waits until nothing of the hot set is missing.
func (b *bench) warmed(t *testing.T) { t.Helper(); b.settled(t, slot) }

func (img *hotImage) read(t *testing.T, b *bench) { t.Helper(); img.readIn(t, b, slot) }

func TestHotSetCrossesAsOneBlob(t *testing.T) {
	img := newHotImage(t)
	b := newBench(t, img.shore, t.TempDir(), img.at)
	if err := b.WarmFrom(src, img.ref, img.info); err != nil {
		t.Fatal(err)
	}
	b.warmed(t)
	img.read(t, b)
	if sent, _ := img.traffic(); sent > 0 {
		t.Errorf("%d bytes of the layer crossed", sent)
	}
	if img.asked.Load() > int32(len(img.frames)) || img.sent.Load() != img.ref.Hot.Size {
		t.Errorf("%d requests for the hot blob brought %d of %d bytes", img.asked.Load(), img.sent.Load(), img.ref.Hot.Size)
	}
	if c := b.Counts(); c.Waits > 0 {
		t.Errorf("%d reads waited for what was hot", c.Waits)
	}
}

func TestHotBlobThatCannotBeHad(t *testing.T) {
	for name, change := range map[string]func(*hotImage) func(http.ResponseWriter, *http.Request) bool{
		"gone": func(*hotImage) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, _ *http.Request) bool {
				http.Error(w, "unknown blob", http.StatusNotFound)
				return true
			}
		},
		"damaged": func(img *hotImage) func(http.ResponseWriter, *http.Request) bool {
			for i := range img.hot {
				img.hot[i] ^= 1
			}
			return nil
		},
		"of another image": func(img *hotImage) func(http.ResponseWriter, *http.Request) bool {
			img.ref.Root = artifact.BlobOf(img.toc[:len(img.toc)/2])
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			img := newHotImage(t)
			img.setMood(img.serveBlobs(change(img)))
			b := newBench(t, img.shore, t.TempDir(), img.at)
			if err := b.WarmFrom(src, img.ref, img.info); err != nil {
				t.Fatal(err)
			}
			b.warmed(t)
			img.read(t, b)
			if _, twice := img.traffic(); twice > 0 {
				t.Errorf("%d bytes of the layer crossed twice", twice)
			}
		})
	}
}

// A stream that breaks goes on at the frame that it was in.
func TestHotBlobGoesOn(t *testing.T) {
	img := newHotImage(t)
	const missing = 1000 // bytes, of the last frame of the first request
	img.setMood(img.serveBlobs(func(w http.ResponseWriter, r *http.Request) bool {
		if img.asked.Load() > 1 {
			return false
		}
		var from, to int
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); err != nil {
			t.Error(err)
		}
		w.Header().Set("Content-Length", fmt.Sprint(to+1-from))
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(img.hot)))
		w.WriteHeader(http.StatusPartialContent)
		n, _ := w.Write(img.hot[from : to+1-missing])
		img.sent.Add(int64(n))
		panic(http.ErrAbortHandler)
	}))
	b := newBench(t, img.shore, t.TempDir(), img.at)
	if err := b.WarmFrom(src, img.ref, img.info); err != nil {
		t.Fatal(err)
	}
	b.warmed(t)
	img.read(t, b)
	if sent, _ := img.traffic(); sent > 0 {
		t.Errorf("%d bytes of the layer crossed", sent)
	}
	largest := slices.MaxFunc(img.frames, func(a, b artifact.Frame) int { return cmp.Compare(a.Size, b.Size) }).Size
	if again := img.sent.Load() - img.ref.Hot.Size; again <= 0 || again > largest {
		t.Errorf("%d bytes crossed twice, a frame has at most %d", again, largest)
	}
}

// Who reads what the stream is about to bring waits for the stream.
func TestReaderRidesWithTheHotBlob(t *testing.T) {
	img := newHotImage(t)
	begun, goOn := make(chan struct{}), make(chan struct{})
	begin, let := sync.OnceFunc(func() { close(begun) }), sync.OnceFunc(func() { close(goOn) })
	defer let()
	img.setMood(img.serveBlobs(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Length", fmt.Sprint(len(img.hot)))
		w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(img.hot)-1, len(img.hot)))
		w.WriteHeader(http.StatusPartialContent)
		_ = http.NewResponseController(w).Flush()
		begin()
		<-goOn
		_, _ = w.Write(img.hot)
		return true
	}))
	b := newBench(t, img.shore, t.TempDir(), img.at)
	if err := b.WarmFrom(src, img.ref, img.info); err != nil {
		t.Fatal(err)
	}
	<-begun
	// Of the first frame: what comes late is asked for by itself.
	tree, err := b.Tree(t.Context(), slot)
	if err != nil {
		t.Fatal(err)
	}
	first := img.frames[0].Chunks[0].First
	name, k := trace.Paths(tree)[tree.ChunkFile(first)], tree.Chunk(first)
	c := b.openIn(t, slot, name)
	done := make(chan struct{})
	go func() {
		defer close(done)
		img.want(t, c, name, k.Offset, int(k.Size))
	}()
	waitFor(t, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return slices.ContainsFunc(b.carried(), func(fl *flight) bool { return fl.riding != nil })
	})
	let()
	<-done
	b.warmed(t)
	if sent, _ := img.traffic(); sent > 0 {
		t.Errorf("%d bytes of the layer crossed beside the stream", sent)
	}
}

func (b *bench) carried() (list []*flight) {
	for _, fl := range b.queue.flights {
		list = append(list, fl)
	}
	return list
}

// What is here already is not fetched again as a part of the hot blob.
func TestHotBlobOfWhatIsHere(t *testing.T) {
	img := newHotImage(t)
	dir := t.TempDir()
	b := newBench(t, img.shore, dir, img.at)
	if err := b.Complete(t.Context(), slot); err != nil {
		t.Fatal(err)
	}
	if err := b.WarmFrom(src, img.ref, img.info); err != nil {
		t.Fatal(err)
	}
	b.warmed(t)
	if n := img.asked.Load(); n > 0 {
		t.Errorf("the hot blob was asked for %d times", n)
	}
}

// A layer that is forgotten while its hot set crosses stays forgotten.
func TestForgetWhileTheHotBlobCrosses(t *testing.T) {
	img := newHotImage(t)
	begun := make(chan struct{})
	img.setMood(img.serveBlobs(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", fmt.Sprint(len(img.hot)))
		w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(img.hot)-1, len(img.hot)))
		w.WriteHeader(http.StatusPartialContent)
		_ = http.NewResponseController(w).Flush()
		close(begun)
		<-r.Context().Done()
		return true
	}))
	b := newBench(t, img.shore, t.TempDir(), img.at)
	if err := b.WarmFrom(src, img.ref, img.info); err != nil {
		t.Fatal(err)
	}
	<-begun
	if err := b.Forget(slot); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.layers)+len(b.queue.transfers)+len(b.queue.flights) > 0 {
		t.Errorf("%d layers, %d transfers, %d flights are left", len(b.layers), len(b.queue.transfers), len(b.queue.flights))
	}
}

// silentPusher is a Pusher that never brings what it is asked for.
type silentPusher struct{}

func (silentPusher) Ask(Class, uint32, []uint32) {}
func (silentPusher) Came(uint32, uint32)         {}

// What a proxy pushes is not fetched from the registry as well; when the proxy
// is gone, the rest is.
func TestHotBlobIsLeftToTheProxy(t *testing.T) {
	for name, late := range map[string]bool{"before": false, "meanwhile": true} {
		t.Run(name, func(t *testing.T) {
			img := newHotImage(t)
			begun := make(chan struct{}, 1000)
			var ended atomic.Int32
			img.setMood(img.serveBlobs(func(_ http.ResponseWriter, r *http.Request) bool {
				begun <- struct{}{}
				if late {
					<-r.Context().Done()
					ended.Add(1)
				}
				return late
			}))
			b := newBench(t, img.shore, t.TempDir(), img.at)
			if !late {
				b.Cover(silentPusher{}, true, slot)
			}
			if err := b.WarmFrom(src, img.ref, img.info); err != nil {
				t.Fatal(err)
			}
			if late {
				<-begun
				b.Cover(silentPusher{}, true, slot)
				waitFor(t, func() bool { return ended.Load() > 0 && ended.Load() == img.asked.Load() })
			}
			asked := img.asked.Load()
			time.Sleep(100 * time.Millisecond) // for requests that should not be
			if n := img.asked.Load(); n != asked || !late && n > 0 {
				t.Errorf("the hot blob was asked for %d times while a proxy pushed", n)
			}
			b.Uncover(slot)
			b.warmed(t)
			img.read(t, b)
			if _, twice := img.traffic(); twice > 0 {
				t.Errorf("%d bytes of the layer crossed twice", twice)
			}
		})
	}
}
