package layer_test

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"

	"github.com/airstream-io/airstream/convert/layer"
)

// benchTar is 100 MB of what layers are made of: files of this machine's
// /usr/lib in the order of their names, or what AIRSTREAM_BENCH_TAR names.
var benchTar = sync.OnceValues(func() ([]byte, error) {
	if name := os.Getenv("AIRSTREAM_BENCH_TAR"); name != "" {
		return os.ReadFile(name)
	}
	const limit = 100_000_000
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := filepath.WalkDir("/usr/lib", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		// Some of each: libraries come last and would not fit.
		if b.Len() > limit/2 && !strings.Contains(path, ".so") {
			return nil
		}
		if b.Len() > limit {
			return fs.SkipAll
		}
		content, err := os.ReadFile(path)
		if err != nil || len(content) > limit/4 {
			return nil
		}
		if err := w.WriteHeader(&tar.Header{Name: path[1:], Mode: 0o644, Size: int64(len(content))}); err != nil {
			return err
		}
		_, err = w.Write(content)
		return err
	})
	if err != nil {
		return nil, err
	}
	return b.Bytes(), w.Close()
})

// The two benchmarks convert the same tar with chunks of the same size and as
// many workers as there are CPUs. Compare MB/s, and out-bytes for the size.
func BenchmarkConvertLayer(b *testing.B) {
	raw, err := benchTar()
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(raw)))
	pool := layer.NewPool(0)
	for b.Loop() {
		res, err := layer.Convert(b.Context(), io.Discard, layer.Tar{ReaderAt: bytes.NewReader(raw), Size: int64(len(raw))}, layer.Options{}, pool, layer.ScratchIn(b.TempDir()), nil)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(res.Size), "out-bytes")
	}
}

func BenchmarkEstargzBuild(b *testing.B) {
	raw, err := benchTar()
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		blob, err := estargz.Build(io.NewSectionReader(bytes.NewReader(raw), 0, int64(len(raw))), estargz.WithChunkSize(64<<10), estargz.WithContext(b.Context()))
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.Copy(io.Discard, blob)
		if err != nil {
			b.Fatal(err)
		}
		if err := blob.Close(); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(n), "out-bytes")
	}
}
