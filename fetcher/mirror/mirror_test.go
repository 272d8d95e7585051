package mirror

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	shoreregistry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	shoreimage "github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shore is a registry in this process, and whatever trouble tests ask for.
type shore struct {
	*httptest.Server
	mu       sync.Mutex
	requests []string                                          // guarded by mu
	mood     func(w http.ResponseWriter, r *http.Request) bool // guarded by mu; true: answered
}

func newShore(t *testing.T) *shore {
	t.Helper()
	s := &shore{}
	reg := shoreregistry.New(shoreregistry.Logger(log.New(io.Discard, "", 0)))
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		if r.Method == http.MethodGet {
			s.requests = append(s.requests, r.URL.Path)
		}
		mood := s.mood
		s.mu.Unlock()
		if mood == nil || !mood(w, r) {
			reg.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *shore) setMood(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mood = f
}

func (s *shore) seen() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.requests
	s.requests = nil
	return r
}

func (s *shore) push(t *testing.T, ref string, img v1.Image) {
	t.Helper()
	r, err := name.ParseReference(strings.TrimPrefix(s.URL, "http://") + "/" + ref)
	if err == nil {
		err = remote.Write(r, img, remote.WithContext(t.Context()))
	}
	if err != nil {
		t.Fatal(err)
	}
	s.seen()
}

