package registry

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

var account = &authn.Basic{Username: "mate", Password: "secret"}

// front starts a front with one image behind it, "app:v1".
func front(t *testing.T, opt FrontOptions) (*Front, v1.Image) {
	t.Helper()
	r := start(t, Options{})
	img := image(t, 3)
	push(t, r, "app:v1", img)
	if opt.Auth != AuthNone {
		opt.Username, opt.Password = account.Username, account.Password
	}
	f, err := r.Front(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f, img
}

// client trusts the front's CA and keeps no connection after the test.
func client(t *testing.T, f *Front) *http.Transport {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(f.CA()) {
		t.Fatal("the CA is no certificate")
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return transport
}

// pull reads all of app:v1 as a client that knows nothing of the front.
func pull(t *testing.T, f *Front, auth authn.Authenticator) error {
	t.Helper()
	var opts []name.Option
	if strings.HasPrefix(f.URL(), "http://") {
		opts = append(opts, name.Insecure)
	}
	ref, err := name.ParseReference(f.Host()+"/app:v1", opts...)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(ref, remote.WithContext(t.Context()), remote.WithTransport(client(t, f)), remote.WithAuth(auth))
	if err != nil {
		return err
	}
	return validate.Image(img)
}

type answer struct {
	status int
	header http.Header
	body   string
}

// get asks without following redirects.
func get(t *testing.T, f *Front, address string, header map[string]string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := client(t, f).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // a reader
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(body)}
}

func blobOf(t *testing.T, img v1.Image) (path string, size int64) {
	t.Helper()
	manifest, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	l := manifest.Layers[0]
	return "/v2/app/blobs/" + l.Digest.String(), l.Size
}

// Every mode serves an ordinary client, and with all of them together too.
func TestModesServeAnOrdinaryClient(t *testing.T) {
	for mode, opt := range map[string]FrontOptions{
		"plain":               {},
		"tls":                 {TLS: true},
		"tls without http2":   {TLS: true, HTTP1: true},
		"basic":               {Auth: AuthBasic},
		"bearer":              {Auth: AuthBearer},
		"bearer elsewhere":    {Name: "localhost", Auth: AuthBearer, TokenElsewhere: true},
		"redirect":            {Redirect: true},
		"range ignored":       {IgnoreRange: true},
		"all of it, with tls": {Name: "localhost", TLS: true, Auth: AuthBearer, TokenElsewhere: true, Redirect: true, IgnoreRange: true},
	} {
		t.Run(mode, func(t *testing.T) {
			f, _ := front(t, opt)
			if err := pull(t, f, account); err != nil {
				t.Fatal(err)
			}
			c := f.Counts()
			if c.Requests[KindManifest] == 0 || c.Requests[KindBlob] < 4 || c.Body < 300_000 || c.Sent < c.Body || c.Received == 0 || c.Connections == 0 {
				t.Errorf("counts = %+v", c)
			}
			if tokens := c.Requests[KindToken] > 0; tokens != (opt.Auth == AuthBearer) {
				t.Errorf("%d token requests", c.Requests[KindToken])
			}
			if opt.Redirect != (c.Redirects >= 4) || opt.Redirect != (c.Requests[KindStorage] >= 4) {
				t.Errorf("%d redirects, %d requests of storage", c.Redirects, c.Requests[KindStorage])
			}
			hosts := map[string]bool{f.Host(): true, f.TokenHost(): true, f.StorageHost(): true}
			want := 1
			if opt.TokenElsewhere {
				want++
			}
			if opt.Redirect {
				want++
			}
			if len(hosts) != want {
				t.Errorf("hosts = %v, want %d of them", hosts, want)
			}
			f.Reset()
			if c := f.Counts(); c.Total() != 0 || c.Sent != 0 || c.Connections != 0 || len(f.Log()) != 0 {
				t.Errorf("counts after Reset = %+v", c)
			}
		})
	}
}

func TestRanges(t *testing.T) {
	for mode, opt := range map[string]FrontOptions{"direct": {}, "redirected": {Redirect: true}} {
		t.Run(mode, func(t *testing.T) {
			f, img := front(t, opt)
			blob, size := blobOf(t, img)
			address := f.URL() + blob
			if opt.Redirect {
				got := get(t, f, address, nil)
				address = got.header.Get("Location")
				f.Reset()
			}
			got := get(t, f, address, map[string]string{"Range": "bytes=1000-1999"})
			if got.status != 206 || len(got.body) != 1000 || !strings.HasPrefix(got.header.Get("Content-Range"), "bytes 1000-1999/") {
				t.Errorf("status %d, %d bytes, %q", got.status, len(got.body), got.header.Get("Content-Range"))
			}
			if got.header.Get("Docker-Content-Digest") != "" && opt.Redirect {
				t.Error("the storage host talks like a registry")
			}
			log := f.Log()
			for end := time.Now().Add(5 * time.Second); len(log) == 1 && log[0].Took == 0 && time.Now().Before(end); log = f.Log() {
				time.Sleep(time.Millisecond) // the client has its answer before the handler has returned
			}
			if len(log) != 1 || log[0].Range != "bytes=1000-1999" || log[0].Status != 206 || log[0].Bytes != 1000 || log[0].Took == 0 || log[0].Conn == 0 {
				t.Errorf("log = %+v", log)
			}
			if c := f.Counts(); c.Ranges != 1 || c.Body != 1000 {
				t.Errorf("counts = %+v", c)
			}

			opt.IgnoreRange = true
			whole, err := f.registry.Front(opt)
			if err != nil {
				t.Fatal(err)
			}
			defer whole.Close() //nolint:errcheck // the test is over
			address = whole.URL() + blob
			if opt.Redirect {
				got := get(t, whole, address, nil)
				address = got.header.Get("Location")
			}
			got = get(t, whole, address, map[string]string{"Range": "bytes=1000-1999"})
			if got.status != 200 || int64(len(got.body)) != size || got.header.Get("Accept-Ranges") != "" {
				t.Errorf("ignored: status %d, %d bytes of %d, Accept-Ranges %q", got.status, len(got.body), size, got.header.Get("Accept-Ranges"))
			}
		})
	}
}

// The address of a redirect opens one blob, for a while.
func TestStorageAddresses(t *testing.T) {
	f, img := front(t, FrontOptions{Redirect: true, LinkLife: 300 * time.Millisecond, StorageRefusesAuth: true})
	blob, size := blobOf(t, img)
	got := get(t, f, f.URL()+blob, nil)
	address := got.header.Get("Location")
	if got.status != 307 || !strings.HasPrefix(address, "http://"+f.StorageHost()+"/") {
		t.Fatalf("status %d, location %q", got.status, address)
	}
	if got := get(t, f, address, nil); got.status != 200 || int64(len(got.body)) != size {
		t.Errorf("status %d, %d bytes, want %d", got.status, len(got.body), size)
	}
	if got := get(t, f, address, map[string]string{"Authorization": "Basic eA=="}); got.status != 400 {
		t.Errorf("with Authorization: %d, %s", got.status, got.body)
	}
	other, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	forged := strings.Replace(address, manifest.Layers[0].Digest.Hex, other.Hex, 1)
	if got := get(t, f, forged, nil); got.status != 403 || !strings.Contains(got.body, "SignatureDoesNotMatch") {
		t.Errorf("forged: %d, %s", got.status, got.body)
	}
	time.Sleep(350 * time.Millisecond)
	if got := get(t, f, address, nil); got.status != 403 || !strings.Contains(got.body, "expired") {
		t.Errorf("expired: %d, %s", got.status, got.body)
	}
	// The registry itself says that a blob isn't there.
	missing := strings.Replace(blob, manifest.Layers[0].Digest.Hex, strings.Repeat("0", 64), 1)
	if got := get(t, f, f.URL()+missing, nil); got.status != 404 {
		t.Errorf("missing blob: %d", got.status)
	}
}

// A hook can answer itself, and can cut a response in the middle.
func TestHook(t *testing.T) {
	f, img := front(t, FrontOptions{})
	blob, size := blobOf(t, img)
	f.SetHook(func(kind Kind, w http.ResponseWriter, r *http.Request, next http.Handler) {
		if kind == KindManifest {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(&cutter{ResponseWriter: w, left: 5000}, r)
	})
	if got := get(t, f, f.URL()+"/v2/app/manifests/v1", nil); got.status != 503 {
		t.Errorf("manifest: %d", got.status)
	}
	resp, err := (&http.Client{Transport: client(t, f)}).Get(f.URL() + blob)
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	if err == nil || n > 5000 {
		t.Errorf("read %d bytes, %v; want the connection cut before 5000", n, err)
	}
	if e := f.Requests(KindBlob); len(e) != 1 || e[0].Took == 0 || e[0].Bytes > 5000 {
		t.Errorf("log = %+v", e)
	}
	f.SetHook(nil)
	if got := get(t, f, f.URL()+blob, nil); int64(len(got.body)) != size {
		t.Errorf("%d bytes after the hook is gone, want %d", len(got.body), size)
	}
}

// cutter cuts the connection after so many bytes.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	if len(p) > c.left {
		p = p[:c.left]
	}
	n, _ := c.ResponseWriter.Write(p)
	if c.left -= n; c.left == 0 {
		_ = http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, nil
}

func (c *cutter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// A request that is still being answered shows in the log, and Close ends it.
func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	f, img := front(t, FrontOptions{})
	blob, _ := blobOf(t, img)
	f.SetHook(func(_ Kind, w http.ResponseWriter, r *http.Request, _ http.Handler) {
		w.WriteHeader(http.StatusOK)
		_, _ = w.Write([]byte("some"))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	resp, err := (&http.Client{Transport: client(t, f)}).Get(f.URL() + blob)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // a reader
	if _, err := io.ReadFull(resp.Body, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	if e := f.Log(); len(e) != 1 || e[0].Bytes != 4 || e[0].Status != 200 || e[0].Took != 0 {
		t.Errorf("log = %+v, want a request under way", e)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the response came to a good end")
	}
	if e := f.Log(); e[0].Took == 0 {
		t.Error("the request isn't over")
	}
}

// Connections are told apart, over all listeners.
func TestConnectionsAreCounted(t *testing.T) {
	f, img := front(t, FrontOptions{})
	blob, _ := blobOf(t, img)
	for range 3 {
		get(t, f, f.URL()+blob, nil) // a client of its own each
	}
	conns := map[uint64]bool{}
	for _, e := range f.Log() {
		conns[e.Conn] = true
	}
	if c := f.Counts(); c.Connections != 3 || len(conns) != 3 {
		t.Errorf("%d connections, %d numbers, want 3", c.Connections, len(conns))
	}
}
