package convert_test

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/airstream-io/airstream/convert"
)

// maxResident is what a conversion may take of the machine's memory, whatever
// the size of the layer: bytes.
const maxResident = 300 << 20

// bigLayer is an image of one layer that exists nowhere in whole: it is made
// as it is read.
type bigLayer struct {
	*memory
	layer v1.Descriptor
	size  int64
}

func (b *bigLayer) Blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	if d.Digest != b.layer.Digest {
		return b.memory.Blob(ctx, d)
	}
	r, w := io.Pipe()
	go func() { _ = w.CloseWithError(writeBig(w, b.size)) }() // ends when either side closes
	return r, nil
}

// writeBig writes a tar of size bytes: half of it one file, half in files of
// 20 kB, one part in eight compressible.
func writeBig(w io.Writer, size int64) error {
	r := rand.NewChaCha8([32]byte{1})
	tw := tar.NewWriter(w)
	buf := make([]byte, 1<<20)
	put := func(name string, n int64) error {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: n}); err != nil {
			return err
		}
		for n > 0 {
			p := buf[:min(n, int64(len(buf)))]
			_, _ = r.Read(p) // never fails
			text := p[:len(p)/8]
			for i := range text {
				text[i] = "abcdefgh"[text[i]&7]
			}
			if _, err := tw.Write(p); err != nil {
				return err
			}
			n -= int64(len(p))
		}
		return nil
	}
	if err := put("usr/lib/big.so", size/2); err != nil {
		return err
	}
	for i := range size / 2 / 20_000 {
		if err := put(fmt.Sprintf("usr/lib/node_modules/some-package-%d/lib/file-%d.js", i/20, i), 20_000); err != nil {
			return err
		}
	}
	return tw.Close()
}

// discard is a destination that reads what it is sent and keeps manifests only.
type discard struct{ *memory }

func (discard) HasBlob(context.Context, v1.Descriptor) (bool, error) { return false, nil }

func (discard) PutBlob(_ context.Context, _ v1.Descriptor, open func() (io.ReadCloser, error)) error {
	rc, err := open()
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, rc)
	return err
}

// A layer of 256 MB, or with AIRSTREAM_SOAK=1 of 2 GB, is converted in bounded
// memory. The high-water mark is the kernel's own.
func TestMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: converts 256 MB")
	}
	if raceEnabled {
		t.Skip("the race detector takes several times the memory")
	}
	size := int64(256_000_000)
	if os.Getenv("AIRSTREAM_SOAK") != "" {
		size = 2_000_000_000
	}
	sum := sha256.New()
	counted := &countingWriter{w: sum}
	if err := writeBig(counted, size); err != nil {
		t.Fatal(err)
	}
	h := v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", sum.Sum(nil))}
	src := &bigLayer{newMemory(), v1.Descriptor{MediaType: types.OCIUncompressedLayer, Digest: h, Size: counted.n}, size}
	config := src.add(types.OCIConfigJSON, fmt.Appendf(nil, `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[%q]}}`, h))
	root := src.add(types.OCIManifestSchema1, marshal(t, v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: config, Layers: []v1.Descriptor{src.layer}}))
	src.root = &root

	runtime.GC()
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		t.Skipf("the high-water mark can't be reset: %v", err)
	}
	r, err := convert.Run(t.Context(), src, discard{newMemory()}, nil, convert.Options{WorkDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	peak := highWater(t)
	t.Logf("%d MB became %d MB with at most %d MiB resident", size/1e6, r.Manifests[0].Layers[0].NewSize/1e6, peak>>20)
	if peak > maxResident {
		t.Errorf("%d MiB resident, want at most %d", peak>>20, maxResident>>20)
	}
}

func highWater(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.w.Write(p)
}
