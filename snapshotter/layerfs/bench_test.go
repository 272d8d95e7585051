package layerfs_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/snapshotter/layerfs"
)

// compare runs both in turns, so that a busy machine slows both, and reports
// how the time of ours compares with that of plain.
func compare(b *testing.B, plain, ours func()) {
	b.Helper()
	var t [2]time.Duration
	plain()
	ours()
	for b.Loop() {
		begin := time.Now()
		plain()
		middle := time.Now()
		ours()
		t[0] += middle.Sub(begin)
		t[1] += time.Since(middle)
	}
	b.ReportMetric(float64(t[1])/float64(t[0]), "times-plain")
	b.ReportMetric(float64(t[0].Microseconds())/float64(b.N)/1000, "plain-ms")
	b.ReportMetric(float64(t[1].Microseconds())/float64(b.N)/1000, "ours-ms")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkRead reads a cached file of 64 MiB from its begin to its end, in a
// container's root file system: on unpacked layers, and on ours.
func BenchmarkRead(b *testing.B) {
	n := newNode(b)
	layer := tarOf(b, []header{file("f", 0o644, make([]byte, 64<<20))})
	n.add(b, 0, layer)
	plain := filepath.Join(overlay(b, unpack(b, layer)[0]), "f")
	buf := make([]byte, 128<<10)
	read := func(name string) {
		f, err := os.Open(name)
		if err != nil {
			b.Fatal(err)
		}
		for err == nil {
			_, err = f.Read(buf)
		}
		if !errors.Is(err, io.EOF) {
			b.Fatal(err)
		}
		_ = f.Close()
	}
	for _, opts := range []layerfs.Options{{}, {CacheOnly: true}} {
		b.Run(fmt.Sprintf("cacheonly=%v", opts.CacheOnly), func(b *testing.B) {
			_, at := mount(b, n, opts)
			ours := filepath.Join(overlay(b, filepath.Join(at, "0.base")), "f")
			compare(b, func() { read(plain) }, func() { read(ours) })
		})
	}
	// What a file costs that is here but not complete: every read comes to us.
	for _, ahead := range []int{16 << 10, 32 << 10, 64 << 10, 128 << 10} {
		b.Run(fmt.Sprintf("uncached/ahead=%dk", ahead>>10), func(b *testing.B) {
			_, at := mount(b, n, layerfs.Options{CacheOnly: true, ReadAhead: ahead})
			ours := filepath.Join(overlay(b, filepath.Join(at, "0.base")), "f")
			compare(b, func() { read(plain) }, func() {
				forget(b, ours)
				read(ours)
			})
		})
	}
}

// forget drops a file's pages from the page cache.
func forget(tb testing.TB, name string) {
	tb.Helper()
	f, err := os.Open(name)
	if err != nil {
		tb.Fatal(err)
	}
	if err := errors.Join(unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close()); err != nil {
		tb.Fatal(err)
	}
}

// BenchmarkOpen opens and reads 20,000 small files, from another process.
func BenchmarkOpen(b *testing.B) {
	n := newNode(b)
	layer := bigTree(b)
	n.add(b, 0, layer)
	plain := overlay(b, unpack(b, layer)[0])
	_, at := mount(b, n, layerfs.Options{})
	ours := overlay(b, filepath.Join(at, "0.base"))
	read := func(root string) { find(b, root, "-type", "f", "-exec", "cat", "{}", "+") }
	compare(b, func() { read(plain) }, func() { read(ours) })
}

// BenchmarkWalk looks at all names and attributes of 22,000 files, from
// another process: again in the same container, and for the first time in a
// new one, where overlayfs asks each file for an attribute of its own.
func BenchmarkWalk(b *testing.B) {
	n := newNode(b)
	layer := bigTree(b)
	n.add(b, 0, layer)
	native := unpack(b, layer)[0]
	_, at := mount(b, n, layerfs.Options{})
	served := filepath.Join(at, "0.base")
	stat := func(root string) { find(b, root, "-size", "+1000000000k") }
	b.Run("warm", func(b *testing.B) {
		plain, ours := overlay(b, native), overlay(b, served)
		compare(b, func() { stat(plain) }, func() { stat(ours) })
	})
	b.Run("newcontainer", func(b *testing.B) {
		root, empty := b.TempDir(), b.TempDir()
		fresh := func(lower string) {
			if err := unix.Mount("overlay", root, "overlay", unix.MS_RDONLY, "index=off,lowerdir="+lower+":"+empty); err != nil {
				b.Fatal(err)
			}
			stat(root)
			if err := unix.Unmount(root, 0); err != nil {
				b.Fatal(err)
			}
		}
		compare(b, func() { fresh(native) }, func() { fresh(served) })
	})
}

func find(tb testing.TB, root string, args ...string) {
	tb.Helper()
	cmd := exec.Command("find", append([]string{root}, args...)...)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		tb.Fatal(err)
	}
}

// bigTree is like an image of an interpreted language: 2,000 directories with
// ten files each.
func bigTree(tb testing.TB) []byte {
	tb.Helper()
	var entries []header
	for i := range 2000 {
		d := fmt.Sprintf("lib/%02d/%d", i%50, i)
		if i < 50 {
			entries = append(entries, dir(fmt.Sprintf("lib/%02d", i), 0o755))
		}
		entries = append(entries, dir(d, 0o755))
		for k := range 10 {
			entries = append(entries, file(fmt.Sprintf("%s/module%d.py", d, k), 0o644, fmt.Appendf(nil, "value = %d\n", i*k)))
		}
	}
	return tarOf(tb, entries)
}
