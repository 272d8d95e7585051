package layer_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

type file struct {
	tar.Header
	content []byte
}

// makeTar writes a tar as docker, buildkit and GNU tar would.
func makeTar(tb testing.TB, files []file) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := f.Header
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		h.Size = int64(len(f.content))
		if err := w.WriteHeader(&h); err != nil {
			tb.Fatalf("%q: %v", h.Name, err)
		}
		if _, err := w.Write(f.content); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func regular(name, content string) file {
	return file{tar.Header{Name: name, Mode: 0o644}, []byte(content)}
}

func link(name, target string) file {
	return file{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target, Mode: 0o644}, nil}
}

func symlink(name, target string) file {
	return file{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}, nil}
}

func dir(name string) file {
	return file{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}, nil}
}

// text is content that compresses like text, from a seed.
func text(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	words := strings.Fields("the quick brown fox jumps over a lazy dog while satellites pass by and nobody waits for bytes")
	var b bytes.Buffer
	for b.Len() < n {
		fmt.Fprintf(&b, "%s %x ", words[r.IntN(len(words))], r.IntN(1<<12))
	}
	return b.Bytes()[:n]
}

// noise is content that doesn't compress.
func noise(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed)})
	b := make([]byte, n)
	_, _ = r.Read(b)
	return b
}

// nasty holds one of everything that layers are known to hold.
func nasty() []file {
	when := time.Unix(1700000000, 123456789)
	long := strings.Repeat("long/", 40) + strings.Repeat("x", 200)
	files := []file{
		{tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: when}, nil},
		{tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "a commit"}}, nil},
		dir("bin"), regular("bin/empty", ""), regular("bin/one", "1"),
		{tar.Header{Name: "bin/big", Mode: 0o4755, Uid: 3000000, Gid: 7, Uname: "me", Gname: "us", ModTime: when, Format: tar.FormatPAX}, text(1, 300_003)},
		{tar.Header{Name: "bin/exact", Mode: 0o644}, text(2, 128<<10)},
		{tar.Header{Name: "bin/noise", Mode: 0o644}, noise(3, 100_000)},
		{tar.Header{Name: "bin/ping", Mode: 0o755, Format: tar.FormatPAX, PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
			"SCHILY.xattr.user.odd":            "a=b\nc",
		}}, []byte("ELF")},
		link("bin/hard", "bin/big"), link("./bin/hard2", "/bin/hard"),
		symlink("bin/sym", "../etc/passwd"), symlink("lib", "usr/lib"),
		{tar.Header{Name: "dev/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}, nil},
		{tar.Header{Name: "dev/sda", Typeflag: tar.TypeBlock, Devmajor: 8, Devminor: 300, Mode: 0o660, Gid: 6}, nil},
		{tar.Header{Name: "run/fifo", Typeflag: tar.TypeFifo, Mode: 0o600}, nil},
		regular("etc/.wh.gone", ""), regular("var/cache/.wh..wh..opq", ""),
		regular(long, "long"), regular("naïve/文件 with space\t\"quote\" <&>\\x", "odd"),
		{tar.Header{Name: "latin/caf\xe9", Mode: 0o644, Format: tar.FormatGNU}, []byte("not UTF-8")},
		{tar.Header{Name: "latin/caf\xe8", Mode: 0o644, Format: tar.FormatGNU}, []byte("neither")},
		{tar.Header{Name: "old", Mode: 0o644, ModTime: time.Unix(-5, 0), Format: tar.FormatPAX}, []byte("before the epoch")},
		// Later entries replace earlier ones.
		{tar.Header{Name: "twice", Mode: 0o644}, text(4, 100_000)},
		link("kept", "twice"), regular("twice", "second"),
		regular("becomes-dir", "x"), dir("becomes-dir"), regular("becomes-dir/child", "y"),
		dir("becomes-file"), regular("becomes-file/child", "y"), link("saved", "becomes-file/child"), regular("becomes-file", "z"),
		{tar.Header{Name: "bin", Typeflag: tar.TypeDir, Mode: 0o700, ModTime: when}, nil},
		// Below a symbolic link.
		dir("usr"), dir("usr/lib"), regular("lib/below", "below"),
		// Left by an earlier conversion.
		regular(".prefetch.landmark", "\x0f"), regular("stargz.index.json", "{}"),
	}
	for i := range 500 {
		files = append(files, symlink(fmt.Sprintf("links/l%03d", i), "../bin/one"))
	}
	for i := range 100 {
		files = append(files, file{tar.Header{Name: fmt.Sprintf("small/f%03d.py", i), Mode: 0o644, ModTime: when}, text(uint64(i), 100+i*37)})
	}
	return files
}
