package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/catalog"
)

// ask asks the mirror for a manifest and returns when it has answered.
func (n *node) ask(ctx context.Context, method, ref string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	n.mirror.ServeHTTP(w, httptest.NewRequestWithContext(ctx, method, "/v2/app/manifests/"+ref+"?ns=far.example", nil))
	return w
}

// While the proxy reads an image for the first time, its manifest and config are here,
// and nothing is said of its layers: whoever pulls it, by tag or by digest, also after a
// restart, waits, and finds a lazy image.
func TestAPullWaitsWhileTheProxyReadsAnImage(t *testing.T) {
	f := newFar(t)
	p, dir := proxyFor(t, f)
	held := make(chan struct{})
	f.held.Store(&held)
	n := openNodeWith(t, dir, "", p.believes(false, time.Minute))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first := make(chan struct{})
	go func() { n.ask(ctx, http.MethodGet, "plain"); close(first) }()
	var d digest.Digest
	eventually(t, "manifest and config are here", func() bool {
		n.shore.mu.Lock()
		defer n.shore.mu.Unlock()
		for _, p := range n.shore.pulls {
			p.mu.Lock()
			if d = p.own.Digest; p.config && d != "" {
				p.mu.Unlock()
				return true
			}
			p.mu.Unlock()
		}
		return false
	})
	select {
	case <-first:
		t.Error("the pull does not wait")
	case <-time.After(200 * time.Millisecond):
	}
	if _, err := n.catalog.Image(d); err == nil {
		t.Error("the image is known before it is known what is in it")
	}
	cancel()
	<-first
	if err := n.close(); err != nil {
		t.Fatal(err)
	}

	n = openNodeWith(t, dir, "", p.believes(false, time.Minute))
	second := make(chan int, 1)
	go func() { second <- n.ask(t.Context(), http.MethodGet, d.String()).Code }()
	select {
	case code := <-second:
		t.Errorf("by digest it does not wait: %d", code)
	case <-time.After(300 * time.Millisecond):
	}
	close(held)
	select {
	case code := <-second:
		if code != http.StatusOK {
			t.Errorf("the mirror said %d", code)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it waits for ever")
	}
	if img, err := n.catalog.Image(d); err != nil || img.Layers[0].Slot == 0 {
		t.Errorf("%+v, %v", img, err)
	}
	f.want(t, n, "bin/app")
}

// More images are begun than the proxy is asked to have at hand. What is read of one
// that had to make room comes all the same, as does what was under way.
func TestWhatWasForgottenIsAskedForAgain(t *testing.T) {
	f := newFar(t)
	p, dir := proxyFor(t, f)
	n := openNodeWith(t, dir, "", p.believes(true, time.Minute))
	getPlain(t, n, "far.example")
	f.want(t, n, "bin/app")
	n.shore.mu.Lock()
	pulls := n.shore.pulls
	n.shore.pulls = nil
	n.shore.mu.Unlock()
	for _, p := range pulls {
		n.shore.forget(p, false)
	}
	n.shore.mu.Lock()
	left := len(n.shore.bySlot)
	n.shore.mu.Unlock()
	if left != 0 {
		t.Fatalf("%d layers are asked of the proxy", left)
	}
	f.want(t, n, "lib/cold")
	f.want(t, n, "lib/other")
	if asked := f.nodes.Load(); asked != 0 {
		t.Errorf("a registry was asked %d times", asked)
	}
}

// Somebody has an image whose annotation takes the name under which the proxy's word is
// kept. That costs those who have the layer their lazy start, and nothing else.
func TestATakenNameCostsTheLazyStart(t *testing.T) {
	f := newFar(t)
	p, dir := proxyFor(t, f)
	n := openNodeWith(t, dir, "", p.believes(false, time.Minute))
	other := digest.FromString("another layer")
	m, err := json.Marshal(ocispec.Manifest{Layers: []ocispec.Descriptor{{
		MediaType: ocispec.MediaTypeImageLayerGzip, Digest: other, Size: 1000,
		Annotations: map[string]string{annotation.TOCDigest: annotation.TableOf(f.plain, nil).String()},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.catalog.Layers(catalog.Source{Host: "far.example", Repo: "evil"}, m); err != nil {
		t.Fatal(err)
	}
	img := getPlain(t, n, "far.example")
	if l := img.Layers[0]; l.Slot != 0 || l.Reason == "" {
		t.Errorf("%+v", l)
	}
}

// An image that was removed, and with it what the proxy said of it, is asked of the proxy
// again when it is pulled again, by its digest, too.
func TestARemovedImageIsLazyAgain(t *testing.T) {
	f := newFar(t)
	p, dir := proxyFor(t, f)
	n := openNodeWith(t, dir, "", p.believes(false, time.Minute))
	img := getPlain(t, n, "far.example")
	f.want(t, n, "bin/app")
	if _, err := n.remove(t.Context(), removeOrder{Refs: []string{"far.example/app:plain"}, Force: true}); err != nil {
		t.Fatal(err)
	}
	if l := n.layer(t, 1); l.Outline != "" {
		t.Fatalf("somebody still vouches: %+v", l)
	}
	if w := n.ask(t.Context(), http.MethodGet, img.Manifest.String()); w.Code != http.StatusOK {
		t.Fatalf("the mirror said %d", w.Code)
	}
	again, err := n.catalog.Image(img.Manifest)
	if err != nil || again.Layers[0].Slot == 0 {
		t.Fatalf("%+v, %v", again, err)
	}
	f.want(t, n, "bin/app")
	f.want(t, n, "lib/cold")
}
