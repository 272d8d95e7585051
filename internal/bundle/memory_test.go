package bundle

import (
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
)

// What writing or reading a bundle may take of the machine's memory, whatever its
// size: bytes. A record has at most 16 MiB; the compressor, on shore, takes some 50 MiB
// for its best.
const (
	maxWriting = 200 << 20
	maxReading = 64 << 20
)

// A bundle of 200 MB, or with AIRSTREAM_SOAK=1 of 2 GB, is written and read in
// bounded memory.
func TestMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: 200 MB")
	}
	if raceEnabled {
		t.Skip("the race detector takes several times the memory")
	}
	size := int64(200_000_000)
	if os.Getenv("AIRSTREAM_SOAK") != "" {
		size = 2_000_000_000
	}
	blob := func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{1}), size) }
	h := sha256.New()
	_, err := io.Copy(h, blob())
	must(t, err)
	file, err := os.Create(filepath.Join(t.TempDir(), "bundle"))
	must(t, err)
	defer func() { must(t, file.Close()) }()

	write := resident(t, func() {
		w, err := Create(Options{WorkDir: t.TempDir()})
		must(t, err)
		must(t, w.AddBlob(KindBlob, PriorityRest, Part{Sum: Sum(h.Sum(nil)), Size: size}, blob()))
		must(t, w.Add(KindBlob, PriorityRest, (&Part{Size: 16 << 20, Data: make([]byte, 16<<20)}).Encode(KindBlob)))
		_, err = w.Finish(&Contents{}, file)
		must(t, errors.Join(err, w.Close()))
	})
	_, err = file.Seek(0, io.SeekStart)
	must(t, err)
	read := resident(t, func() {
		numbers, _, err := read(t, file)
		if !errors.Is(err, io.EOF) || int64(len(numbers)) != (size+PartSize-1)/PartSize+1 {
			t.Fatalf("%d records: %v", len(numbers), err)
		}
	})
	t.Logf("%d MB: %d MiB resident to write, %d MiB to read", size/1e6, write>>20, read>>20)
	if write > maxWriting || read > maxReading {
		t.Errorf("%d MiB resident to write and %d MiB to read, want at most %d and %d", write>>20, read>>20, maxWriting>>20, maxReading>>20)
	}
}

// resident returns how much memory the process takes at most while f runs, by the
// kernel's own mark.
func resident(t *testing.T, f func()) int64 {
	t.Helper()
	runtime.GC()
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		t.Skipf("the high-water mark can't be reset: %v", err)
	}
	f()
	b, err := os.ReadFile("/proc/self/status")
	must(t, err)
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			must(t, err)
			return kb << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}
