package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/opencontainers/go-digest"
)

// far is a registry on shore. What it serves is counted.
type far struct {
	host  string
	asked atomic.Int64
	nodes atomic.Int64 // of these, by nodes themselves
	files map[string][]byte
	plain digest.Digest                 // of the layer that was not converted
	held  atomic.Pointer[chan struct{}] // if set, that layer is not sent until it is closed
}

// newFar pushes app:1, of which bin/app is read at a start.
func newFar(t *testing.T) *far {
	t.Helper()
	f := &far{files: map[string][]byte{}}
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.asked.Add(1)
		if r.UserAgent() == "airstream" {
			f.nodes.Add(1)
		}
		if held := f.held.Load(); held != nil && r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, f.plain.String()) {
			select {
			case <-*held:
			case <-r.Context().Done():
			}
		}
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	f.host = strings.TrimPrefix(srv.URL, "http://")
	for i, path := range []string{"bin/app", "lib/cold", "lib/other"} {
		r := rand.New(rand.NewPCG(uint64(i), 7))
		b := make([]byte, 200_000)
		for j := range b {
			b[j] = "abcdefghijklmnop"[r.IntN(16)]
		}
		f.files[path] = b
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, path := range []string{"bin/app", "lib/cold", "lib/other"} {
		if err := w.WriteHeader(&tar.Header{Name: path, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(f.files[path]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.files[path]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	sum, err := l.Digest()
	if err != nil {
		t.Fatal(err)
	}
	f.plain = digest.Digest(sum.String())
	img, err := mutate.AppendLayers(empty.Image, l)
	if err == nil {
		img, err = mutate.ConfigFile(img, &v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: mustRootFS(t, img)})
	}
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(f.host + "/app:plain")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	trace := filepath.Join(t.TempDir(), "app.trace")
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`{"version":2,"image":%q,"manifest":%q,"layers":1,"reads":[{"layer":0,"path":"bin/app","offset":0,"size":200000}]}`, ref, d)
	if err := os.WriteFile(trace, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, said, code := do(t, "convert", "--trace", trace, f.host+"/app:plain", f.host+"/app:1"); code != exitOK {
		t.Fatal(said)
	}
	return f
}

func mustRootFS(t *testing.T, img v1.Image) v1.RootFS {
	t.Helper()
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return c.RootFS
}
