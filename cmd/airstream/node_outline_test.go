package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/config"
	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/snapshotter/layerfs"
)

// believes is a node that takes its proxy's word.
func (p *shoreProxy) believes(registries bool, patience time.Duration) config.NodeProxy {
	return config.NodeProxy{Address: p.listen, Patience: config.Duration(patience), Registries: registries, Unconverted: true}
}

// getPlain has a node learn the image that was never converted.
func getPlain(t *testing.T, n *node, host string) catalog.Image {
	t.Helper()
	d, code := n.get(t, host, "plain")
	if code != http.StatusOK {
		t.Fatalf("the mirror said %d", code)
	}
	img, err := n.catalog.Image(d)
	if err != nil || len(img.Layers) != 1 {
		t.Fatalf("%+v, %v", img, err)
	}
	return img
}

func (n *node) layer(t *testing.T, slot uint32) catalog.Layer {
	t.Helper()
	l, err := n.catalog.Layer(slot)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// An image that was never converted starts from what is read of it, by its own digest;
// when it is whole, its diffID is compared. A restart in between loses nothing.
func TestAnUnconvertedImageIsLazy(t *testing.T) {
	f := newFar(t)
	p, dir := proxyFor(t, f)
	n := openNodeWith(t, dir, "", p.believes(false, time.Minute))
	img := getPlain(t, n, "far.example")
	if img.Layers[0].Slot != 1 || img.Layers[0].Reason != "" {
		t.Fatalf("it is not lazy: %+v", img.Layers[0])
	}
	f.want(t, n, "bin/app")
	if err := n.compareAll(t.Context(), map[uint32]time.Time{}); err != nil {
		t.Fatal(err)
	}
	if l := n.layer(t, 1); !l.OnWord() || l.Verified || l.DiffID != img.Layers[0].DiffID {
		t.Errorf("before it is whole: %+v", l)
	}
	if err := n.close(); err != nil {
		t.Fatal(err)
	}
	n = openNodeWith(t, dir, "", p.believes(false, time.Minute))
	if err := n.resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.want(t, n, "bin/app")
	f.want(t, n, "lib/cold")
	f.want(t, n, "lib/other")
	// What the disk has changed is not taken for a lie.
	flip(t, dir)
	if err := n.compareAll(t.Context(), map[uint32]time.Time{}); !errors.Is(err, chunk.ErrMismatch) {
		t.Errorf("on a damaged disk: %v", err)
	}
	if l := n.layer(t, 1); l.Verified || l.Wrong != "" {
		t.Errorf("on a damaged disk: %+v", l)
	}
	flip(t, dir)
	if err := n.compareAll(t.Context(), map[uint32]time.Time{}); err != nil {
		t.Fatal(err)
	}
	if l := n.layer(t, 1); !l.Verified || l.Wrong != "" {
		t.Errorf("whole: %+v", l)
	}
	if again := getPlain(t, n, "far.example"); again.Layers[0].Slot != 1 {
		t.Errorf("asked for again: %+v", again.Layers[0])
	}
	s, err := n.status(&img, nil)
	if err != nil || !s.Complete || s.Dark != "yes" {
		t.Errorf("%+v, %v", s, err)
	}
}

// flip changes a bit of an object on disk, or changes it back.
func flip(t *testing.T, dir string) {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "store", "objects", "*", "*"))
	if err != nil || len(all) == 0 {
		t.Fatalf("%d objects, %v", len(all), err)
	}
	b, err := os.ReadFile(all[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(all[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Registries can't bring a part of such a layer: whoever reads waits for the proxy.
func TestAnUnconvertedLayerWaitsForItsProxy(t *testing.T) {
	f := newFar(t)
	p := startProxy(t, "")
	dir, _ := p.enrol(t, "vessel-1")
	n := openNodeWith(t, dir, f.host, p.believes(true, 200*time.Millisecond))
	getPlain(t, n, f.host)
	f.want(t, n, "bin/app")
	p.stop()
	eventually(t, "the end of patience", func() bool { given, _ := n.shore.givenUp(); return given })
	came := make(chan []byte, 1)
	go func() { came <- n.read(t, "lib/cold") }()
	select {
	case <-came:
		t.Error("something came")
	case <-time.After(300 * time.Millisecond):
	}
	if asked := f.nodes.Load(); asked != 0 {
		t.Errorf("a registry was asked %d times for parts of a layer", asked)
	}
	p.start(t)
	if got := <-came; !bytes.Equal(got, f.files["lib/cold"]) {
		t.Errorf("%d bytes, which are not right", len(got))
	}
}

// lie makes the proxy serve another tar under a layer's digest, as one would whose cache
// somebody has written to.
func lie(t *testing.T, p *shoreProxy, blob digest.Digest, evil []byte) {
	t.Helper()
	cache := filepath.Join(filepath.Dir(p.config), "root", "cache")
	head := filepath.Join(cache, "outline", blob.Encoded(), "head")
	b, err := os.ReadFile(head)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	size, err := toc.WriteOutline(&out, bytes.NewReader(evil))
	if err != nil {
		t.Fatal(err)
	}
	body := sha256.Sum256(out.Bytes())
	rest := slices.Concat(b[32:64], body[:])
	rest = binary.BigEndian.AppendUint64(rest, uint64(size))
	sum := sha256.Sum256(rest)
	write := func(name string, b []byte) {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(head, append(sum[:], rest...))
	write(filepath.Join(filepath.Dir(head), "body"), out.Bytes())
	for i := 0; len(evil) > 0; i++ {
		k := min(len(evil), 1<<20)
		write(filepath.Join(cache, "tar", blob.Encoded(), fmt.Sprint(i)), evil[:k])
		evil = evil[k:]
	}
	if err := os.RemoveAll(filepath.Join(cache, "tree")); err != nil {
		t.Fatal(err)
	}
}

// What a proxy says that lies is served until all of it is here; then its images are in
// quarantine, and say so, also after a restart.
func TestALyingProxyIsFoundOut(t *testing.T) {
	f := newFar(t)
	p, honest := proxyFor(t, f)
	img := getPlain(t, openNodeWith(t, honest, "", p.believes(false, time.Minute)), "far.example")
	p.stop()
	var evil bytes.Buffer
	w := tar.NewWriter(&evil)
	if err := w.WriteHeader(&tar.Header{Name: "bin/app", Typeflag: tar.TypeReg, Mode: 0o4755, Size: 4}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("evil")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	lie(t, p, img.Layers[0].Blob, evil.Bytes())
	p.start(t)
	dir, _ := p.enrol(t, "vessel-2")
	n := openNodeWith(t, dir, "", p.believes(false, time.Minute))
	img = getPlain(t, n, "far.example")
	if got := n.read(t, "bin/app"); string(got) != "evil" {
		t.Fatalf("%q", got)
	}
	if err := n.compareAll(t.Context(), map[uint32]time.Time{}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s, err := n.status(&img, nil)
		if err != nil || s.Complete || s.Dark != "no" || !strings.HasPrefix(s.Why, "quarantine: ") {
			t.Errorf("%+v, %v", s, err)
		}
		if err := inQuarantine(n.catalog, &img); !errors.Is(err, fetcher.ErrQuarantined) || !strings.Contains(err.Error(), "far.example/app:plain, layer "+img.Layers[0].Blob.String()) || !strings.Contains(err.Error(), "airstream rm far.example/app:plain") {
			t.Errorf("what is said of it: %v", err)
		}
		lazy := &lazyLayers{catalog: n.catalog, fetcher: n.fetcher}
		if _, _, _, err := lazy.Lazy(t.Context(), img.Layers[0].ChainID.String(), true); !errors.Is(err, fetcher.ErrQuarantined) {
			t.Errorf("it is pulled: %v", err)
		}
		if _, _, err := lazy.Owner(t.Context(), layerfs.DirName(1, true)); !errors.Is(err, fetcher.ErrQuarantined) {
			t.Errorf("containers are started from it: %v", err)
		}
		if _, err := n.fetcher.Tree(t.Context(), 1); !errors.Is(err, fetcher.ErrQuarantined) {
			t.Errorf("its tree is served: %v", err)
		}
		if _, err := n.fetcher.Open(t.Context(), 1, 2); !errors.Is(err, fetcher.ErrQuarantined) {
			t.Errorf("its files are served: %v", err)
		}
		if err := n.close(); err != nil {
			t.Fatal(err)
		}
		n = openNodeWith(t, dir, "", p.believes(false, time.Minute))
	}
}
