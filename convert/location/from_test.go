package location

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	fake "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// fixed gives the same credentials for everything.
type fixed struct{ authn.Authenticator }

func (f fixed) Resolve(authn.Resource) (authn.Authenticator, error) { return f.Authenticator, nil }

// What lies before the offset doesn't cross, where the registry knows ranges;
// where it doesn't, or redirects, or wants to know who asks, the bytes are the
// same.
func TestBlobFrom(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), 10_000)
	const offset = 99_990
	for test, change := range map[string]func(h http.Handler, w http.ResponseWriter, r *http.Request){
		"ranges": func(h http.Handler, w http.ResponseWriter, r *http.Request) { h.ServeHTTP(w, r) },
		"none": func(h http.Handler, w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Range")
			h.ServeHTTP(w, r)
		},
		"other ones": func(h http.Handler, w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				w.Header().Set("Content-Range", "bytes 0-9/100000")
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(content[:10])
				return
			}
			h.ServeHTTP(w, r)
		},
		"refused": func(h http.Handler, w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			h.ServeHTTP(w, r)
		},
		"password": func(h http.Handler, w http.ResponseWriter, r *http.Request) {
			if user, pass, _ := r.BasicAuth(); user != "me" || pass != "secret" {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, r)
		},
	} {
		t.Run(test, func(t *testing.T) {
			var sent atomic.Int64
			h := fake.New(fake.Logger(log.New(io.Discard, "", 0)))
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				change(h, &countingWriter{w, &sent}, r)
			}))
			defer s.Close()
			transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:errcheck,forcetypeassert // likewise
			defer transport.CloseIdleConnections()
			keychain := fixed{&authn.Basic{Username: "me", Password: "secret"}}
			place := strings.TrimPrefix(s.URL, "http://") + "/app:1"
			ref, err := name.ParseReference(place)
			if err != nil {
				t.Fatal(err)
			}
			l := static.NewLayer(content, types.OCILayer)
			if err := remote.WriteLayer(ref.Context(), l, remote.WithAuth(keychain.Authenticator), remote.WithTransport(transport)); err != nil {
				t.Fatal(err)
			}
			r, err := openRegistry(ref, Options{Keychain: keychain, Transport: transport})
			if err != nil {
				t.Fatal(err)
			}
			digest, err := l.Digest()
			if err != nil {
				t.Fatal(err)
			}
			sent.Store(0)
			rc, err := r.BlobFrom(t.Context(), v1.Descriptor{Digest: digest, Size: int64(len(content))}, offset)
			switch test {
			case "other ones":
				if err == nil || !strings.Contains(err.Error(), `asked for bytes from 99990 on, got "bytes 0-9/100000"`) {
					t.Fatalf("got %v", err)
				}
				return
			case "refused":
				if !errors.Is(err, ErrDenied) {
					t.Fatalf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(rc)
			if err = errors.Join(err, rc.Close()); err != nil || !bytes.Equal(got, content[offset:]) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if n := sent.Load(); test != "none" && n > 1000 {
				t.Errorf("%d bytes were sent for 10", n)
			}
			_, err = r.BlobFrom(t.Context(), v1.Descriptor{Digest: v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}, Size: 100}, 5)
			if !errors.Is(err, ErrNotFound) {
				t.Errorf("a blob that isn't there: %v", err)
			}
		})
	}
	dir := t.TempDir() + "/odd:name@here"
	l := openLayout(InLayout(dir))
	d, open := blob("some content")
	if err := l.PutBlob(t.Context(), d, open); err != nil {
		t.Fatal(err)
	}
	rc, err := l.BlobFrom(t.Context(), d, 5)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(rc)
	if err = errors.Join(err, rc.Close()); err != nil || string(got) != "content" {
		t.Errorf("from a layout: %q, %v", got, err)
	}
	if _, err := l.BlobFrom(t.Context(), v1.Descriptor{Digest: v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%064d", 1)}}, 5); !errors.Is(err, ErrNotFound) {
		t.Errorf("from a layout that lacks it: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

type countingWriter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.n.Add(int64(n))
	return n, err
}