func (s *shore) pushIndex(t *testing.T, ref string, idx v1.ImageIndex) {
	t.Helper()
	r, err := name.ParseReference(strings.TrimPrefix(s.URL, "http://") + "/" + ref)
	if err == nil {
		err = remote.WriteIndex(r, idx, remote.WithContext(t.Context()))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func randomImage(t *testing.T) v1.Image {
	t.Helper()
	img, err := shoreimage.Image(200_000, 2)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// nodeSide is a mirror with all that it needs, in a directory.
type nodeSide struct {
	*Mirror
	words *syncBuffer
	stop  func()
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newNode(t *testing.T, s *shore, dir string) *nodeSide {
	t.Helper()
	n := &nodeSide{words: &syncBuffer{}}
	logger := slog.New(slog.NewTextHandler(n.words, nil))
	st, err := store.Open(filepath.Join(dir, "store"), store.Options{Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	cat, err := catalog.Open(filepath.Join(dir, "catalog.db"))
	if err != nil {
		t.Fatal(err)
	}
	meter := uplink.NewMeter(logger)
	meter.MinStall = 500 * time.Millisecond
	meter.FirstByte(time.Millisecond)
	reg := registry.New(registry.Options{Hosts: map[string]registry.Host{"shore.example": {URL: s.URL}}, Keychain: authn.NewMultiKeychain(), Meter: meter})
	f := fetcher.New(st, cat, reg, meter, fetcher.Options{Logger: logger, MaxPause: 10 * time.Millisecond})
	n.Mirror = New(st, cat, reg, f, Options{Patience: 100 * time.Millisecond, Logger: logger})
	n.stop = sync.OnceFunc(func() {
		n.Close()
		f.Close()
		reg.Close()
		if err := errors.Join(cat.Close(), st.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(n.stop)
	return n
}

// get asks the mirror as containerd does.
func (n *nodeSide) get(t *testing.T, method, path string, header ...string) answer {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, "/v2/"+path+"?ns=shore.example", http.NoBody)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	n.ServeHTTP(w, r)
	return answer{w.Code, w.Header(), w.Body.Bytes()}
}

type answer struct {
	status int
	header http.Header
	body   []byte
}

// pull gets all that a plain pull needs, and verifies it.
func (n *nodeSide) pull(t *testing.T, ref string, img v1.Image) {
	t.Helper()
	repo, tag, _ := strings.Cut(ref, ":")
	want, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	if resp := n.get(t, "HEAD", repo+"/manifests/"+tag); resp.status != 200 || resp.header.Get("Docker-Content-Digest") != digest.FromBytes(want).String() || resp.header.Get("Content-Length") != fmt.Sprint(len(want)) {
		t.Fatalf("HEAD %s: %d %v", ref, resp.status, resp.header)
	}
	resp := n.get(t, "GET", repo+"/manifests/"+digest.FromBytes(want).String())
	if got := resp.body; !bytes.Equal(got, want) {
		t.Fatalf("manifest of %s: %d %q", ref, resp.status, got)
	}
	var m v1.Manifest
	if err := json.Unmarshal(want, &m); err != nil {
		t.Fatal(err)
	}
	for _, d := range append(m.Layers, m.Config) {
		resp := n.get(t, "GET", repo+"/blobs/"+d.Digest.String())
		if b := resp.body; resp.status != 200 || digest.FromBytes(b).String() != d.Digest.String() {
			t.Fatalf("blob %s: %d, %d bytes", d.Digest, resp.status, len(b))
		}
	}
}

func dead(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }

func TestPullThenDarkPullAfterARestart(t *testing.T) {
	s, dir := newShore(t), t.TempDir()
	img := randomImage(t)
	s.push(t, "app:1", img)
	n := newNode(t, s, dir)
	n.pull(t, "app:1", img)
	first := s.seen()
	if len(first) != 4 { // manifest by tag, config, two layers
		t.Errorf("%d requests for a pull, want 4: %q", len(first), first)
	}
	if !strings.Contains(n.words.String(), "not lazy") {
		t.Errorf("the log doesn't say that the image is not lazy:\n%s", n.words)
	}
	n.stop()
	s.setMood(dead)
	n = newNode(t, s, dir)
	n.pull(t, "app:1", img)
	if !strings.Contains(n.words.String(), "means what it meant last") {
		t.Errorf("the log doesn't say that the tag is a cached one:\n%s", n.words)
	}
}

func TestMovedTagIsSeenWhenTheLinkIsUp(t *testing.T) {
	s := newShore(t)
	one, two := randomImage(t), randomImage(t)
	s.push(t, "app:1", one)
	n := newNode(t, s, t.TempDir())
	n.pull(t, "app:1", one)
	s.push(t, "app:1", two)
	n.pull(t, "app:1", two)
	s.setMood(dead)
	n.pull(t, "app:1", two)
}

func TestSlowRegistryMeansTheCachedTagAndLaterTheNewOne(t *testing.T) {
	s := newShore(t)
	one, two := randomImage(t), randomImage(t)
	s.push(t, "app:1", one)
	n := newNode(t, s, t.TempDir())
	n.pull(t, "app:1", one)
	s.push(t, "app:1", two)
	hold := make(chan struct{})
	s.setMood(func(_ http.ResponseWriter, r *http.Request) bool {
		select {
		case <-hold:
		case <-r.Context().Done():
		}
		return false
	})
	n.pull(t, "app:1", one)
	close(hold) // the question is still under way, and its answer is kept
	d, err := two.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if tag, err := n.catalog.Tag("shore.example/app:1"); err == nil && tag.Digest.String() == d.String() {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the new meaning never arrived")
		}
	}
}

func TestDarkLinkIsNotWaitedForTwice(t *testing.T) {
	s := newShore(t)
	img := randomImage(t)
	s.push(t, "app:1", img)
	n := newNode(t, s, t.TempDir())
	n.opts.Patience = time.Minute
	n.pull(t, "app:1", img)
	s.setMood(func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }) // a blackhole
	n.pull(t, "app:1", img)                                                                            // ends with the stall
	began := time.Now()
	n.pull(t, "app:1", img)
	if took := time.Since(began); took > 450*time.Millisecond {
		t.Errorf("%v to answer from the cache on a link that is known to be dark; a stall takes 500 ms", took)
	}
}

func TestUnknownImageWithoutALinkIsUnavailable(t *testing.T) {
	s := newShore(t)
	n := newNode(t, s, t.TempDir())
	s.setMood(dead)
	resp := n.get(t, "HEAD", "app/manifests/1")
	if resp.status != http.StatusServiceUnavailable || resp.header.Get("Retry-After") == "" {
		t.Errorf("%d %v", resp.status, resp.header)
	}
	s.setMood(nil)
	if resp := n.get(t, "GET", "none/manifests/1"); resp.status != http.StatusNotFound {
		t.Errorf("an image that the registry doesn't have: %d", resp.status)
	}
	s.setMood(func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, "members only", http.StatusForbidden)
		return true
	})
	if resp := n.get(t, "GET", "app/manifests/1"); resp.status != http.StatusForbidden || !bytes.Contains(resp.body, []byte("credentials")) {
		t.Errorf("refused credentials: %d", resp.status)
	}
}

func TestIndexPassesAndItsPlatformIsLearned(t *testing.T) {
	s := newShore(t)
	img := randomImage(t)
	idx := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img})
	s.pushIndex(t, "app:multi", idx)
	n := newNode(t, s, t.TempDir())
	want, err := idx.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	if got := n.get(t, "GET", "app/manifests/multi").body; !bytes.Equal(got, want) {
		t.Errorf("index: %q", got)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	n.get(t, "GET", "app/manifests/"+d.String())
	if images, err := n.catalog.Images(); err != nil || len(images) != 1 || images[0].Manifest.String() != d.String() {
		t.Errorf("%+v, %v", images, err)
	}
}

func TestRangesOfBlobs(t *testing.T) {
	s := newShore(t)
	img := randomImage(t)
	s.push(t, "app:1", img)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	d, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	rc, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	want, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	size := len(want)
	n := newNode(t, s, t.TempDir())
	n.get(t, "GET", "app/manifests/1")
	for _, cached := range []bool{false, true} {
		for _, tc := range []struct {
			header   string
			status   int
			off, end int
		}{
			{"bytes=0-99", 206, 0, 100},
			{fmt.Sprintf("bytes=%d-", size-5), 206, size - 5, size},
			{"bytes=-7", 206, size - 7, size},
			{fmt.Sprintf("bytes=100-%d", size*2), 206, 100, size},
			{fmt.Sprintf("bytes=%d-", size), 416, 0, 0},
		} {
			resp := n.get(t, "GET", "app/blobs/"+d.String(), "Range", tc.header)
			got := resp.body
			if resp.status != tc.status || tc.status == 206 && !bytes.Equal(got, want[tc.off:tc.end]) {
				t.Errorf("cached %v, %s: %d, %d bytes, want %d", cached, tc.header, resp.status, len(got), tc.end-tc.off)
			}
		}
		if resp := n.get(t, "HEAD", "app/blobs/"+d.String()); resp.status != 200 || resp.header.Get("Content-Length") != fmt.Sprint(size) {
			t.Errorf("cached %v, HEAD: %d, %v", cached, resp.status, resp.header)
		}
		n.get(t, "GET", "app/blobs/"+d.String())
	}
}

func TestRequestsThatMakeNoSense(t *testing.T) {
	s := newShore(t)
	n := newNode(t, s, t.TempDir())
	for path, status := range map[string]int{
		"app/blobs/sha256:xyz":                400,
		"app/manifests/sha256:../../x":        400,
		"app/../../../etc/passwd/manifests/1": 400,
		"App/manifests/1":                     400,
		"app/tags/list":                       400,
		"app/blobs/" + digest.FromString("never announced").String():  404,
		"app/manifests/" + digest.FromString("never pushed").String(): 404,
		"app/manifests/" + strings.Repeat("a", 129):                   400,
	} {
		if resp := n.get(t, "GET", path); resp.status != status {
			t.Errorf("%s: %d, want %d", path, resp.status, status)
		}
	}
	if resp := n.get(t, "PUT", "app/manifests/1"); resp.status != http.StatusMethodNotAllowed {
		t.Errorf("PUT: %d", resp.status)
	}
	r := httptest.NewRequestWithContext(t.Context(), "GET", "/v2/app/manifests/1", http.NoBody)
	w := httptest.NewRecorder()
	n.ServeHTTP(w, r)
	if w.Code != 400 || !strings.Contains(w.Body.String(), "hosts.toml") {
		t.Errorf("without ns: %d %s", w.Code, w.Body)
	}
}

func TestClientThatGoesAwayLeavesTheQuestion(t *testing.T) {
	s := newShore(t)
	img := randomImage(t)
	s.push(t, "app:1", img)
	n := newNode(t, s, t.TempDir())
	arrived, hold := make(chan struct{}), make(chan struct{})
	var once sync.Once
	s.setMood(func(http.ResponseWriter, *http.Request) bool {
		once.Do(func() { close(arrived) })
		<-hold
		return false
	})
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		r := httptest.NewRequestWithContext(ctx, "GET", "/v2/app/manifests/1?ns=shore.example", http.NoBody)
		n.ServeHTTP(httptest.NewRecorder(), r)
	}()
	<-arrived
	cancel()
	<-gone
	close(hold)
	n.pull(t, "app:1", img)
	manifests := 0
	for _, p := range s.seen() {
		if strings.Contains(p, "/manifests/1") {
			manifests++
		}
	}
	if manifests > 2 { // the one that was left, and the pull's if it came late
		t.Errorf("%d questions", manifests)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("/v2/app/manifests/1", "registry.example:5000")
	f.Add("/v2/a/b/c/blobs/"+digest.FromString("x").String(), "[::1]:80")
	f.Add("/v2/../manifests/..", "..")
	f.Fuzz(func(t *testing.T, path, ns string) {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/", http.NoBody)
		r.URL.Path = path
		q := r.URL.Query()
		q.Set("ns", ns)
		r.URL.RawQuery = q.Encode()
		got, err := parse(r)
		if err != nil {
			return
		}
		for p := range strings.SplitSeq(got.src.Repo, "/") {
			if p == "" || p == "." || p == ".." {
				t.Errorf("repository %q", got.src.Repo)
			}
		}
		if strings.ContainsAny(got.src.Host+got.ref, "/?#%@ ") {
			t.Errorf("host %q, ref %q", got.src.Host, got.ref)
		}
	})
}

func FuzzByteRange(f *testing.F) {
	f.Add("bytes=0-99", int64(1000))
	f.Add("bytes=-5", int64(3))
	f.Add("bytes=9-", int64(9))
	f.Fuzz(func(t *testing.T, h string, size int64) {
		if size < 0 {
			return
		}
		if off, end, _, ok := byteRange(h, size); ok && (off < 0 || off > end || end > size) {
			t.Errorf("%q of %d: [%d, %d)", h, size, off, end)
		}
	})
}
