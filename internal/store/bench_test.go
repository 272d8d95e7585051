package store

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/database"
	"github.com/airstream-io/airstream/internal/toc"
)

// filled returns a store's directory with n objects in its database, and trees.
// Objects' files are not made: what is measured doesn't look at them.
func filled(tb testing.TB, objects, trees, filesPerTree int) string {
	tb.Helper()
	dir := tb.TempDir()
	s, err := Open(dir, Options{FlushDelay: never, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		tb.Fatal(err)
	}
	for from := 0; from < objects; from += 20_000 {
		err = s.db.Update(func(tx *database.Tx) error {
			for i := from; i < min(from+20_000, objects); i++ {
				id := idOf(i)
				if err := tx.Put(bucketObjects, id[:], []byte{stateComplete}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			tb.Fatal(err)
		}
	}
	for i := range trees {
		var b strings.Builder
		b.WriteString(`{"version":1,"entries":[{"name":"d","type":"dir"}`)
		for k := range filesPerTree {
			fmt.Fprintf(&b, `,{"name":"d/some/where/file-%d-%d","type":"reg","size":20000,"offset":%d,"chunkSize":20000,"chunkDigest":%q}`, i, k, 10+100*k, chunk.Sum([]byte{byte(i), byte(k), byte(k >> 8)}))
		}
		b.WriteString(`]}`)
		tree, err := toc.Parse(strings.NewReader(b.String()), 1<<40)
		if err == nil {
			err = s.PutTree(digest.FromString(strconv.Itoa(i)), tree)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		tb.Fatal(err)
	}
	return dir
}

func idOf(i int) toc.ObjectID {
	return toc.ObjectID(chunk.Sum(binary.LittleEndian.AppendUint64(nil, uint64(i))))
}

// TestOpenIsQuick opens the store of a node with fifty images of twenty
// thousand files each.
func TestOpenIsQuick(t *testing.T) {
	if testing.Short() {
		t.Skip("writes a database of a million records")
	}
	dir := filled(t, 1_000_000, 0, 0)
	info, err := os.Stat(dir + "/store.db")
	must(t, err)
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began := time.Now()
	s := openQuiet(t, dir)
	took := time.Since(began)
	runtime.ReadMemStats(&after)
	t.Logf("opened a database of %d MB in %v, %d kB of heap", info.Size()>>20, took.Round(time.Millisecond), (after.TotalAlloc-before.TotalAlloc)>>10)
	if took > time.Second {
		t.Errorf("opening took %v", took)
	}
	if got := (after.TotalAlloc - before.TotalAlloc) >> 20; got > 20 {
		t.Errorf("opening took %d MB of heap", got)
	}
	must(t, s.Close())
}

func BenchmarkHasChunk(b *testing.B) {
	dir := filled(b, 200_000, 0, 0)
	s, err := Open(dir, Options{FlushDelay: never})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("stored", func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			i = (i + 7919) % 200_000
			if !s.HasChunk(idOf(i), 3, 1) {
				b.Fatal("missing")
			}
		}
	})
	b.Run("in a view", func(b *testing.B) {
		b.ReportAllocs()
		err := s.View(func(v View) error {
			i := 0
			for b.Loop() {
				i = (i + 7919) % 200_000
				if n, err := v.Missing(idOf(i), 3); n > 0 || err != nil {
					b.Fatal("missing", err)
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	})
	c := newContent(1, 1_000_000)
	o, err := s.Object(c.id, int64(len(c.data)), uint32(len(c.chunks)))
	if err != nil {
		b.Fatal(err)
	}
	b.Run("open", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if s.HasChunk(c.id, uint32(len(c.chunks)), 7) {
				b.Fatal("there")
			}
		}
	})
	if err := o.Close(); err != nil {
		b.Fatal(err)
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkFirstTree is what the first use of a layer's tree costs: mapping,
// hashing and checking twenty thousand entries.
func BenchmarkFirstTree(b *testing.B) {
	dir := filled(b, 0, 1, 20_000)
	s, err := Open(dir, Options{FlushDelay: never})
	if err != nil {
		b.Fatal(err)
	}
	name := digest.FromString("0").Encoded()
	for b.Loop() {
		if _, _, err := s.mapTree(name); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkPut(b *testing.B) {
	s, err := Open(b.TempDir(), Options{Reserve: 1 << 20, Limit: 1 << 40, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	data := make([]byte, 64<<10)
	k := toc.Chunk{ID: chunk.Sum(data), Size: uint32(len(data))}
	const chunks = 1000
	b.SetBytes(int64(len(data)))
	n := uint64(0)
	var o *Object
	for b.Loop() {
		if n%chunks == 0 {
			if o != nil {
				if err := o.Close(); err != nil {
					b.Fatal(err)
				}
			}
			if o, err = s.Object(idOf(int(n)), chunks*int64(len(data)), chunks); err != nil {
				b.Fatal(err)
			}
		}
		k.Offset = int64(n%chunks) * int64(len(data))
		if err := o.Put(uint32(n%chunks), k, data); err != nil {
			b.Fatal(err)
		}
		n++
	}
	if err := o.Close(); err != nil {
		b.Fatal(err)
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}
