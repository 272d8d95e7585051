//go:build !race

package toc

import (
	"fmt"
	"io"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"testing"
	"time"
)

// hugeTable streams a table of n files, each alone in a directory if alone is set,
// else a thousand in each.
func hugeTable(n int, alone bool) io.Reader {
	r, w := io.Pipe()
	go func() {
		_, err := io.WriteString(w, `{"version":1,"entries":[`)
		for i := 0; i < n && err == nil; i++ {
			dir := i / 1000
			if alone {
				dir = i
			}
			comma := ","
			if i == n-1 {
				comma = ""
			}
			_, err = fmt.Fprintf(w, `{"name":"usr/lib/python3/dist-packages/package%06d/module%06d.py","type":"reg","size":100,"modtime":"2024-01-01T00:00:00Z","mode":420,"offset":%d,"chunkSize":100,"chunkDigest":"sha256:%064x"}%s`, dir, i, 10+i*100, i, comma)
		}
		if err == nil {
			_, err = io.WriteString(w, "]}")
		}
		w.CloseWithError(err)
	}()
	return r
}

// peak runs f and returns the most memory that the heap took meanwhile, in
// bytes, with a collector that is as eager as under a memory limit.
func peak(f func()) uint64 {
	defer debug.SetGCPercent(debug.SetGCPercent(10))
	stop, done := make(chan struct{}), make(chan uint64)
	go func() {
		sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		var most uint64
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			metrics.Read(sample)
			most = max(most, sample[0].Value.Uint64())
			select {
			case <-stop:
				done <- most
				return
			case <-tick.C:
			}
		}
	}()
	f()
	close(stop)
	return <-done
}

// The largest real layers, and the most hostile tables that are not refused,
// must leave the daemon within its 150 MiB: 30 of them are its own.
func TestMemory(t *testing.T) {
	for name, in := range map[string]io.Reader{
		"as many as are allowed":    hugeTable(maxEntries-1000, false),
		"each in its own directory": hugeTable(maxEntries/2-10, true),
		"far too many":              hugeTable(3*maxEntries, false),
	} {
		t.Run(name, func(t *testing.T) {
			var err error
			most := peak(func() { _, err = Parse(in, 1<<40) })
			if tooMany := strings.HasPrefix(name, "far"); (err != nil) != tooMany {
				t.Fatal(err)
			}
			t.Logf("%d MiB", most>>20)
			if most > 120<<20 {
				t.Errorf("parsing took %d MiB, want 120 at most", most>>20)
			}
		})
	}
}
