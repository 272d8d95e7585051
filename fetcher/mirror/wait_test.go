package mirror

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/internal/catalog"
)

// listen serves a node's mirror on loopback and returns its address and a
// client with the limits that containerd has, made shorter: no answer may begin
// later than after limit.
func (n *nodeSide) listen(t *testing.T, limit time.Duration) (string, *http.Client) {
	t.Helper()
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Serve(ctx, lis) }()
	tr := &http.Transport{ResponseHeaderTimeout: limit}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return "http://" + lis.Addr().String(), &http.Client{Transport: tr}
}

func fetch(t *testing.T, c *http.Client, url string, header ...string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return c.Do(req)
}

func layerBytes(t *testing.T, img v1.Image) []byte {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	rc, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(rc)
	if err = errors.Join(err, rc.Close()); err != nil {
		t.Fatal(err)
	}
	return b
}

// The answer for a blob begins before containerd gives it up, and goes on when
// the link is back, however long that takes.
func TestBlobIsWaitedForLongerThanContainerdWaitsForAnAnswer(t *testing.T) {
	s := newShore(t)
	img := randomImage(t)
	s.push(t, "app:1", img)
	n := newNode(t, s, t.TempDir())
	n.get(t, "GET", "app/manifests/1")
	s.setMood(dead)
	url, c := n.listen(t, 1500*time.Millisecond) // a first byte is waited for 1 s
	resp, err := fetch(t, c, url+"/v2/app/blobs/"+firstLayer(t, img)+"?ns=shore.example")
	if err != nil {
		t.Fatal(err)
	}
	s.setMood(nil)
	got, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil || !bytes.Equal(got, layerBytes(t, img)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// So does the answer for a manifest that an index has told of.
func TestManifestOfAnIndexIsWaitedFor(t *testing.T) {
	s := newShore(t)
	img := randomImage(t)
	s.pushIndex(t, "app:multi", mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img}))
	n := newNode(t, s, t.TempDir())
	n.get(t, "GET", "app/manifests/multi")
	s.setMood(dead)
	url, c := n.listen(t, 1500*time.Millisecond)
	resp, err := fetch(t, c, url+"/v2/app/manifests/"+digestOf(t, img)+"?ns=shore.example")
	if err != nil {
		t.Fatal(err)
	}
	s.setMood(nil)
	got, err := io.ReadAll(resp.Body)
	want, merr := img.RawManifest()
	if err = errors.Join(err, merr, resp.Body.Close()); err != nil || !bytes.Equal(got, want) || resp.Header.Get("Content-Type") == "" {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := n.catalog.Image(digest.Digest(digestOf(t, img))); err != nil {
		t.Errorf("containerd has the manifest and the catalog does not know the image: %v", err)
	}
}

// An image that is not here, on a link that is dark, is an error that says so,
// before containerd would give up without one.
func TestUncachedImageOnADarkLinkFailsInTime(t *testing.T) {
	s := newShore(t)
	n := newNode(t, s, t.TempDir())
	s.setMood(blackhole)
	url, c := n.listen(t, 1500*time.Millisecond)
	for range 2 {
		resp, err := fetch(t, c, url+"/v2/app/manifests/1?ns=shore.example")
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !strings.Contains(string(b), "the link is dark") && !strings.Contains(string(b), "not answered") {
			t.Errorf("%d %s %v", resp.StatusCode, b, err)
		}
	}
}

// A definite refusal is told as one, though the answer for a blob could begin
// at once.
func TestRefusedBlobIsNoCutBlob(t *testing.T) {
	s := newShore(t)
	img := randomImage(t)
	s.push(t, "app:1", img)
	n := newNode(t, s, t.TempDir())
	n.get(t, "GET", "app/manifests/1")
	s.setMood(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusNotFound)
		return true
	})
	if resp := n.get(t, "GET", "app/blobs/"+firstLayer(t, img)); resp.status != 404 || resp.header.Get("Content-Length") != "" {
		t.Errorf("%d %v", resp.status, resp.header)
	}
}

