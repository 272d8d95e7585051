package fetcher

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/store"
	"github.com/airstream-io/airstream/internal/toc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shore serves one layer blob over HTTP, and whatever trouble tests ask for.
// The real registry stands behind the end-to-end tests.
type shore struct {
	*httptest.Server
	blob  []byte // eStargz
	toc   digest.Digest
	at    int64 // where the table begins
	files map[string][]byte

	mu       sync.Mutex
	sent     []uint8                                           // guarded by mu; how often each byte of blob was sent
	requests int                                               // guarded by mu
	mood     func(w http.ResponseWriter, r *http.Request) bool // guarded by mu; true: answered
}

func random(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// layer is built once: it is the same for all tests.
var layerOnce = sync.OnceValues(buildLayer)

func newShore(t *testing.T) *shore {
	t.Helper()
	proto, err := layerOnce()
	if err != nil {
		t.Fatal(err)
	}
	return proto.open(t)
}

// open serves a copy of a layer.
func (s *shore) open(t *testing.T) *shore {
	t.Helper()
	proto := s
	s = &shore{blob: proto.blob, toc: proto.toc, at: proto.at, files: proto.files, sent: make([]uint8, len(proto.blob))}
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.Close)
	return s
}

func buildLayer() (*shore, error) {
	files := map[string][]byte{"big": random(1, 1<<20), "two": random(2, 100_000), "last": random(3, 300_000)}
	names := []string{"two"}
	for i := range 40 {
		name := fmt.Sprintf("small/%02d", i)
		files[name] = random(uint64(i+10), 3000)
		names = append(names, name)
	}
	return layerOf(append(names, "big", "last"), files)
}

// layerOf builds a layer of files, in the order of names.
func layerOf(names []string, files map[string][]byte) (*shore, error) {
	return layerIn(64<<10, names, files)
}

// layerIn does so with chunks of a size.
func layerIn(chunkSize int, names []string, files map[string][]byte) (*shore, error) {
	s := &shore{files: files}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range names {
		err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(s.files[name]))})
		if err == nil {
			_, err = w.Write(s.files[name])
		}
		if err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	built, err := estargz.Build(io.NewSectionReader(bytes.NewReader(buf.Bytes()), 0, int64(buf.Len())), estargz.WithChunkSize(chunkSize))
	if err != nil {
		return nil, err
	}
	if s.blob, err = io.ReadAll(built); err == nil {
		err = built.Close()
	}
	if err != nil {
		return nil, err
	}
	s.toc = built.TOCDigest()
	s.at, _, err = estargz.OpenFooter(io.NewSectionReader(bytes.NewReader(s.blob), 0, int64(len(s.blob))))
	return s, err
}

func (s *shore) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests++
	mood := s.mood
	s.mu.Unlock()
	if mood != nil && mood(w, r) {
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream") // else it is guessed from the first bytes
	http.ServeContent(w, r, "", time.Time{}, &counter{s: s, r: bytes.NewReader(s.blob)})
}

// counter notes which bytes of the blob were read to be sent.
type counter struct {
	s   *shore
	r   *bytes.Reader
	pos int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	for i := range int64(n) {
		c.s.sent[c.pos+i]++
	}
	c.pos += int64(n)
	return n, err
}

func (c *counter) Seek(off int64, whence int) (int64, error) {
	var err error
	c.pos, err = c.r.Seek(off, whence)
	return c.pos, err
}

func (s *shore) setMood(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mood = f
}

// traffic returns how many bytes of the blob were sent, and how many of them
// more than once; table and what lies behind it are left out.
func (s *shore) traffic() (sent, twice int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.sent[:s.at] {
		if n == 0 {
			continue
		}
		sent++
		if n > 1 {
			twice++
		}
	}
	return sent, twice
}

func (s *shore) asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests
}

