package mirror

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
	if resp := n.get(t, "GET", "app/manifests/1"); resp.status != http.StatusUnauthorized || !bytes.Contains(resp.body, []byte("credentials")) || !strings.HasPrefix(resp.header.Get("WWW-Authenticate"), "Basic ") {
		t.Errorf("the node is refused: %d", resp.status)
	}
	if resp := n.get(t, "GET", "app/manifests/1", "Authorization", "Basic cG9kOmd1ZXNz"); resp.status != http.StatusForbidden || !bytes.Contains(resp.body, []byte("credentials")) {
		t.Errorf("the client is refused, too: %d", resp.status)
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
		"app/blobs/sha256:xyz":                         400,
		"app/manifests/sha256:../../x":                 400,
		"app/../../../etc/passwd/manifests/1":          400,
		"App/manifests/1":                              400,
		"app/catalog":                                  400,
		"app/tags/list":                                404,
		"app/tags/list&n=many":                         400,
		"app/blobs/sha512:" + strings.Repeat("a", 128): 400,
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
	f.Add("/v2/app/manifests/1", "registry.example:5000", "")
	f.Add("/v2/a/b/c/blobs/"+digest.FromString("x").String(), "[::1]:80", "")
	f.Add("/v2/../manifests/..", "..", "..")
	f.Add("/v2/registry.example/app/tags/list", "", "docker.io")
	f.Fuzz(func(t *testing.T, path, ns, def string) {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/", http.NoBody)
		r.URL.Path = path
		q := r.URL.Query()
		q.Set("ns", ns)
		r.URL.RawQuery = q.Encode()
		got, err := parse(r, def)
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
