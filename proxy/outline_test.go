package proxy

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/internal/toc"
)

// plainTar is a layer as docker build makes it.
func plainTar(tb testing.TB, files []file) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		err := w.WriteHeader(&tar.Header{Name: f.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(f.content))})
		if err == nil {
			_, err = w.Write(f.content)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

func squeeze(tb testing.TB, mediaType string, raw []byte) []byte {
	tb.Helper()
	var buf bytes.Buffer
	var err error
	switch mediaType {
	case ocispec.MediaTypeImageLayerGzip:
		w := gzip.NewWriter(&buf)
		_, err = w.Write(raw)
		if err == nil {
			err = w.Close()
		}
	case ocispec.MediaTypeImageLayerZstd:
		var w *zstd.Encoder
		if w, err = zstd.NewWriter(&buf); err == nil {
			if _, err = w.Write(raw); err == nil {
				err = w.Close()
			}
		}
	default:
		buf.Write(raw)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

// plainLayer is a layer that was never converted.
type plainLayer struct {
	mediaType string
	raw       []byte
	diffID    digest.Digest // "": the tar's
}

// pushPlain pushes an image that was never converted.
func (s *shore) pushPlain(tb testing.TB, repo, tag string, layers ...plainLayer) *testImage {
	tb.Helper()
	img := &testImage{ref: s.host() + "/" + repo + ":" + tag}
	var cfg ocispec.Image
	cfg.OS, cfg.Architecture = "linux", "amd64"
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	for _, l := range layers {
		blob := squeeze(tb, l.mediaType, l.raw)
		if l.diffID == "" {
			l.diffID = digest.FromBytes(l.raw)
		}
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, l.diffID)
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: l.mediaType, Digest: s.blob(tb, repo, blob), Size: int64(len(blob))})
		img.blobs = append(img.blobs, l.raw)
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
	return img
}

func plainApp(tb testing.TB) []byte {
	tb.Helper()
	return plainTar(tb, []file{{name: "bin/app", content: noise(1, 3<<20)}, {name: "etc/conf", content: prose(2, 100_000)}})
}

// rebuilt makes a layer's tar of what came.
func (n *node) rebuilt(tb testing.TB, i int) digest.Digest {
	tb.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	var out bytes.Buffer
	at := slices.IndexFunc(n.tables, func(t link.Table) bool { return t.Layer == i })
	err := toc.Rebuild(&out, bytes.NewReader(n.tables[at].Body), func(c uint32, _ chunk.ID, _ int64) ([]byte, error) {
		return n.chunks[[2]int{i, int(c)}], nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return digest.FromBytes(out.Bytes())
}

func wantAll(ref string) link.Request {
	return link.Request{Reference: ref, Platform: "linux/amd64", Depth: link.All, Outlines: true}
}

// An image that was never converted is served in pieces, in all three forms that
// layers have, and what comes makes its tars again.
func TestAnImageThatWasNeverConverted(t *testing.T) {
	s := newShore(t)
	layers := []plainLayer{
		{mediaType: ocispec.MediaTypeImageLayerGzip, raw: plainApp(t)},
		{mediaType: ocispec.MediaTypeImageLayerZstd, raw: plainTar(t, []file{{name: "z", content: prose(3, 200_000)}})},
		{mediaType: ocispec.MediaTypeImageLayer, raw: plainTar(t, []file{{name: "u", content: noise(4, 70_000)}})},
	}
	img := s.pushPlain(t, "team/plain", "1", layers...)
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{})
	sess := dial(t, p.addr, "vessel-1", nil)
	n := newNode()
	wait(t, sess.Pull(wantAll(img.ref), n))
	if !slices.Equal(n.outlines, []int{0, 1, 2}) {
		t.Fatalf("outlines of %v", n.outlines)
	}
	for i, l := range layers {
		if got := n.rebuilt(t, i); got != digest.FromBytes(l.raw) || n.tables[i].DiffID != got {
			t.Errorf("layer %d: %s", i, got)
		}
	}
	// A node that does not take the proxy's word gets none of it.
	n = newNode()
	req := wantAll(img.ref)
	req.Outlines = false
	wait(t, sess.Pull(req, n))
	if len(n.tables) > 0 || len(n.outlines) > 0 || n.count() > 0 {
		t.Error("outlines came that were not asked for")
	}
}

// A layer is read once, however many nodes want it at a time, and they are told how
// far that is.
func TestALayerIsReadOnceForAllNodes(t *testing.T) {
	s := newShore(t)
	img := s.pushPlain(t, "team/plain", "1", plainLayer{mediaType: ocispec.MediaTypeImageLayerGzip, raw: plainApp(t)})
	var reads atomic.Int64
	blob := layersOf(t, img)[0].Digest.String()
	s.setMood(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, blob) {
			reads.Add(1)
			time.Sleep(500 * time.Millisecond)
		}
		return false
	})
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{Reassure: 50 * time.Millisecond})
	var all sync.WaitGroup
	nodes := []*node{newNode(), newNode(), newNode()}
	for i, n := range nodes {
		sess := dial(t, p.addr, "vessel-"+string(rune('1'+i)), nil)
		all.Go(func() { wait(t, sess.Pull(wantAll(img.ref), n)) })
	}
	all.Wait()
	if reads.Load() != 1 {
		t.Errorf("the layer was read %d times", reads.Load())
	}
	for _, n := range nodes {
		if n.rebuilt(t, 0) != digest.FromBytes(img.blobs[0]) {
			t.Error("a node got something else")
		}
		if said := strings.Join(n.status, "\n"); !strings.Contains(said, "for the first time: ") {
			t.Errorf("a node was told %q", said)
		}
	}
}