// image returns a manifest and config of one layer; hint is the offset of the
// table that the manifest gives.
func (s *shore) image(t *testing.T, hint int64) (manifest, config []byte) {
	t.Helper()
	var cfg ocispec.Image
	cfg.RootFS.DiffIDs = []digest.Digest{digest.FromString("diff of " + s.toc.String())}
	config, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	m := ocispec.Manifest{
		Config: ocispec.Descriptor{Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers: []ocispec.Descriptor{{
			MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(s.blob), Size: int64(len(s.blob)),
			Annotations: map[string]string{annotation.TOCDigest: s.toc.String(), annotation.TOCOffset: fmt.Sprint(hint)},
		}},
	}
	if manifest, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	return manifest, config
}

var src = catalog.Source{Host: "shore.example", Repo: "app"}

// bench is a fetcher with all that it needs, in a directory that can be
// opened again.
type bench struct {
	*Fetcher
	store   *store.Store
	catalog *catalog.Catalog
	reg     *registry.Client
	dir     string
	closed  bool
}

// newBench opens a fetcher in dir that knows the shore's layer in slot 1.
func newBench(t *testing.T, s *shore, dir string, hint int64) *bench {
	t.Helper()
	return newBenchWith(t, s, dir, hint, Options{}, nil)
}

// newBenchWith does so with options, and with other hosts, by name.
func newBenchWith(t *testing.T, s *shore, dir string, hint int64, opts Options, others map[string]*shore) *bench {
	t.Helper()
	b := &bench{dir: dir}
	var err error
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	if b.store, err = store.Open(filepath.Join(dir, "store"), store.Options{Logger: log}); err != nil {
		t.Fatal(err)
	}
	if b.catalog, err = catalog.Open(filepath.Join(dir, "catalog.db"), nil); err != nil {
		t.Fatal(err)
	}
	opts.Logger = log
	if opts.MaxPause == 0 {
		opts.MaxPause = 20 * time.Millisecond
	}
	if opts.Patience == 0 {
		opts.Patience = 80 * time.Millisecond
	}
	meter := uplink.NewMeter(log)
	meter.MinStall = 300 * time.Millisecond
	meter.FirstByte(time.Millisecond) // loopback, not a satellite: stalls are noticed soon
	hosts := map[string]registry.Host{src.Host: {URL: s.URL}}
	for name, s := range others {
		hosts[name] = registry.Host{URL: s.URL}
	}
	b.reg = registry.New(registry.Options{Hosts: hosts, Keychain: authn.NewMultiKeychain(), Meter: meter, Logger: log})
	b.Fetcher = New(b.store, b.catalog, b.reg, meter, opts)
	t.Cleanup(func() { b.close(t) })
	b.learn(t, s, src, hint)
	return b
}

// learn makes the node know a shore's layer as one that src has, and returns
// its slot.
func (b *bench) learn(t *testing.T, s *shore, src catalog.Source, hint int64) uint32 {
	t.Helper()
	m, cfg := s.image(t, hint)
	img, err := b.catalog.Learn(src, "", ocispec.MediaTypeImageManifest, m, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return img.Layers[0].Slot
}

func (b *bench) close(t *testing.T) {
	t.Helper()
	if b.closed {
		return
	}
	b.closed = true
	b.Fetcher.Close() //nolint:staticcheck // bench has a close of its own
	b.reg.Close()
	if err := errors.Join(b.catalog.Close(), b.store.Close()); err != nil {
		t.Error(err)
	}
}

const slot = 1

// entry returns the entry of a file of the layer.
func (b *bench) entry(t *testing.T, name string) uint32 {
	t.Helper()
	return b.entryIn(t, slot, name)
}

func (b *bench) entryIn(t *testing.T, slot uint32, name string) uint32 {
	t.Helper()
	tree, err := b.Tree(t.Context(), slot)
	if err != nil {
		t.Fatal(err)
	}
	at := toc.Root
	for p := range strings.SplitSeq(name, "/") {
		next, ok := tree.Lookup(at, p)
		if !ok {
			t.Fatalf("%s is not in the tree", name)
		}
		at = next
	}
	return at
}

func (b *bench) open(t *testing.T, name string) *Content {
	t.Helper()
	return b.openIn(t, slot, name)
}

func (b *bench) openIn(t *testing.T, slot uint32, name string) *Content {
	t.Helper()
	c, err := b.Open(t.Context(), slot, b.entryIn(t, slot, name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// want reads n bytes at off and compares.
func (s *shore) want(t *testing.T, c *Content, name string, off int64, n int) {
	t.Helper()
	p := make([]byte, n)
	k, err := c.ReadAt(t.Context(), p, off)
	if want := s.files[name][off : off+int64(n)]; err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(p[:k], want) {
		t.Errorf("%s at %d: %d of %d bytes, %v, equal %v", name, off, k, n, err, bytes.Equal(p[:k], want))
	}
}