// While a blob crosses, all who want it follow one download, from wherever they
// begin; what breaks off goes on at its place, and a restart takes nothing
// back.
func TestReadersOfACrossingBlobShareIt(t *testing.T) {
	s, dir := newShore(t), t.TempDir()
	img := randomImage(t)
	s.push(t, "app:1", img)
	blob, want := firstLayer(t, img), layerBytes(t, img)
	half := len(want) / 2
	n := newNode(t, s, dir)
	n.get(t, "GET", "app/manifests/1")
	var mu sync.Mutex
	var ranges []string
	hold := make(chan struct{})
	s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, blob) {
			return false
		}
		mu.Lock()
		ranges = append(ranges, r.Header.Get("Range"))
		first := len(ranges) == 1
		mu.Unlock()
		if first {
			w.Header().Set("Content-Length", fmt.Sprint(len(want)))
			_, err := w.Write(want[:half])
			if err = errors.Join(err, http.NewResponseController(w).Flush()); err != nil {
				t.Error(err)
			}
			select {
			case <-hold:
			case <-r.Context().Done():
			}
			panic(http.ErrAbortHandler)
		}
		return false
	})
	url, c := n.listen(t, 5*time.Second)
	url += "/v2/app/blobs/" + blob + "?ns=shore.example"
	offs := []int{0, 100, half - 1, half + 1000, len(want) - 7}
	var wg sync.WaitGroup
	reached := make(chan struct{}, len(offs))
	for _, off := range offs {
		wg.Go(func() {
			resp, err := fetch(t, c, url, "Range", fmt.Sprintf("bytes=%d-", off))
			if err != nil {
				t.Error(err)
				return
			}
			got, err := readTelling(resp.Body, reached)
			if err = errors.Join(err, resp.Body.Close()); err != nil || !bytes.Equal(got, want[off:]) {
				t.Errorf("from %d on: %d bytes, %v", off, len(got), err)
			}
		})
	}
	<-reached // one of them has bytes, the others wait for theirs
	close(hold)
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	if len(ranges) != 2 || !strings.HasPrefix(ranges[1], fmt.Sprintf("bytes=%d-", half)) {
		t.Errorf("asked the registry for %q, want the whole and the rest from %d on", ranges, half)
	}
	if resp := n.get(t, "GET", "app/blobs/"+blob, "Range", "bytes=0-9", "If-Range", `"another"`); resp.status != 200 {
		t.Errorf("If-Range of another version: %d", resp.status)
	}
}

func readTelling(r io.Reader, reached chan<- struct{}) ([]byte, error) {
	first := make([]byte, 1)
	if _, err := io.ReadFull(r, first); err != nil {
		return nil, err
	}
	select {
	case reached <- struct{}{}:
	default:
	}
	rest, err := io.ReadAll(r)
	return append(first, rest...), err
}

func TestRangeInTheMiddleGoesOnAfterARestart(t *testing.T) {
	s, dir := newShore(t), t.TempDir()
	img := randomImage(t)
	s.push(t, "app:1", img)
	blob, want := firstLayer(t, img), layerBytes(t, img)
	half := len(want) / 2
	s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, blob) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(want)))
		if err := errors.Join(second(w.Write(want[:half])), http.NewResponseController(w).Flush()); err != nil {
			t.Error(err)
		}
		<-r.Context().Done()
		return true
	})
	n := newNode(t, s, dir)
	n.get(t, "GET", "app/manifests/1")
	if resp := n.get(t, "GET", "app/blobs/"+blob, "Range", fmt.Sprintf("bytes=0-%d", half-1)); !bytes.Equal(resp.body, want[:half]) {
		t.Fatalf("%d bytes", len(resp.body))
	}
	n.stop()
	var asked []string
	s.setMood(func(_ http.ResponseWriter, r *http.Request) bool {
		asked = append(asked, r.Header.Get("Range"))
		return false
	})
	n = newNode(t, s, dir)
	if resp := n.get(t, "GET", "app/blobs/"+blob, "Range", fmt.Sprintf("bytes=%d-", half-10)); resp.status != 206 || !bytes.Equal(resp.body, want[half-10:]) {
		t.Errorf("%d, %d bytes", resp.status, len(resp.body))
	}
	if len(asked) != 1 || !strings.HasPrefix(asked[0], fmt.Sprintf("bytes=%d-", half)) {
		t.Errorf("asked for %q, want the second half alone", asked)
	}
}

func second[T any](_ T, err error) error { return err }

