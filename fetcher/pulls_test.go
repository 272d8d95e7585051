package fetcher

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// fleet serves many layers by their digest.
type fleet struct {
	*shore
	layers map[string]*shore

	mu        sync.Mutex
	now, most int // guarded by mu; requests at a time
}

func newFleet(t *testing.T, n int) *fleet {
	t.Helper()
	f := &fleet{shore: newShore(t), layers: map[string]*shore{}}
	common := random(1000, 30_000)
	for i := range n {
		l, err := layerOf([]string{"common", "own"}, map[string][]byte{"common": common, "own": random(uint64(2000+i), 40_000)})
		if err != nil {
			t.Fatal(err)
		}
		f.layers[digest.FromBytes(l.blob).String()] = l
	}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	f.Server = server
	return f
}

func (f *fleet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.now++
	f.most = max(f.most, f.now)
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.now--
	}()
	if l := f.layers[path.Base(r.URL.Path)]; l != nil {
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(l.blob))
		return
	}
	f.serve(w, r)
}

// Two hundred images at once: each is read and completed, what they share
// crosses once, a registry is not overrun, and memory stays small.
func TestTwoHundredPulls(t *testing.T) {
	const pulls = 200
	fl := newFleet(t, pulls)
	b := newBench(t, fl.shore, t.TempDir(), fl.at)
	heap := watchHeap()
	var wg sync.WaitGroup
	i := 0
	for _, l := range fl.layers {
		src := src
		src.Repo = fmt.Sprint("app", i)
		slot := b.learn(t, l, src, l.at)
		i++
		wg.Go(func() {
			l.want(t, b.openIn(t, slot, "own"), "own", 0, 40_000)
			if err := b.Complete(t.Context(), slot); err != nil {
				t.Error(err)
			}
			if c := b.completeness(t, slot); !c.Complete() {
				t.Errorf("slot %d: %+v", slot, c)
			}
		})
	}
	wg.Wait()
	more := heap()
	if n := fl.most; n > maxDemands+maxTables+16 {
		t.Errorf("%d requests at a time at one registry", n)
	}
	if c := b.Counts(); c.Chunks != pulls+1 {
		t.Errorf("%d chunks arrived, want one for each layer and one that all share", c.Chunks)
	}
	if more > 60<<20 {
		t.Errorf("the heap grew by %d bytes", more)
	}
	t.Logf("at most %d requests at a time, %d kB of heap", fl.most, more>>10)
}

// watchHeap returns a function that tells by how many bytes the heap grew at
// most since.
func watchHeap() func() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	before := int64(m.HeapAlloc)
	stop, most := make(chan struct{}), make(chan int64)
	go func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		peak := int64(0)
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak = max(peak, int64(m.HeapAlloc)-before)
			select {
			case <-stop:
				most <- peak
				return
			case <-tick.C:
			}
		}
	}()
	return func() int64 { close(stop); return <-most }
}

// Layers that others have cut into large chunks are read and completed within
// bounds of memory, readers before anything else.
func TestLargeChunksTakeBoundedMemory(t *testing.T) {
	file := bytes.Repeat(random(5, 1<<20), 64)
	for i := range 16 { // else all chunks are one
		file[i*4<<20] = byte(i)
	}
	proto, err := layerIn(4<<20, []string{"file"}, map[string][]byte{"file": file})
	if err != nil {
		t.Fatal(err)
	}
	s := proto.open(t)
	b := newBench(t, s, t.TempDir(), s.at)
	c := b.open(t, "file")
	heap := watchHeap()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := b.Complete(t.Context(), slot); err != nil {
			t.Error(err)
		}
	})
	for i := range 16 {
		wg.Go(func() { s.want(t, c, "file", int64(i)*4<<20+1000, 5000) })
	}
	wg.Wait()
	if more := heap(); more > 2*chunkRoom+40<<20 {
		t.Errorf("the heap grew by %d bytes", more)
	}
}
