package artifact

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
)

// maxBeforeStart is what a node may have to fetch of an image with 20,000
// entries, besides the hot set itself, before its first start: bytes.
const maxBeforeStart = 150_000

var (
	words = []string{
		"index", "util", "parse", "stream", "core", "lib", "test", "http", "client", "server", "error", "buffer", "async", "promise", "types", "config", "main", "common", "base", "node", "json", "path", "file", "event", "proxy", "cache", "cookie", "crypto", "date", "debug", "encode", "format", "glob", "hash", "inherits", "iterator", "lodash", "merge", "option", "query", "regexp", "router", "schema", "symbol", "table", "token", "value", "walk", "write", "yaml",
	}
	endings = []string{".js", ".js", ".js", ".py", ".so", ".json", ".md", ".d.ts", ".mo", ".map"}
)

// realistic is an image as programs in packages make it: six layers, some 20,000
// entries in directories of a dozen, sizes spread over four orders of magnitude,
// compressed to about a third, times by package. Names have as many random words
// as real ones have; of the trees measured (see docs/formats.md) no other is
// harder to compress.
func realistic(tb testing.TB) (trees []*toc.Tree, plans []trace.Plan) {
	tb.Helper()
	r := rand.New(rand.NewPCG(6, 6))
	word := func() string { return words[r.IntN(len(words))] }
	size := func() int64 { return int64(math.Exp(r.NormFloat64()*1.6 + 8)) }
	for l := range 6 {
		var rows []row
		offset := int64(512)
		for len(rows) < 3600 {
			pkg := fmt.Sprintf("usr/lib/modules-%d/%s-%s%d", l, word(), word(), r.IntN(10))
			when := time.Unix(1.7e9+r.Int64N(4e7), 0).UTC().Format(time.RFC3339)
			for range 1 + r.IntN(3) {
				dir := pkg + "/" + word()
				rows = append(rows, row{Name: dir, Type: "dir", Mode: 0o755, ModTime: when})
				for range 4 + r.IntN(12) {
					e := row{Name: fmt.Sprintf("%s/%s-%s%s", dir, word(), word(), endings[r.IntN(len(endings))]), Type: "reg", Mode: 0o644, ModTime: when, Size: size()}
					for at := int64(0); at < e.Size; at += chunk.DefaultSize {
						e.ChunkOffset, e.ChunkSize = at, min(chunk.DefaultSize, e.Size-at)
						e.ChunkDigest = id(fmt.Sprint(r.Uint64()))
						e.Offset = offset
						offset += 300 + int64(float64(e.ChunkSize)*(0.2+0.3*r.Float64()))
						rows = append(rows, e)
						e.Type = "chunk"
					}
				}
			}
		}
		tree := parse(tb, rows...)
		trees = append(trees, tree)
		var plan trace.Plan // one directory in forty: some 700 chunks, as Python's
		for m := 0; m+8 < tree.NumMembers(); m += 320 {
			first, last := tree.Member(uint32(m)), tree.Member(uint32(m+8))
			plan = append(plan, trace.Run{Rank: r.Uint32N(100), Offset: first.Offset, Size: last.End - first.Offset})
		}
		plans = append(plans, plan)
	}
	return trees, plans
}

func TestSizeBeforeTheFirstStart(t *testing.T) {
	trees, plans := realistic(t)
	entries, chunks := 0, 0
	for _, tree := range trees {
		entries += tree.Len()
		chunks += tree.NumChunks()
	}
	img := encode(t, trees, plans)
	bytes := img.root * 20_000 / entries
	t.Logf("%d entries, %d chunks, %d of them hot: a root of %d bytes, and %d in pages; %d for 20,000 entries", entries, chunks, len(img.wanted), img.root, len(img.blob)-img.root, bytes)
	if bytes > maxBeforeStart {
		t.Errorf("%d bytes for 20,000 entries, want at most %d", bytes, maxBeforeStart)
	}
	root, err := ParseRoot(img.blob[:img.root])
	if err != nil {
		t.Fatal(err)
	}
	known := 0
	for i, tree := range trees {
		got, err := root.Tree(i, payload, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got.Len() != tree.Len() {
			t.Fatal("entries are missing")
		}
		for c := range uint32(got.NumChunks()) {
			if got.Known(got.ChunkFile(c)) {
				known++
			}
		}
	}
	t.Logf("the root knows %d chunks", known)
}

func BenchmarkEncode(b *testing.B) {
	trees, plans := realistic(b)
	b.ReportAllocs()
	for b.Loop() {
		encode(b, trees, plans)
	}
}

func BenchmarkParseRoot(b *testing.B) {
	trees, plans := realistic(b)
	img := encode(b, trees, plans)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseRoot(img.blob[:img.root]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTrees(b *testing.B) {
	trees, plans := realistic(b)
	img := encode(b, trees, plans)
	root, err := ParseRoot(img.blob[:img.root])
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		for i := range trees {
			if _, err := root.Tree(i, payload, nil); err != nil {
				b.Fatal(err)
			}
		}
	}
}
