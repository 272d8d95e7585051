package proxy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	mrand "math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shore is a registry with images, and whatever trouble tests ask for.
type shore struct {
	*httptest.Server
	mu     sync.Mutex
	mood   func(w http.ResponseWriter, r *http.Request) bool // guarded by mu; true: answered
	asked  int                                               // guarded by mu
	images map[string]*testImage
}

func newShore(tb testing.TB) *shore {
	tb.Helper()
	reg := registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, 0)))
	s := &shore{images: map[string]*testImage{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		mood := s.mood
		s.asked++
		s.mu.Unlock()
		if mood != nil && mood(w, r) {
			return
		}
		reg.ServeHTTP(w, r)
	}))
	tb.Cleanup(s.Close)
	return s
}

func (s *shore) setMood(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mood = f
}

func (s *shore) host() string { return strings.TrimPrefix(s.URL, "http://") }

func (s *shore) put(tb testing.TB, path, mediaType string, body []byte) {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), http.MethodPut, s.URL+path, bytes.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil || resp.StatusCode >= 300 {
		tb.Fatalf("PUT %s: %s, %v", path, resp.Status, err)
	}
}

func (s *shore) blob(tb testing.TB, repo string, body []byte) digest.Digest {
	tb.Helper()
	d := digest.FromBytes(body)
	resp, err := http.Post(s.URL+"/v2/"+repo+"/blobs/uploads/?digest="+d.String(), "application/octet-stream", bytes.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil || resp.StatusCode >= 300 {
		tb.Fatalf("blob: %s, %v", resp.Status, err)
	}
	return d
}

// file is one of a layer; hot files are read at a start, in their order.
type file struct {
	name    string
	content []byte
	hot     int // rank from 1 on; 0: cold
}

// testImage is an image that was pushed.
type testImage struct {
	ref, byDigest string
	manifest      []byte
	config        []byte
	trees         []*toc.Tree
	files         [][]file
	blobs         [][]byte
}

// push makes a converted image of layers and pushes it.
func (s *shore) push(tb testing.TB, repo, tag string, layers ...[]file) *testImage {
	tb.Helper()
	img := &testImage{ref: s.host() + "/" + repo + ":" + tag, files: layers}
	var cfg ocispec.Image
	cfg.OS, cfg.Architecture = "linux", "amd64"
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	for _, files := range layers {
		blob, tocDigest, at, diff := buildLayer(tb, files)
		tree := treeOf(tb, blob, at)
		desc := ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageLayerGzip, Digest: s.blob(tb, repo, blob), Size: int64(len(blob)),
			Annotations: map[string]string{annotation.TOCDigest: tocDigest.String(), annotation.TOCOffset: fmt.Sprint(at)},
		}
		if p := hotPlan(tree, files); len(p) > 0 {
			desc.Annotations[annotation.Hot] = p.String()
		}
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, diff)
		m.Layers = append(m.Layers, desc)
		img.trees = append(img.trees, tree)
		img.blobs = append(img.blobs, blob)
	}
	var err error
	if img.config, err = json.Marshal(cfg); err != nil {
		tb.Fatal(err)
	}
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: s.blob(tb, repo, img.config), Size: int64(len(img.config))}
	if img.manifest, err = json.Marshal(m); err != nil {
		tb.Fatal(err)
	}
	s.put(tb, "/v2/"+repo+"/manifests/"+tag, m.MediaType, img.manifest)
	img.byDigest = s.host() + "/" + repo + "@" + digest.FromBytes(img.manifest).String()
	return img
}

func buildLayer(tb testing.TB, files []file) (blob []byte, tocDigest digest.Digest, at int64, diff digest.Digest) {
	tb.Helper()
	raw := plainTar(tb, files)
	built, err := estargz.Build(io.NewSectionReader(bytes.NewReader(raw), 0, int64(len(raw))), estargz.WithChunkSize(64<<10))
	if err != nil {
		tb.Fatal(err)
	}
	if blob, err = io.ReadAll(built); err != nil {
		tb.Fatal(err)
	}
	if err := built.Close(); err != nil {
		tb.Fatal(err)
	}
	at, _, err = estargz.OpenFooter(io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob))))
	if err != nil {
		tb.Fatal(err)
	}
	return blob, built.TOCDigest(), at, built.DiffID()
}

func treeOf(tb testing.TB, blob []byte, at int64) *toc.Tree {
	tb.Helper()
	body, err := unpackTable(blob[at:])
	if err != nil {
		tb.Fatal(err)
	}
	tree, err := toc.Parse(bytes.NewReader(body), at)
	if err != nil {
		tb.Fatal(err)
	}
	return tree
}

func entryOf(tb testing.TB, tree *toc.Tree, name string) uint32 {
	tb.Helper()
	at := toc.Root
	for p := range strings.SplitSeq(name, "/") {
		next, ok := tree.Lookup(at, p)
		if !ok {
			tb.Fatalf("%s is not in the tree", name)
		}
		at = next
	}
	return at
}

func hotPlan(tree *toc.Tree, files []file) (p trace.Plan) {
	for rank := 1; rank < 100; rank++ {
		for _, f := range files {
			if f.hot != rank {
				continue
			}
			e := toc.Root
			for part := range strings.SplitSeq(f.name, "/") {
				e, _ = tree.Lookup(e, part)
			}
			for c, end := tree.Chunks(e); c < end; c++ {
				m := tree.Member(tree.Chunk(c).Member)
				p = append(p, trace.Run{Rank: uint32(rank), Offset: m.Offset, Size: m.End - m.Offset})
			}
		}
	}
	return p
}

func noise(seed uint64, n int) []byte {
	r := mrand.New(mrand.NewPCG(seed, 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// prose compresses by half or so.
func prose(seed uint64, n int) []byte {
	words := []string{"airstream ", "gets ", "images ", "across ", "constrained ", "links, ", "slow ", "and ", "far, "}
	r := mrand.New(mrand.NewPCG(seed, 1))
	var b bytes.Buffer
	for b.Len() < n {
		fmt.Fprintf(&b, "%s%x", words[r.IntN(len(words))], r.Uint64())
	}
	return b.Bytes()[:n]
}

func layersOf(tb testing.TB, img *testImage) []ocispec.Descriptor {
	tb.Helper()
	var m ocispec.Manifest
	if err := json.Unmarshal(img.manifest, &m); err != nil {
		tb.Fatal(err)
	}
	return m.Layers
}
