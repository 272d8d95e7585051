package fetcher

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/store"
	"github.com/airstream-io/airstream/internal/toc"
)

// BenchmarkCompleteness asks as the status of a node with fifty images of
// 20,000 files does each second.
func BenchmarkCompleteness(b *testing.B) {
	f, slots := knowing(b, 50, 20_000)
	for _, slot := range slots {
		if _, err := f.Completeness(slot); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		for _, slot := range slots {
			if _, err := f.Completeness(slot); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkCount looks at the disk for one image of 20,000 files, half of which
// are here, as the first status after a restart does.
func BenchmarkCount(b *testing.B) {
	f, slots := knowing(b, 1, 20_000)
	for b.Loop() {
		f.Recount()
		if _, err := f.Completeness(slots...); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkArrived notes one chunk in fifty incomplete layers.
func BenchmarkArrived(b *testing.B) {
	f, slots := knowing(b, 50, 20_000)
	if _, err := f.Completeness(slots...); err != nil {
		b.Fatal(err)
	}
	p, _ := f.layers[slots[0]].pieceOf(1000)
	for b.Loop() {
		f.arrived(p)
	}
}

// knowing returns the fetcher of a node that has the tables of some layers and
// half of the first one's files.
func knowing(b *testing.B, layers, files int) (*Fetcher, []uint32) {
	b.Helper()
	dir := b.TempDir()
	log := slog.New(slog.DiscardHandler)
	s, err := store.Open(filepath.Join(dir, "store"), store.Options{Logger: log})
	if err != nil {
		b.Fatal(err)
	}
	c, err := catalog.Open(filepath.Join(dir, "catalog.db"), log)
	if err != nil {
		b.Fatal(err)
	}
	meter := uplink.NewMeter(log)
	reg := registry.New(registry.Options{Meter: meter, Logger: log})
	f := New(s, c, reg, meter, Options{Logger: log})
	b.Cleanup(func() {
		f.Close()
		reg.Close()
		if err := c.Close(); err != nil {
			b.Error(err)
		}
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	var slots []uint32
	for i := range layers {
		tree := treeOf(b, i, files)
		d := digest.FromString(fmt.Sprint("table ", i))
		if err := s.PutTree(d, tree); err != nil {
			b.Fatal(err)
		}
		m, err := json.Marshal(ocispec.Manifest{Layers: []ocispec.Descriptor{{
			MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString(fmt.Sprint("blob ", i)), Size: 1 << 40,
			Annotations: map[string]string{annotation.TOCDigest: d.String()},
		}}})
		if err != nil {
			b.Fatal(err)
		}
		known, err := c.Layers(src, m)
		if err != nil {
			b.Fatal(err)
		}
		slots = append(slots, known[0].Slot)
		if i == 0 {
			putHalf(b, s, tree)
		}
	}
	return f, slots
}

// content is what file k of layer i holds.
func content(i, k int) []byte { return fmt.Appendf(nil, "file %d of layer %d", k, i) }

func treeOf(b *testing.B, i, files int) *toc.Tree {
	b.Helper()
	type entry struct {
		Name        string `json:"name"`
		Type        string `json:"type"`
		Size        int64  `json:"size"`
		Offset      int64  `json:"offset"`
		ChunkDigest string `json:"chunkDigest"`
	}
	table := struct {
		Version int     `json:"version"`
		Entries []entry `json:"entries"`
	}{Version: 1}
	for k := range files {
		p := content(i, k)
		table.Entries = append(table.Entries, entry{fmt.Sprintf("dir%03d/file%d", k%100, k), "reg", int64(len(p)), int64(k * 100), chunk.Sum(p).String()})
	}
	j, err := json.Marshal(table)
	if err != nil {
		b.Fatal(err)
	}
	tree, err := toc.Parse(bytes.NewReader(j), 1<<40)
	if err != nil {
		b.Fatal(err)
	}
	return tree
}

// putHalf stores every second file.
func putHalf(b *testing.B, s *store.Store, tree *toc.Tree) {
	b.Helper()
	for c := uint32(0); c < uint32(tree.NumChunks()); c += 2 {
		entry := tree.ChunkFile(c)
		o, err := s.Object(tree.ObjectID(entry), tree.Attr(entry).Size, 1)
		if err == nil {
			err = o.Put(0, tree.Chunk(c), content(0, int(c)))
		}
		if err == nil {
			err = o.Close()
		}
		if err != nil {
			b.Fatal(err)
		}
		if c%512 == 0 { // or too many files are open
			if err := s.Flush(); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := s.Flush(); err != nil {
		b.Fatal(err)
	}
}
