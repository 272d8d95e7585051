package proxy

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/link"
)

// drain throws away what comes.
type drain struct {
	*node
	bytes atomic.Int64
}

func (d *drain) Chunk(_ context.Context, _ int, _ uint32, content []byte) error {
	d.bytes.Add(int64(len(content)))
	return nil
}

// peak returns how much the heap grew while f ran, in bytes.
func peak(f func()) int64 {
	defer debug.SetGCPercent(debug.SetGCPercent(5)) // the registry of the test is in this heap, too
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before, most := m.HeapAlloc, m.HeapAlloc
	done := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapAlloc)
			}
		}
	})
	f()
	close(done)
	watch.Wait()
	return int64(most) - int64(before)
}

// What a pull takes of the memory does not grow with the image, of both ends
// together.
func TestMemoryDoesNotGrowWithTheImage(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector takes memory of its own")
	}
	s := newShore(t)
	grew := map[int]int64{}
	for _, size := range []int{4, 64} { // MiB
		img := s.push(t, fmt.Sprintf("team/size%d", size), "1", []file{{name: "data", content: noise(uint64(size), size<<20)}})
		p := serve(t, t.TempDir(), "127.0.0.1:0", Options{CacheLimit: 16 << 20})
		sess := dial(t, p.addr, "vessel-1", nil)
		d := &drain{node: newNode()}
		began := time.Now()
		grew[size] = peak(func() { wait(t, sess.Pull(all(img), d)) })
		t.Logf("%d MiB: the heap grew by %.1f MiB; %.0f MB/s", size, float64(grew[size])/(1<<20), float64(d.bytes.Load())/1e6/time.Since(began).Seconds())
		if used, _, _ := p.cache.usage(); used > 16<<20 {
			t.Errorf("the cache has %d bytes", used)
		}
		p.stop()
	}
	if grew[64] > grew[4]+24<<20 {
		t.Errorf("the heap grew by %d bytes for 4 MiB, %d for 64 MiB", grew[4], grew[64])
	}
}

// Nor does what reading a layer takes that was never converted.
func TestIndexingDoesNotTakeMemoryByTheImage(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector takes memory of its own")
	}
	s := newShore(t)
	grew := map[int]int64{}
	for _, size := range []int{4, 64} { // MiB
		raw := plainTar(t, []file{{name: "data", content: noise(uint64(size), size<<20)}})
		img := s.pushPlain(t, fmt.Sprintf("team/plain%d", size), "1", plainLayer{mediaType: ocispec.MediaTypeImageLayerGzip, raw: raw})
		p := serve(t, t.TempDir(), "127.0.0.1:0", Options{CacheLimit: 140 << 20})
		sess := dial(t, p.addr, "vessel-1", nil)
		req := wantAll(img.ref)
		req.Depth = link.Names
		n := newNode()
		began := time.Now()
		grew[size] = peak(func() { wait(t, sess.Pull(req, n)) })
		took := time.Since(began)
		if len(n.tables) != 1 {
			t.Fatalf("%d tables came", len(n.tables))
		}
		t.Logf("%d MiB: the heap grew by %.1f MiB; %.0f MB/s; an outline of %d bytes", size, float64(grew[size])/(1<<20), float64(len(raw))/1e6/took.Seconds(), len(n.tables[0].Body))
		p.stop()
	}
	if grew[64] > grew[4]+24<<20 {
		t.Errorf("the heap grew by %d bytes for 4 MiB, %d for 64 MiB", grew[4], grew[64])
	}
}

// A session that says nothing takes little, of both ends.
func TestIdleSessionsAreCheap(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector takes memory of its own")
	}
	const sessions = 200
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{})
	testAuthority()
	runtime.GC()
	runtime.GC() // what other tests left in pools
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range sessions {
		dial(t, p.addr, fmt.Sprintf("vessel-%d", i), nil)
	}
	await(t, "all sessions", func() bool { return p.numSessions() == sessions })
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := (int64(after.HeapAlloc+after.StackInuse) - int64(before.HeapAlloc+before.StackInuse)) / sessions
	t.Logf("%d KiB each, both ends", each>>10)
	if each > 300<<10 {
		t.Errorf("an idle session takes %d bytes, of both ends", each)
	}
}

// Fifty nodes are sent an image at once on one core while two hundred are idle: each
// gets what makes a slow link full, and memory is bounded. Both ends share the core here.
func TestFiftyBusyNodesOnOneCore(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector takes memory and time of its own")
	}
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	s := newShore(t)
	img := s.push(t, "team/large", "1", []file{{name: "data", content: noise(7, 2<<20)}})
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{})
	for i := range 200 {
		dial(t, p.addr, fmt.Sprintf("idle-%d", i), nil)
	}
	var busy []*link.Session
	for i := range 50 {
		busy = append(busy, dial(t, p.addr, fmt.Sprintf("busy-%d", i), nil))
	}
	await(t, "all sessions", func() bool { return p.numSessions() == 250 })
	wait(t, busy[0].Pull(all(img), &drain{node: newNode()})) // it is in the cache
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	began := time.Now()
	var bytes atomic.Int64
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before := m.Sys
	var group sync.WaitGroup
	for _, sess := range busy[1:] {
		group.Go(func() {
			d := &drain{node: newNode()}
			if err := sess.Pull(all(img), d).Wait(t.Context()); err != nil {
				t.Error(err)
			}
			bytes.Add(d.bytes.Load())
		})
	}
	group.Wait()
	runtime.ReadMemStats(&m)
	grew := m.Sys - before
	each := float64(bytes.Load()) / 49 / time.Since(began).Seconds()
	t.Logf("%.0f kB/s to each of 49, memory grew by %d MiB", each/1e3, grew>>20)
	if each < 125_000 {
		t.Errorf("each node got %.0f bytes/s, less than a link of 1 Mbit/s carries", each)
	}
	if grew > 192<<20 { // 4 MiB each, of both ends, with what is in flight between them
		t.Errorf("memory grew by %d bytes", grew)
	}
}

// Fifty nodes are sent an image at once, and two hundred are idle.
func BenchmarkFiftyBusyNodes(b *testing.B) {
	s := newShore(b)
	img := app(b, s)
	p := serve(b, b.TempDir(), "127.0.0.1:0", Options{})
	for i := range 200 {
		dial(b, p.addr, fmt.Sprintf("idle-%d", i), nil)
	}
	var busy []*link.Session
	for i := range 50 {
		busy = append(busy, dial(b, p.addr, fmt.Sprintf("busy-%d", i), nil))
	}
	await(b, "all sessions", func() bool { return p.numSessions() == 250 })
	var bytes atomic.Int64
	b.ResetTimer()
	for b.Loop() {
		var group sync.WaitGroup
		for _, sess := range busy {
			group.Go(func() {
				d := &drain{node: newNode()}
				pull := sess.Pull(all(img), d)
				wait(b, pull)
				pull.Cancel()
				bytes.Add(d.bytes.Load())
			})
		}
		group.Wait()
	}
	b.ReportMetric(float64(bytes.Load())/1e6/b.Elapsed().Seconds(), "MB/s")
	b.ReportMetric(float64(bytes.Load())/(64<<10)/b.Elapsed().Seconds(), "chunks/s")
}
