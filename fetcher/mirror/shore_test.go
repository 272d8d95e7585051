package mirror

import (
	"bytes"
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
	shoreimage "github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/store"
)

// shore is a registry in this process, and whatever trouble tests ask for.
type shore struct {
	*httptest.Server
	mu       sync.Mutex
	requests []string // guarded by mu; GETs
	heads    int      // guarded by mu
	registry http.Handler
	mood     func(w http.ResponseWriter, r *http.Request) bool // guarded by mu; true: answered
}

func newShore(t *testing.T) *shore {
	t.Helper()
	s := &shore{}
	reg := shoreregistry.New(shoreregistry.Logger(log.New(io.Discard, "", 0)))
	s.registry = reg
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		switch r.Method {
		case http.MethodGet:
			s.requests = append(s.requests, r.URL.Path)
		case http.MethodHead:
			s.heads++
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

// push2 pushes past the shore's mood.
func (s *shore) push2(t *testing.T, ref string, img v1.Image) {
	t.Helper()
	side := httptest.NewServer(s.registry)
	defer side.Close()
	(&shore{Server: side}).push(t, ref, img)
}

func (s *shore) countHeads() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.heads
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

// quick is a pace that tests can wait for.
var quick = pace{
	silence: 50 * time.Millisecond, dark: 20 * time.Millisecond, answer: time.Second, darkAnswer: 300 * time.Millisecond,
	refreshGap: time.Millisecond, refreshTry: 100 * time.Millisecond,
}

func newNode(t *testing.T, s *shore, dir string, change ...func(*Options, map[string]registry.Host)) *nodeSide {
	t.Helper()
	return newPacedNode(t, s, dir, quick, change...)
}

func newPacedNode(t *testing.T, s *shore, dir string, p pace, change ...func(*Options, map[string]registry.Host)) *nodeSide {
	t.Helper()
	n := &nodeSide{words: &syncBuffer{}}
	logger := slog.New(slog.NewTextHandler(n.words, nil))
	st, err := store.Open(filepath.Join(dir, "store"), store.Options{Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	cat, err := catalog.Open(filepath.Join(dir, "catalog.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	meter := uplink.NewMeter(logger)
	meter.MinStall = p.answer / 2
	meter.FirstByte(time.Millisecond)
	opts := Options{Patience: 100 * time.Millisecond, Referrers: true, Logger: logger}
	hosts := map[string]registry.Host{"shore.example": {URL: s.URL}}
	for _, c := range change {
		c(&opts, hosts)
	}
	reg := registry.New(registry.Options{Hosts: hosts, Keychain: authn.NewMultiKeychain(), Meter: meter})
	f := fetcher.New(st, cat, reg, meter, fetcher.Options{Logger: logger, MaxPause: 10 * time.Millisecond, Patience: fetcher.DefaultPatience / 20})
	n.Mirror = open(st, cat, reg, f, opts, p)
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
	path, query, _ := strings.Cut(path, "&")
	return n.ask(t, method, "/v2/"+path+"?ns=shore.example&"+query, header...)
}

// ask makes a request that is written out.
func (n *nodeSide) ask(t *testing.T, method, url string, header ...string) answer {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, url, http.NoBody)
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