// What is not in the cache any more, or damaged there, is read again.
func TestALayerIsReadAgainIfTheCacheHasLostIt(t *testing.T) {
	s := newShore(t)
	img := s.pushPlain(t, "team/plain", "1", plainLayer{mediaType: ocispec.MediaTypeImageLayerGzip, raw: plainApp(t)})
	dir := t.TempDir()
	p := serve(t, dir, "127.0.0.1:0", Options{})
	sess := dial(t, p.addr, "vessel-1", nil)
	req := wantAll(img.ref)
	req.Depth = link.Names
	n := newNode()
	pull := sess.Pull(req, n)
	wait(t, pull)
	blob := layersOf(t, img)[0].Digest.Encoded()
	tarDir := filepath.Join(dir, "cache", "tar", blob)
	if err := os.Remove(filepath.Join(tarDir, "0")); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(tarDir, "1"), 5); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tarDir, "2"), make([]byte, blockSize), 0o600); err != nil {
		t.Fatal(err)
	}
	for c := range uint32(n.trees[0].NumChunks()) {
		pull.Demand(link.Demand, 0, c)
	}
	await(t, "all chunks", func() bool { return n.count() == n.trees[0].NumChunks() })
	if n.rebuilt(t, 0) != digest.FromBytes(img.blobs[0]) {
		t.Error("something else came")
	}
}

// An image that a node has and that was never converted is not read for its inventory,
// which would hold up the image that it wants; if it was read before, it counts.
func TestAnInventoryIsNotReadToItsEnd(t *testing.T) {
	s := newShore(t)
	here := s.pushPlain(t, "team/here", "1", plainLayer{mediaType: ocispec.MediaTypeImageLayerGzip, raw: plainApp(t)})
	img := s.pushPlain(t, "team/plain", "1", plainLayer{mediaType: ocispec.MediaTypeImageLayerGzip, raw: plainTar(t, []file{{name: "same", content: noise(1, 3<<20)}, {name: "new", content: noise(2, 1000)}})})
	var reads atomic.Int64
	blob := layersOf(t, here)[0].Digest.String()
	s.setMood(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, blob) {
			reads.Add(1)
		}
		return false
	})
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{})
	sess := dial(t, p.addr, "vessel-1", nil)
	req := wantAll(img.ref)
	req.Have = []string{s.host() + "/team/here@" + digest.FromBytes(here.manifest).String()}
	n := newNode()
	wait(t, sess.Pull(req, n))
	if reads.Load() != 0 || n.count() != 3<<20/toc.OutlineChunk+1 {
		t.Errorf("%d reads of what is here, %d chunks came", reads.Load(), n.count())
	}
	wait(t, sess.Pull(wantAll(here.ref), newNode()))
	n = newNode()
	wait(t, dial(t, p.addr, "vessel-2", nil).Pull(req, n)) // on the first session all of it has crossed
	if reads.Load() != 1 || n.count() != 1 {
		t.Errorf("%d reads of what is here, %d chunks came", reads.Load(), n.count())
	}
}

// A layer that can't be served in pieces, or is not what its image says, crosses whole:
// then the node's own unpacker has the last word.
func TestLayersThatAreNotServedInPieces(t *testing.T) {
	s := newShore(t)
	gz := ocispec.MediaTypeImageLayerGzip
	good := plainTar(t, []file{{name: "a", content: noise(9, 1000)}})
	img := s.pushPlain(t, "team/plain", "1",
		plainLayer{mediaType: gz, raw: plainTar(t, []file{{name: "a", content: []byte("1")}, {name: "a", content: []byte("2")}})},
		plainLayer{mediaType: gz, raw: []byte(strings.Repeat("no tar", 500))},
		plainLayer{mediaType: gz, raw: good, diffID: digest.FromString("another")},
		plainLayer{mediaType: gz, raw: plainTar(t, []file{{name: "b", content: noise(10, 1000)}})},
		plainLayer{mediaType: gz, raw: plainTar(t, []file{{name: "large", content: noise(11, 6<<20)}})},
	)
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{CacheLimit: 8 << 20})
	n := newNode()
	wait(t, dial(t, p.addr, "vessel-1", nil).Pull(wantAll(img.ref), n))
	if !slices.Equal(n.outlines, []int{3}) {
		t.Errorf("outlines of %v", n.outlines)
	}
}

// What stands in the cache is read as it was written, or not at all.
func FuzzOutlineHead(f *testing.F) {
	f.Add((&outline{size: 5}).marshal())
	f.Add((&outline{refused: "it is sparse"}).marshal())
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, ok := parseOutlineHead(b); ok && !bytes.Equal(o.marshal(), b) {
			t.Errorf("%x is read as %+v", b, o)
		}
		o := &outline{size: int64(len(b)), refused: string(b)}
		copy(o.diffID[:], b)
		if again, ok := parseOutlineHead(o.marshal()); !ok || *again != *o {
			t.Errorf("%+v became %+v", o, again)
		}
	})
}
