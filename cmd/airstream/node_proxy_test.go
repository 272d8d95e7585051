package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/config"
	"github.com/airstream-io/airstream/internal/toc"
)

// openNode opens all of a node but its file system.
func openNode(t *testing.T, dir string, p *shoreProxy, registries bool, url string, patience time.Duration) *node {
	t.Helper()
	return openNodeWith(t, dir, url, config.NodeProxy{Address: p.listen, Patience: config.Duration(patience), Registries: registries})
}

func openNodeWith(t *testing.T, dir, url string, proxy config.NodeProxy) *node {
	t.Helper()
	cfg := config.Default()
	cfg.Root, cfg.State = dir, dir
	cfg.Fetch.Background = false
	cfg.Proxy = proxy
	cfg.Registry = map[string]config.Registry{}
	if url != "" {
		cfg.Registry[url] = config.Registry{URL: "http://" + url}
	}
	n := newNode("")
	if testing.Verbose() {
		n.log = newLogger(config.Log{Level: "debug"}, &n.tuning.level, streams{nil, io.Discard, t.Output()})
	}
	if err := n.openContent(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// get asks the mirror for a manifest, as containerd does.
func (n *node) get(t *testing.T, host, ref string) (digest.Digest, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/v2/app/manifests/"+ref+"?ns="+host, nil)
	w := httptest.NewRecorder()
	n.mirror.ServeHTTP(w, r)
	return digest.Digest(w.Header().Get("Docker-Content-Digest")), w.Code
}

// read reads a file of the image's only layer.
func (n *node) read(t *testing.T, path string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tree, err := n.fetcher.Tree(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	e := toc.Root
	for part := range strings.SplitSeq(path, "/") {
		var ok bool
		if e, ok = tree.Lookup(e, part); !ok {
			t.Fatalf("%s is not in the tree", path)
		}
	}
	c, err := n.fetcher.Open(ctx, 1, e)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // read only
	b := make([]byte, tree.Attr(e).Size)
	if k, err := c.ReadAt(ctx, b, 0); err != nil && err != io.EOF { //nolint:errorlint // ReadAt's own
		t.Fatalf("%d bytes of %s: %v", k, path, err)
	}
	return b
}

func (f *far) want(t *testing.T, n *node, path string) {
	t.Helper()
	if got := n.read(t, path); !bytes.Equal(got, f.files[path]) {
		t.Errorf("%s: %d bytes, which are not right", path, len(got))
	}
}

// proxyFor is a proxy, and an enrolled node's root.
func proxyFor(t *testing.T, f *far) (*shoreProxy, string) {
	t.Helper()
	p := startProxy(t, fmt.Sprintf("[registry.%q]\nurl = \"http://%s\"\n", "far.example", f.host))
	dir, _ := p.enrol(t, "vessel-1")
	return p, dir
}

// A node that reaches no registry starts an image through its proxy: what a start
// reads comes unasked, and the rest when it is read.
func TestANodeThatHasOnlyItsProxy(t *testing.T) {
	f := newFar(t)
	p, dir := proxyFor(t, f)
	n := openNode(t, dir, p, false, "", time.Minute)
	d, code := n.get(t, "far.example", "1")
	if code != http.StatusOK {
		t.Fatalf("the mirror said %d", code)
	}
	if again, code := n.get(t, "far.example", d.String()); code != http.StatusOK || again != d {
		t.Errorf("by its digest: %d, %s", code, again)
	}
	img, err := n.catalog.Image(d)
	if err != nil || len(img.Layers) != 1 || img.Layers[0].Slot == 0 {
		t.Fatalf("%+v, %v", img, err)
	}
	eventually(t, "the hot set", func() bool {
		c, err := n.fetcher.Completeness(1)
		return err == nil && c.Tables == 1 && c.Total-c.Missing >= 200_000
	})
	if waits := n.fetcher.Counts().Waits; waits != 0 {
		t.Errorf("%d reads waited", waits)
	}
	f.want(t, n, "bin/app")
	f.want(t, n, "lib/cold")
	f.want(t, n, "lib/other")
	before := f.asked.Load()
	if _, code := n.get(t, "far.example", "none"); code != http.StatusNotFound {
		t.Errorf("an image that there is not: %d", code)
	}
	if f.asked.Load() == before {
		t.Error("the registry was not asked")
	}
}

// After a restart only what is missing crosses, and a tag that means the same
// brings nothing again.
func TestAfterARestartOnlyWhatIsMissingCrosses(t *testing.T) {
	f := newFar(t)
	p, dir := proxyFor(t, f)
	n := openNode(t, dir, p, false, "", time.Minute)
	if _, code := n.get(t, "far.example", "1"); code != http.StatusOK {
		t.Fatalf("the mirror said %d", code)
	}
	f.want(t, n, "bin/app")
	if err := n.close(); err != nil {
		t.Fatal(err)
	}
	n = openNode(t, dir, p, false, "", time.Minute)
	if err := n.resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.want(t, n, "bin/app")
	f.want(t, n, "lib/cold")
	if _, code := n.get(t, "far.example", "1"); code != http.StatusOK {
		t.Fatalf("the mirror said %d", code)
	}
	state, _ := n.shore.session.State()
	counts := n.fetcher.Counts()
	t.Logf("%d bytes in all, %d chunks", state.Bytes, counts.Chunks)
	if counts.Chunks != 4 { // of lib/cold
		t.Errorf("%d chunks crossed", counts.Chunks)
	}
}

// A tag that is asked for again while only a part of its image is here brings
// nothing again either, and what is read later comes.
func TestATagThatIsAskedForAgainBringsNothingAgain(t *testing.T) {
	f := newFar(t)
	p, dir := proxyFor(t, f)
	n := openNode(t, dir, p, false, "", time.Minute)
	if _, code := n.get(t, "far.example", "1"); code != http.StatusOK {
		t.Fatalf("the mirror said %d", code)
	}
	n.ended(t, 1)
	before, _ := n.shore.session.State()
	if _, code := n.get(t, "far.example", "1"); code != http.StatusOK {
		t.Fatalf("the mirror said %d", code)
	}
	n.ended(t, 2)
	after, _ := n.shore.session.State()
	if crossed := after.Bytes - before.Bytes; crossed > 300 { // a plan of nothing
		t.Errorf("%d bytes crossed", crossed)
	}
	f.want(t, n, "lib/cold")
}

// A tag may mean what it meant before, and yet a table be missing: it comes then.
func TestATableThatIsMissingComesAgain(t *testing.T) {
	f := newFar(t)
	p, dir := proxyFor(t, f)
	n := openNode(t, dir, p, false, "", time.Minute)
	if _, code := n.get(t, "far.example", "1"); code != http.StatusOK {
		t.Fatalf("the mirror said %d", code)
	}
	f.want(t, n, "bin/app")
	if err := n.close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "store", "trees")); err != nil {
		t.Fatal(err)
	}
	n = openNode(t, dir, p, false, "", time.Minute)
	if _, code := n.get(t, "far.example", "1"); code != http.StatusOK {
		t.Fatalf("the mirror said %d", code)
	}
	n.ended(t, 1)
	f.want(t, n, "lib/cold")
}

// ended waits for all that comes unasked of the last of so many pulls.
func (n *node) ended(t *testing.T, pulls int) {
	t.Helper()
	n.shore.mu.Lock()
	all := slices.Clone(n.shore.pulls)
	n.shore.mu.Unlock()
	if len(all) != pulls {
		t.Fatalf("%d pulls go on, of %d", len(all), pulls)
	}
	if err := all[pulls-1].pull.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// When the proxy goes away, registries are asked; when it is back, it is. What
// has arrived is not asked for again.
func TestRegistriesAreAskedWhileTheProxyIsAway(t *testing.T) {
	f := newFar(t)
	p := startProxy(t, "")
	dir, _ := p.enrol(t, "vessel-1")
	n := openNode(t, dir, p, true, f.host, 300*time.Millisecond)
	if _, code := n.get(t, f.host, "1"); code != http.StatusOK {
		t.Fatalf("the mirror said %d", code)
	}
	f.want(t, n, "bin/app")
	if asked := f.nodes.Load(); asked != 0 {
		t.Errorf("the registry was asked %d times beside the proxy", asked)
	}
	p.stop()
	f.want(t, n, "lib/cold")
	before := f.nodes.Load()
	if before == 0 {
		t.Error("no registry was asked")
	}
	f.want(t, n, "bin/app")
	if after := f.nodes.Load(); after != before {
		t.Errorf("%d requests for what was here", after-before)
	}
	p.start(t)
	eventually(t, "the proxy", func() bool { given, _ := n.shore.givenUp(); return !given })
	f.want(t, n, "lib/other")
	if after := f.nodes.Load(); after != before {
		t.Errorf("the registry was asked %d times after the proxy was back", after-before)
	}
}

// A layer that is not lazy comes through the proxy as well, whole.
func TestALayerThatIsNotLazyComesThroughTheProxy(t *testing.T) {
	f := newFar(t)
	p, dir := proxyFor(t, f)
	n := openNode(t, dir, p, false, "", time.Minute)
	d, code := n.get(t, "far.example", "plain")
	if code != http.StatusOK {
		t.Fatalf("the mirror said %d", code)
	}
	img, err := n.catalog.Image(d)
	if err != nil || len(img.Layers) != 1 || img.Layers[0].Slot != 0 {
		t.Fatalf("%+v, %v", img, err)
	}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v2/app/blobs/"+img.Layers[0].Blob.String()+"?ns=far.example", nil)
	w := httptest.NewRecorder()
	n.mirror.ServeHTTP(w, r)
	if got := digest.FromBytes(w.Body.Bytes()); w.Code != http.StatusOK || got != img.Layers[0].Blob {
		t.Errorf("%d, %d bytes of %s", w.Code, w.Body.Len(), got)
	}
	if s := n.meter.State(); s.Bytes < img.Layers[0].Size {
		t.Errorf("%d bytes were counted", s.Bytes)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1500 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("timed out: %s", what)
}