func TestHeadOfABlobClaimsOnlyWhatCanBeServed(t *testing.T) {
	s := newShore(t)
	img := randomImage(t)
	s.push(t, "app:1", img)
	n := newNode(t, s, t.TempDir())
	n.get(t, "GET", "app/manifests/1")
	blob := "app/blobs/" + firstLayer(t, img)
	if resp := n.get(t, "HEAD", blob); resp.status != 200 {
		t.Errorf("up: %d", resp.status)
	}
	s.setMood(dead)
	n.get(t, "HEAD", "app/manifests/other")
	if resp := n.get(t, "HEAD", blob); resp.status != 503 {
		t.Errorf("dark and not here: %d", resp.status)
	}
	s.setMood(nil)
	n.get(t, "GET", blob)
	s.setMood(dead)
	n.get(t, "HEAD", "app/manifests/other")
	if resp := n.get(t, "HEAD", blob); resp.status != 200 {
		t.Errorf("dark and here: %d", resp.status)
	}
}

// What a client sees of an error is what the distribution API has for it.
func TestErrorsAreJSON(t *testing.T) {
	s := newShore(t)
	n := newNode(t, s, t.TempDir())
	for path, code := range map[string]string{
		"none/manifests/1":  codeManifestUnknown,
		"none/tags/list":    codeNameUnknown,
		"none/manifests/-x": codeNameInvalid,
		"none/blobs/sha256:7173b809ca12ec5dee4506cd86be934c4596dd234ee82c0662eac04a8c2c71dc": codeBlobUnknown,
		"none/blobs/sha256:71": codeDigestInvalid,
	} {
		resp := n.get(t, "GET", path)
		var body struct {
			Errors []struct{ Code, Message string }
		}
		if err := json.Unmarshal(resp.body, &body); err != nil || len(body.Errors) != 1 || body.Errors[0].Code != code || resp.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %s", path, resp.status, resp.body)
		}
	}
	w := httptest.NewRecorder()
	n.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/v2/", http.NoBody))
	if w.Code != 200 || w.Header().Get("Docker-Distribution-Api-Version") != "registry/2.0" {
		t.Errorf("GET /v2/: %d %v", w.Code, w.Header())
	}
}

// What is in an image may be known late though its manifest is here: a HEAD is answered,
// and the answer for the manifest begins before containerd gives it up, by tag and by
// digest, and ends when the image is known.
func TestAManifestWaitsForItsImage(t *testing.T) {
	s := newShore(t)
	img := randomImage(t)
	s.push(t, "app:1", img)
	known := make(chan struct{})
	n := newNode(t, s, t.TempDir(), func(o *Options, _ map[string]registry.Host) {
		o.Settle = func(ctx context.Context, src catalog.Source, man registry.Manifest) error {
			if src.Repo != "app" || man.Digest.String() != digestOf(t, img) {
				t.Errorf("settle %+v, %s", src, man.Digest)
			}
			select {
			case <-known:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	url, c := n.listen(t, 1500*time.Millisecond)
	if resp := n.get(t, "HEAD", "app/manifests/1"); resp.status != http.StatusOK || resp.header.Get("Docker-Content-Digest") != digestOf(t, img) {
		t.Errorf("HEAD: %d %v", resp.status, resp.header)
	}
	want, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		body []byte
		err  error
	}
	begun, ended := make(chan int, 2), make(chan result, 2)
	for _, ref := range []string{"1", digestOf(t, img)} {
		go func() {
			resp, err := fetch(t, c, url+"/v2/app/manifests/"+ref+"?ns=shore.example")
			if err != nil {
				begun <- 0
				ended <- result{nil, err}
				return
			}
			begun <- resp.StatusCode
			body, err := io.ReadAll(resp.Body)
			ended <- result{body, errors.Join(err, resp.Body.Close())}
		}()
	}
	for range 2 {
		if status := <-begun; status != http.StatusOK {
			t.Errorf("status %d", status)
		}
	}
	if _, err := n.catalog.Image(digest.Digest(digestOf(t, img))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the image is known before it is known what is in it: %v", err)
	}
	close(known)
	for range 2 {
		if r := <-ended; r.err != nil || !bytes.Equal(r.body, want) {
			t.Errorf("%d bytes, %v", len(r.body), r.err)
		}
	}
	if _, err := n.catalog.Image(digest.Digest(digestOf(t, img))); err != nil {
		t.Error(err)
	}
}
