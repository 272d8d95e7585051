package layer_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	digest "github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/airstream-io/airstream/convert/layer"
	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/toc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pool is shared, because making compressors is most of the work on small tars.
var pool = layer.NewPool(2)

func convertTar(t *testing.T, raw []byte, o layer.Options) ([]byte, layer.Result) {
	t.Helper()
	var out bytes.Buffer
	r, err := layer.Convert(t.Context(), &out, layer.Tar{ReaderAt: bytes.NewReader(raw), Size: int64(len(raw))}, o,
		pool, layer.ScratchIn(t.TempDir()), nil)
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), r
}

func gunzip(t *testing.T, blob []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func open(t *testing.T, blob []byte) (*estargz.Reader, *estargz.JTOC) {
	t.Helper()
	sr := io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob)))
	r, err := estargz.Open(sr)
	if err != nil {
		t.Fatal(err)
	}
	off, _, err := estargz.OpenFooter(sr)
	if err != nil {
		t.Fatal(err)
	}
	table, _, err := new(estargz.GzipDecompressor).ParseTOC(bytes.NewReader(blob[off:]))
	if err != nil {
		t.Fatal(err)
	}
	return r, table
}

func TestTreeIsThatOfTheSource(t *testing.T) {
	raw := makeTar(t, nasty())
	for _, o := range []layer.Options{{}, {ChunkSize: 4 << 10}, {ChunkSize: 1 << 20}, {GroupSize: 32 << 10}, {ChunkSize: 4 << 10, GroupSize: 64 << 10}} {
		t.Run(fmt.Sprintf("%d-%d", o.ChunkSize, o.GroupSize), func(t *testing.T) {
			blob, res := convertTar(t, raw, o)
			want := unpack(t, raw)
			compareTrees(t, want, lazyTree(t, blob, res))
			compareTrees(t, unpack(t, raw), unpack(t, gunzip(t, blob)))
			checkBlob(t, blob, res, o)
		})
	}
}

// checkBlob checks what a Result promises of a blob, and that estargz and our
// own table reader accept it.
func checkBlob(t *testing.T, blob []byte, res layer.Result, o layer.Options) {
	t.Helper()
	if got := chunk.Sum(blob); got != res.Digest || int64(len(blob)) != res.Size {
		t.Errorf("blob is %s, %d bytes; result says %s, %d", got, len(blob), res.Digest, res.Size)
	}
	if raw := gunzip(t, blob); chunk.Sum(raw) != res.DiffID || int64(len(raw)) != res.UncompressedSize {
		t.Errorf("uncompressed blob is %s, %d bytes; result says %s, %d", chunk.Sum(raw), len(raw), res.DiffID, res.UncompressedSize)
	}
	r, table := open(t, blob)
	if o.GroupSize == 0 {
		v, err := r.VerifyTOC(digest.Digest(res.TOCDigest.String()))
		if err != nil {
			t.Fatalf("VerifyTOC: %v", err)
		}
		for _, e := range table.Entries {
			if e.Type == "chunk" || e.Type == "reg" && e.Size > 0 {
				if _, err := v.Verifier(e); err != nil {
					t.Errorf("%s at %d: %v", e.Name, e.ChunkOffset, err)
				}
			}
		}
	} else if r.TOCDigest().String() != res.TOCDigest.String() {
		t.Errorf("table is %s, result says %s", r.TOCDigest(), res.TOCDigest)
	}
	off, _, err := estargz.OpenFooter(io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob))))
	if err != nil || off != res.TOCOffset {
		t.Errorf("table at %d (%v), result says %d", off, err, res.TOCOffset)
	}
	chunkSize := o.ChunkSize
	if chunkSize == 0 {
		chunkSize = chunk.DefaultSize
	}
	tree, err := toc.Parse(jsonTable(t, blob, off), off)
	if err != nil {
		t.Fatal(err)
	}
	if tree.NumChunks()+1 != res.Chunks { // the landmark is not in the tree
		t.Errorf("%d chunks in the tree, result says %d", tree.NumChunks(), res.Chunks)
	}
	for i := range uint32(tree.NumMembers()) {
		m := tree.Member(i)
		z, err := gzip.NewReader(bytes.NewReader(blob[m.Offset:m.End]))
		if err != nil {
			t.Fatalf("no member at %d: %v", m.Offset, err)
		}
		z.Multistream(false)
		n, err := io.Copy(io.Discard, z)
		if err != nil {
			t.Fatal(err)
		}
		if limit := chunkSize + o.GroupSize + 20<<10; n > limit {
			t.Errorf("member at %d holds %d bytes, want at most %d", m.Offset, n, limit)
		}
	}
}

