package registry

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/catalog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shore is a small registry whose moods tests set. The rig's real one stands
// behind the end-to-end tests; here single answers matter.
type shore struct {
	*httptest.Server
	blob []byte

	mu       sync.Mutex
	requests []string                                          // guarded by mu
	mood     func(w http.ResponseWriter, r *http.Request) bool // guarded by mu; true: answered
}

const shoreRepo = "app/web"

func newShore(t *testing.T, tls bool) *shore {
	t.Helper()
	s := &shore{blob: bytes.Repeat([]byte("0123456789"), 10_000)}
	h := http.HandlerFunc(s.serve)
	if tls {
		s.Server = httptest.NewTLSServer(h)
	} else {
		s.Server = httptest.NewServer(h)
	}
	t.Cleanup(s.Close)
	return s
}

func (s *shore) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r.Method+" "+r.URL.Path)
	mood := s.mood
	s.mu.Unlock()
	if mood != nil && mood(w, r) {
		return
	}
	switch {
	case strings.HasPrefix(r.URL.Path, "/v2/"+shoreRepo+"/manifests/"):
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		if _, err := fmt.Fprint(w, `{"schemaVersion":2}`); err != nil {
			panic(err)
		}
	case strings.Contains(r.URL.Path, "/blobs/"):
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(s.blob))
	default:
		http.NotFound(w, r)
	}
}

func (s *shore) setMood(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mood = f
}

// seen returns the requests since the last call.
func (s *shore) seen() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.requests
	s.requests = nil
	return r
}

func (s *shore) src() catalog.Source { return catalog.Source{Host: "shore.example", Repo: shoreRepo} }

func (s *shore) digest() digest.Digest { return digest.FromBytes(s.blob) }

func client(t *testing.T, s *shore, change func(*Host)) *Client {
	t.Helper()
	h := Host{URL: s.URL}
	if cert := s.Certificate(); cert != nil {
		h.CA = x509.NewCertPool()
		h.CA.AddCert(cert)
	}
	if change != nil {
		change(&h)
	}
	meter := uplink.NewMeter(slog.New(slog.NewTextHandler(t.Output(), nil)))
	meter.MinStall = 200 * time.Millisecond
	c := New(Options{Hosts: map[string]Host{"shore.example": h}, Keychain: authn.NewMultiKeychain(), Meter: meter})
	t.Cleanup(c.Close)
	return c
}

func read(t *testing.T, c *Client, s *shore, off, n int64) (got []byte, start int64, err error) {
	t.Helper()
	rc, start, err := c.Blob(t.Context(), uplink.Prefetch, s.src(), s.digest(), off, n)
	if err != nil {
		return nil, 0, err
	}
	got, err = io.ReadAll(rc)
	return got, start, errors.Join(err, rc.Close())
}

func wantRange(t *testing.T, c *Client, s *shore, off, n int64) {
	t.Helper()
	got, start, err := read(t, c, s, off, n)
	if err != nil || start != off || !bytes.Equal(got, s.blob[off:off+n]) {
		t.Errorf("range %d+%d: %d bytes from %d, %v", off, n, len(got), start, err)
	}
}

func TestRangesOverOneConnection(t *testing.T) {
	for _, tls := range []bool{false, true} {
		t.Run("tls "+strconv.FormatBool(tls), func(t *testing.T) {
			s := newShore(t, tls)
			conns := map[string]bool{}
			s.setMood(func(_ http.ResponseWriter, r *http.Request) bool { conns[r.RemoteAddr] = true; return false })
			c := client(t, s, nil)
			wantRange(t, c, s, 0, 10)
			wantRange(t, c, s, 99_990, 10)
			wantRange(t, c, s, 777, 50_000)
			if len(conns) != 1 {
				t.Errorf("%d connections, want 1", len(conns))
			}
		})
	}
}

func TestManifestIsHashed(t *testing.T) {
	s := newShore(t, false)
	c := client(t, s, nil)
	m, err := c.Manifest(t.Context(), uplink.Demand, s.src(), "1.2")
	if err != nil || m.Digest != digest.FromString(`{"schemaVersion":2}`) || m.MediaType != "application/vnd.oci.image.manifest.v1+json" {
		t.Errorf("%+v, %v", m, err)
	}
	if _, err := c.Manifest(t.Context(), uplink.Demand, s.src(), digest.FromString("another").String()); err == nil || !strings.Contains(err.Error(), "other content") {
		t.Errorf("a manifest that isn't the digest's: %v", err)
	}
}

