package cache

import (
	"fmt"
	"strings"
	"testing"

	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/toc"
)

// BenchmarkMark marks the objects of fifty layers of twenty thousand files each.
func BenchmarkMark(b *testing.B) {
	var text strings.Builder
	text.WriteString(`{"version":1,"entries":[{"name":"d","type":"dir"}`)
	for k := range 20_000 {
		fmt.Fprintf(&text, `,{"name":"d/file-%d","type":"reg","size":20000,"offset":%d,"chunkSize":20000,"chunkDigest":%q}`, k, 10+100*k, chunk.Sum([]byte{byte(k), byte(k >> 8)}))
	}
	text.WriteString(`]}`)
	tree, err := toc.Parse(strings.NewReader(text.String()), 1<<40)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		var m marks
		for range 50 {
			if m, err = m.markLayer(b.Context(), tree, 1, catalog.Layer{}, nil); err != nil {
				b.Fatal(err)
			}
		}
		if m = m.settle(); len(m) != 20_000 {
			b.Fatal(len(m))
		}
	}
}
