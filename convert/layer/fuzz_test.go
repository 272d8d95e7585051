package layer_test

import (
	"bytes"
	"encoding/hex"
	"os"
	"testing"

	"github.com/airstream-io/airstream/convert/layer"
	"github.com/airstream-io/airstream/internal/chunk"
)

func FuzzConvert(f *testing.F) {
	f.Add(makeTar(f, nasty()[:20]), uint16(4096), uint16(0))
	f.Add(makeTar(f, []file{regular("a", "x"), link("b", "a"), regular("a", "y"), symlink("c", "d"), dir("d"), regular("c/e", "z")}), uint16(4096), uint16(512))
	f.Add(makeTar(f, []file{dir("c"), regular("a", "x"), link("b", "a"), regular("c/.wh..wh..opq", ""), regular("c/e", "z")}), uint16(4096), uint16(1))
	for _, format := range []string{"gnu", "pax"} {
		b, err := os.ReadFile("testdata/sparse-" + format + ".tar")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint16(8192), uint16(0))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, raw []byte, chunkSize, groupSize uint16) {
		o := layer.Options{ChunkSize: max(layer.MinChunkSize, int64(chunkSize)), GroupSize: int64(groupSize)}
		if groupSize%2 == 1 {
			o.Prioritize = []string{"c/e", "b", "/a", "../x", ""}
		}
		var blob bytes.Buffer
		res, err := layer.Convert(t.Context(), &limitedBuffer{&blob}, layer.Tar{ReaderAt: bytes.NewReader(raw), Size: int64(len(raw))}, o,
			pool, layer.ScratchIn(dir), nil)
		if err != nil {
			return
		}
		if chunk.Sum(blob.Bytes()) != res.Digest {
			t.Error("digest")
		}
		r, _ := open(t, blob.Bytes())
		if hex.EncodeToString(res.TOCDigest[:]) != r.TOCDigest().Encoded() {
			t.Error("table digest")
		}
	})
}

// limitedBuffer keeps a sparse file of terabytes from filling the memory.
type limitedBuffer struct{ *bytes.Buffer }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if b.Len() > 64<<20 {
		return 0, errFull
	}
	return b.Buffer.Write(p)
}
