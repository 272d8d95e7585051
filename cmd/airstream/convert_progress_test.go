package main

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func TestProgressLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out lockedBuilder
		p, finish := newConvertProgress(&out)
		a := p.Layer(v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("a", 64)}, 60_000_000)
		b := p.Layer(v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("b", 64)}, 40_000_000)
		a.Phase("fetch", 60_000_000)
		a.Advance(30_000_000)
		time.Sleep(progressInterval + time.Second)
		b.Phase("send", 1000)
		b.Advance(1000)
		b.Done("built")
		time.Sleep(progressInterval)
		finish()
		finish()
		time.Sleep(2 * progressInterval)
		const want = `convert: 0 of 2 layers, 10.0 MB of 100.0 MB, 2.0 MB/s, 45s left
convert: 1 of 2 layers, 50.0 MB of 100.0 MB, 5.0 MB/s, 10s left
`
		if got := out.String(); got != want {
			t.Errorf("got:\n%swant:\n%s", got, want)
		}
	})
}

type lockedBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuilder) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuilder) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestSizes(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "65536": 65536, "64KiB": 65536, "1 MiB": 1 << 20, "1MB": 1e6, "2GB": 2e9, "7B": 7} {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("%q: got %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "KiB", "-1", "1.5MB", "1XB", "99999999999GB", "1KiBB"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("%q: got %d, want an error", in, got)
		}
	}
	for _, n := range []int64{0, 1, 65536, 3 << 20, 1000} {
		if got, err := parseSize(formatSize(n)); err != nil || got != n {
			t.Errorf("%d: written as %s, read as %d, %v", n, formatSize(n), got, err)
		}
	}
}

func TestProgressNumbersStayWithinTotal(t *testing.T) {
	if got := progressNumbers(1100, 1000, time.Second); got != "1.0 kB of 1.0 kB, 1.0 kB/s" {
		t.Errorf("got %q", got)
	}
}