func jsonTable(t *testing.T, blob []byte, off int64) io.Reader {
	t.Helper()
	rc, err := new(estargz.GzipDecompressor).DecompressTOC(bytes.NewReader(blob[off:]))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(b)
}

// A random tar has duplicates, links to what is replaced, and names below
// links, in every order.
func TestTreeIsThatOfTheSourceAtRandom(t *testing.T) {
	for seed := range seeds(200) {
		raw := randomTar(t, seed)
		var out bytes.Buffer
		o := layer.Options{ChunkSize: 4 << 10, GroupSize: int64(seed%2) << 14}
		res, err := layer.Convert(t.Context(), &out, layer.Tar{ReaderAt: bytes.NewReader(raw), Size: int64(len(raw))}, o, pool, layer.ScratchIn(t.TempDir()), nil)
		if errors.Is(err, layer.ErrInvalid) {
			continue // a file where a directory should be
		}
		if err != nil {
			t.Fatal(err)
		}
		compareTrees(t, unpack(t, raw), lazyTree(t, out.Bytes(), res))
		checkBlob(t, out.Bytes(), res, o)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// seeds returns how many of n seeds to try: a tenth with the race detector, with
// which each takes twenty times as long. The Makefile runs these tests without it,
// too.
func seeds(n uint64) uint64 {
	if raceDetector {
		return n / 10
	}
	return n
}

func randomTar(t *testing.T, seed uint64) []byte {
	t.Helper()
	return randomTarOf(t, seed, []string{"a", "b", "c", "d/a", "d/b", "d/e/a", "s/a"})
}

func randomTarOf(t *testing.T, seed uint64, names []string) []byte {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 2))
	var files []file
	present := map[string]bool{}
	files = append(files, dir("d"), symlink("s", "d/e"), dir("d/e"))
	for i := range 12 {
		name := names[r.IntN(len(names))]
		switch k := r.IntN(10); {
		case k < 5:
			files = append(files, regular(name, string(text(uint64(i), r.IntN(10000)))))
			present[name] = true
		case k < 8:
			target := names[r.IntN(len(names))]
			if same := func(n string) string { return strings.Replace(n, "s/", "d/e/", 1) }; !present[target] || same(target) == same(name) {
				continue
			}
			files = append(files, link(name, target))
			present[name] = true
		case k < 9:
			files = append(files, symlink(name, "a"))
			present[name] = false
		default:
			if strings.HasPrefix(name, "d/") {
				continue
			}
			files = append(files, dir(name))
			present[name] = false
		}
	}
	return makeTar(t, files)
}

func TestSameBytesWhateverTheCPUs(t *testing.T) {
	raw := makeTar(t, nasty())
	want, _ := convertTar(t, raw, layer.Options{})
	for _, n := range []int{1, 2, 8} {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(n))
		for range 2 {
			var got bytes.Buffer
			_, err := layer.Convert(t.Context(), &got, layer.Tar{ReaderAt: bytes.NewReader(raw), Size: int64(len(raw))}, layer.Options{},
				layer.NewPool(0), layer.ScratchIn(t.TempDir()), nil)
			if err != nil || !bytes.Equal(got.Bytes(), want) {
				t.Fatalf("other bytes with GOMAXPROCS=%d: %v", n, err)
			}
		}
	}
}

// Converting what was converted gives the same table of chunks: the landmark
// and the table of the first time are not carried along.
func TestConvertedAgain(t *testing.T) {
	raw := makeTar(t, nasty())
	once, res := convertTar(t, raw, layer.Options{})
	twice, again := convertTar(t, gunzip(t, once), layer.Options{})
	if res.TOCDigest != again.TOCDigest || !bytes.Equal(once, twice) {
		t.Errorf("converted twice: table %s, want %s", again.TOCDigest, res.TOCDigest)
	}
}

func TestChunkIDsDontDependOnGrouping(t *testing.T) {
	raw := makeTar(t, nasty())
	ids := func(o layer.Options) (ids []string) {
		blob, _ := convertTar(t, raw, o)
		_, table := open(t, blob)
		for _, e := range table.Entries {
			ids = append(ids, e.Name+e.ChunkDigest)
		}
		return ids
	}
	if diff := cmp.Diff(ids(layer.Options{}), ids(layer.Options{GroupSize: 64 << 10})); diff != "" {
		t.Error(diff)
	}
}