// bearer makes s want a token; it returns the tokens that it gave.
func (s *shore) bearer(life int, wantUser string) *[]string {
	var given []string
	s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			if u, _, _ := r.BasicAuth(); u != wantUser || r.URL.Query().Get("scope") != "repository:"+shoreRepo+":pull" || r.URL.Query().Get("service") != "the shore" {
				http.Error(w, "who are you", http.StatusUnauthorized)
				return true
			}
			given = append(given, fmt.Sprintf("t%d", len(given)))
			if err := json.NewEncoder(w).Encode(map[string]any{"token": given[len(given)-1], "expires_in": life}); err != nil {
				panic(err)
			}
			return true
		}
		if len(given) > 0 && r.Header.Get("Authorization") == "Bearer "+given[len(given)-1] {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+s.URL+`/token",service="the shore",scope="repository:app/web:pull"`)
		http.Error(w, "token, please", http.StatusUnauthorized)
		return true
	})
	return &given
}

func TestTokenIsAskedForOnceAndRenewedWhenRefused(t *testing.T) {
	s := newShore(t, false)
	given := s.bearer(300, "fleet")
	c := client(t, s, func(h *Host) { h.Username, h.Password = "fleet", "secret" })
	for range 3 {
		wantRange(t, c, s, 5, 10)
	}
	blob := "GET /v2/" + shoreRepo + "/blobs/" + s.digest().String()
	if diff := cmp.Diff([]string{blob, "GET /token", blob, blob, blob}, s.seen()); diff != "" {
		t.Error(diff)
	}
	*given = append(*given, "another") // as if the token had been revoked
	wantRange(t, c, s, 5, 10)
	if diff := cmp.Diff([]string{blob, "GET /token", blob}, s.seen()); diff != "" {
		t.Error(diff)
	}
}

func TestRefusedCredentials(t *testing.T) {
	s := newShore(t, false)
	s.bearer(300, "fleet")
	c := client(t, s, func(h *Host) { h.Username, h.Password = "stranger", "secret" })
	_, err := c.Manifest(t.Context(), uplink.Demand, s.src(), "1")
	if err == nil || Temporary(err) || !strings.Contains(err.Error(), "credentials for shore.example") {
		t.Errorf("got %v", err)
	}
}

func TestBasicCredentials(t *testing.T) {
	s := newShore(t, false)
	s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, _ := r.BasicAuth(); u == "fleet" && p == "secret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="shore"`)
		http.Error(w, "no", http.StatusUnauthorized)
		return true
	})
	wantRange(t, client(t, s, func(h *Host) { h.Username, h.Password = "fleet", "secret" }), s, 5, 10)
	if _, _, err := read(t, client(t, s, nil), s, 5, 10); err == nil || Temporary(err) {
		t.Errorf("without credentials: %v", err)
	}
}

func TestRedirectIsRememberedUntilItIsRefused(t *testing.T) {
	s, storage := newShore(t, false), newShore(t, false)
	valid := "1"
	storage.setMood(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" {
			t.Error("credentials went to the storage host")
		}
		if r.URL.Query().Get("sig") != valid {
			http.Error(w, "expired", http.StatusForbidden)
			return true
		}
		return false
	})
	s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
		if u, _, _ := r.BasicAuth(); u == "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="shore"`)
			http.Error(w, "no", http.StatusUnauthorized)
			return true
		}
		http.Redirect(w, r, storage.URL+"/blobs/x?sig="+valid, http.StatusTemporaryRedirect)
		return true
	})
	c := client(t, s, func(h *Host) { h.Username, h.Password = "fleet", "secret" })
	for range 3 {
		wantRange(t, c, s, 100, 50)
	}
	if n := len(s.seen()); n != 2 { // the challenge, the redirect
		t.Errorf("%d requests to the registry, want 2", n)
	}
	valid = "2"
	wantRange(t, c, s, 100, 50)
	if n := len(s.seen()); n != 1 {
		t.Errorf("%d requests to the registry after the URL expired, want 1", n)
	}
}

