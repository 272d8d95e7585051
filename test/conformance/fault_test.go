package conformance

import (
	"bytes"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"

	"github.com/airstream-io/airstream/test/rig/registry"
)

// cutter lets some bytes of a body pass, and cuts the connection then.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	if len(p) > c.left {
		_, _ = c.ResponseWriter.Write(p[:c.left])
		_ = http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

func (c *cutter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// A layer crosses whole and once, whatever goes wrong on the way: its token is
// revoked, its storage address expires, answers are cut, refused or lie about
// their range.
func TestLayerCrossesOnceThroughAllFaults(t *testing.T) {
	reg := startRegistry(t)
	img, err := random.Image(1<<20, 1)
	must(t, err)
	_, err = reg.Push(t.Context(), repo+":big", img)
	must(t, err)
	blobs := map[string][]byte{}
	blobsOf(t, img, blobs)
	layer := layerOf(t, img)

	const piece = 100_000
	opts := registry.FrontOptions{
		TLS: true, Auth: registry.AuthBearer, Username: "crew", Password: "right", Redirect: true, StorageRefusesAuth: true, LinkLife: time.Second,
	}
	front, err := reg.Front(opts)
	must(t, err)
	t.Cleanup(func() { must(t, front.Close()) })
	n := startNode(t, t.TempDir(), front, opts)
	w := n.ways()[0]
	w.want(t, "GET", "manifests/big", http.StatusOK)

	var mu sync.Mutex
	fault := 0
	faults := []func(w http.ResponseWriter, r *http.Request, next http.Handler){
		func(w http.ResponseWriter, r *http.Request, next http.Handler) { // the token goes
			front.RevokeTokens()
			next.ServeHTTP(&cutter{w, piece}, r)
		},
		func(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) },
		func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		},
		func(w http.ResponseWriter, r *http.Request, next http.Handler) { // the address goes
			next.ServeHTTP(&cutter{w, piece}, r)
		},
		func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.WriteHeader(http.StatusForbidden) },
		func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { // another range than the one asked for
			w.Header().Set("Content-Range", "bytes 0-9/1048576")
			w.Header().Set("Content-Length", "10")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = fmt.Fprint(w, "0123456789")
		},
		func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			_, _ = fmt.Fprint(w, "<html>the ship's network wants you to log in</html>")
		},
		func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.WriteHeader(http.StatusServiceUnavailable)
		},
	}
	front.SetHook(func(kind registry.Kind, w http.ResponseWriter, r *http.Request, next http.Handler) {
		if kind != registry.KindStorage {
			next.ServeHTTP(w, r)
			return
		}
		mu.Lock()
		f := func(w http.ResponseWriter, r *http.Request, next http.Handler) { next.ServeHTTP(w, r) }
		if fault < len(faults) {
			f = faults[fault]
			fault++
		}
		mu.Unlock()
		f(w, r, next)
	})
	before := front.Counts().Sent
	a := w.want(t, "GET", "blobs/"+layer, http.StatusOK)
	if !bytes.Equal(a.body, blobs[layer]) {
		t.Errorf("%d bytes of %d, or others", len(a.body), len(blobs[layer]))
	}
	mu.Lock()
	defer mu.Unlock()
	if fault != len(faults) {
		t.Errorf("%d of %d faults happened", fault, len(faults))
	}
	// Headers, tokens and TLS come to a few thousand bytes a request.
	sent := front.Counts().Sent - before
	t.Logf("%d bytes crossed for %d, through %d faults", sent, len(blobs[layer]), fault)
	if limit := int64(len(blobs[layer])) + 150_000; sent > limit {
		t.Errorf("%d bytes crossed for a layer of %d", sent, len(blobs[layer]))
	}
}

func layerOf(t *testing.T, img v1.Image) string {
	t.Helper()
	layers, err := img.Layers()
	must(t, err)
	d, err := layers[0].Digest()
	must(t, err)
	return d.String()
}