// golden are the digests that format 1 gives for testdata/golden.tar.gz.
const golden = `sha256:fd9537d6a89e4002075a3571fb4c0c69417165bd37538a9480f2af19236662b5
sha256:32a6cb4d23674186d908c0ddcf066361b0c04686b8885520bd3c2531a0bb18d0
sha256:418b8647a074007189c9b28a25297757d03be9b980cd36bec16e594e4b0a1fc8`

// A change here means that the same image gets another digest than before:
// raise layer.Format, and say so in the release notes.
func TestGolden(t *testing.T) {
	if layer.Format != 1 {
		t.Fatalf("format %d has no golden digests yet", layer.Format)
	}
	b, err := os.ReadFile("testdata/golden.tar.gz")
	if err != nil {
		t.Fatal(err)
	}
	raw := gunzip(t, b)
	_, plain := convertTar(t, raw, layer.Options{})
	_, grouped := convertTar(t, raw, layer.Options{ChunkSize: 8 << 10, GroupSize: 16 << 10})
	got := plain.Digest.String() + "\n" + plain.TOCDigest.String() + "\n" + grouped.Digest.String()
	if diff := cmp.Diff(golden, got); diff != "" {
		t.Errorf("the layout has changed:\n%s", diff)
	}
}

func TestSparse(t *testing.T) {
	// Written by GNU tar 1.34: one file of 1 MiB, 5 bytes at 512 KiB.
	for _, format := range []string{"gnu", "pax"} {
		t.Run(format, func(t *testing.T) {
			b, err := os.ReadFile("testdata/sparse-" + format + ".tar")
			if err != nil {
				t.Fatal(err)
			}
			blob, res := convertTar(t, b, layer.Options{})
			compareTrees(t, unpack(t, b), lazyTree(t, blob, res))
			compareTrees(t, unpack(t, b), unpack(t, gunzip(t, blob)))
		})
	}
}

func TestRefused(t *testing.T) {
	good := makeTar(t, nasty())
	flip := bytes.Clone(good)
	flip[3] ^= 1
	for name, raw := range map[string][]byte{
		"cut in a header":     good[:700],
		"cut in content":      good[:60_000],
		"not a tar":           []byte(strings.Repeat("hello world, ", 100)),
		"header sum":          flip,
		"hardlink to nothing": makeTar(t, []file{link("a", "b")}),
		"hardlink to itself":  makeTar(t, []file{regular("a", "x"), link("a", "a")}),
		"below a file":        makeTar(t, []file{regular("a", "x"), regular("a/b", "x")}),
		"loop of links":       makeTar(t, []file{symlink("a", "b"), symlink("b", "a"), regular("a/x", "x")}),
		"root is a file":      makeTar(t, []file{regular("/.", "x")}),
		"long name":           makeTar(t, []file{regular(strings.Repeat("x", 300), "x")}),
		"unknown type":        makeTar(t, []file{{tar.Header{Name: "x", Typeflag: 'V'}, nil}}),
		"device":              makeTar(t, []file{{tar.Header{Name: "x", Typeflag: tar.TypeChar, Devmajor: 1 << 20, Format: tar.FormatGNU}, nil}}),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := layer.Convert(t.Context(), io.Discard, layer.Tar{ReaderAt: bytes.NewReader(raw), Size: int64(len(raw))}, layer.Options{},
				pool, layer.ScratchIn(t.TempDir()), nil)
			if !errors.Is(err, layer.ErrInvalid) {
				t.Errorf("got %v, want ErrInvalid", err)
			}
		})
	}
}

type failingWriter struct{ left int }

var errFull = errors.New("disk full")

func (w *failingWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestWriterFails(t *testing.T) {
	raw := makeTar(t, nasty())
	for _, left := range []int{0, 100, 10_000, 300_000} {
		_, err := layer.Convert(t.Context(), &failingWriter{left}, layer.Tar{ReaderAt: bytes.NewReader(raw), Size: int64(len(raw))}, layer.Options{},
			layer.NewPool(2), layer.ScratchIn(t.TempDir()), nil)
		if !errors.Is(err, errFull) {
			t.Errorf("after %d bytes: got %v, want errFull", left, err)
		}
	}
}

func TestCancelled(t *testing.T) {
	raw := makeTar(t, nasty())
	ctx, cancel := context.WithCancel(t.Context())
	_, err := layer.Convert(ctx, io.Discard, layer.Tar{ReaderAt: bytes.NewReader(raw), Size: int64(len(raw))}, layer.Options{},
		layer.NewPool(2), layer.ScratchIn(t.TempDir()), func(int64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}