func TestRangeIgnored(t *testing.T) {
	s := newShore(t, false)
	s.setMood(func(_ http.ResponseWriter, r *http.Request) bool { r.Header.Del("Range"); return false })
	got, start, err := read(t, client(t, s, nil), s, 500, 100)
	if err != nil || start != 0 || !bytes.Equal(got, s.blob[:600]) {
		t.Errorf("%d bytes from %d, %v; want the first 600", len(got), start, err)
	}
}

func TestErrorsSayWhetherWaitingHelps(t *testing.T) {
	for status, temporary := range map[int]bool{400: false, 403: false, 404: false, 408: true, 429: true, 500: true, 502: true, 503: true} {
		s := newShore(t, false)
		s.setMood(func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Retry-After", "7")
			http.Error(w, "words of the registry", status)
			return true
		})
		_, _, err := read(t, client(t, s, nil), s, 0, 1)
		if err == nil || Temporary(err) != temporary || !strings.Contains(err.Error(), "words of the registry") || RetryAfter(err) != 7*time.Second || NotFound(err) != (status == 404) {
			t.Errorf("%d: temporary %v, after %v: %v", status, Temporary(err), RetryAfter(err), err)
		}
	}
}

func TestWrongContentRangeIsRefused(t *testing.T) {
	for _, cr := range []string{"", "bytes 600-700/100000", "pages 500-600/1000", "bytes x-y/z", "bytes -5-9/9"} {
		s := newShore(t, false)
		s.setMood(func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Range", cr)
			w.WriteHeader(http.StatusPartialContent)
			return true
		})
		if _, _, err := read(t, client(t, s, nil), s, 500, 100); !Temporary(err) || !strings.Contains(err.Error(), "ange") {
			t.Errorf("%q: %v", cr, err)
		}
	}
}

func TestCutBodyIsTemporary(t *testing.T) {
	s := newShore(t, false)
	s.setMood(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Range", "bytes 500-599/100000")
		w.Header().Set("Content-Length", "100")
		w.WriteHeader(http.StatusPartialContent)
		if err := errors.Join(second(w.Write(s.blob[500:540])), http.NewResponseController(w).Flush()); err != nil {
			t.Error(err)
		}
		panic(http.ErrAbortHandler)
	})
	got, _, err := read(t, client(t, s, nil), s, 500, 100)
	if !Temporary(err) || len(got) != 40 {
		t.Errorf("%d bytes, %v; want 40 and a temporary error", len(got), err)
	}
}

// A link that says nothing must end the attempt, at the head and in the body,
// and a reader that takes its time must not.
func TestStall(t *testing.T) {
	for _, where := range []string{"head", "body"} {
		t.Run(where, func(t *testing.T) {
			s := newShore(t, false)
			release := make(chan struct{})
			s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
				if where == "body" {
					w.Header().Set("Content-Range", "bytes 0-999/100000")
					w.WriteHeader(http.StatusPartialContent)
					if err := errors.Join(second(w.Write(s.blob[:10])), http.NewResponseController(w).Flush()); err != nil {
						t.Error(err)
					}
				}
				select {
				case <-release:
				case <-r.Context().Done():
				}
				return true
			})
			defer close(release)
			c := client(t, s, nil)
			c.opts.Meter.FirstByte(time.Millisecond)
			_, _, err := read(t, c, s, 0, 1000)
			if !Temporary(err) || !errors.Is(err, errStalled) {
				t.Errorf("got %v", err)
			}
			if where == "head" && !c.opts.Meter.State().Dark {
				t.Error("the link is not dark")
			}
		})
	}
	t.Run("slow reader", func(t *testing.T) {
		s := newShore(t, false)
		c := client(t, s, nil)
		rc, _, err := c.Blob(t.Context(), uplink.Prefetch, s.src(), s.digest(), 0, 100_000)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond) // a real wait: the stall limit runs on the real clock
		got, err := io.ReadAll(rc)
		if err := errors.Join(err, rc.Close()); err != nil || len(got) != 100_000 {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
}

func second[T any](_ T, err error) error { return err }

func TestCanceledRequestIsNoDarkLink(t *testing.T) {
	s := newShore(t, false)
	s.setMood(func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true })
	c := client(t, s, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Manifest(ctx, uplink.Demand, s.src(), "1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if c.opts.Meter.State().Dark {
		t.Error("a canceled request made the link dark")
	}
}
