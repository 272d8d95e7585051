package flow

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-containerregistry/pkg/authn"
	registrytest "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/enrol"
	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
	"github.com/airstream-io/airstream/proxy"
	rig "github.com/airstream-io/airstream/test/rig/link"
	"github.com/airstream-io/airstream/test/rig/tools"
)

// pushed is a proxy on shore, and a node's session with it, over an emulated link.
type pushed struct {
	link    *rig.Link
	session *link.Session
	ref     string
	size    int64 // bytes of content
}

// openPushed serves an image of one file of so many bytes that don't compress, of
// which the first chunk is hot.
func openPushed(t *testing.T, p rig.Profile, size int) *pushed {
	t.Helper()
	tools.Need(t, tools.Root, tools.NetNS, "ip")
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	l, err := rig.Start(t.Context(), rig.Options{EmulatorOptions: rig.EmulatorOptions{Profile: p, Seed: 1}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	ps := &pushed{link: l, ref: pushImage(t, size), size: int64(size)}
	dir := t.TempDir()
	if err := enrol.Init(filepath.Join(dir, "authority"), []string{rig.ShoreAddr.String()}); err != nil {
		t.Fatal(err)
	}
	authority, err := enrol.Open(filepath.Join(dir, "authority"))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	s, err := proxy.New(proxy.Options{Dir: dir, Keychain: authn.NewMultiKeychain(), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	lis, err := l.Shore.Listen(t.Context(), "tcp", netip.AddrPortFrom(rig.ShoreAddr, 7075).String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Listen(ctx, lis, authority.TLS()) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		s.Close()
	})
	ps.session = link.Open(link.Options{Address: lis.Addr().String(), TLS: identity(t, authority, dir).TLS(rig.ShoreAddr.String()), Dial: l.Node.Dial, Logger: log})
	t.Cleanup(ps.session.Close)
	for st, changed := ps.session.State(); !st.Up; st, changed = ps.session.State() {
		<-changed
	}
	// What the proxy reads from its registry is on shore's side of the figures, and
	// is there before: the link is what is measured.
	warm := &arrivals{}
	pull := ps.session.Pull(link.Request{Reference: ps.ref, Platform: "linux/amd64", Depth: link.Names}, warm)
	if err := pull.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	pull.Cancel()
	return ps
}

func identity(t *testing.T, a *enrol.Authority, dir string) *enrol.Identity {
	t.Helper()
	token, err := a.Token("node", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	key, req, err := enrol.Request()
	if err != nil {
		t.Fatal(err)
	}
	cert, ca, err := a.Enrol(t.Context(), token, req)
	if err != nil {
		t.Fatal(err)
	}
	id, err := enrol.Store(filepath.Join(dir, "identity"), key, cert, ca)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// pushImage puts an image into a registry on this machine and returns its name.
func pushImage(t *testing.T, size int) string {
	t.Helper()
	srv := httptest.NewServer(registrytest.New(registrytest.Logger(slog.NewLogLogger(slog.DiscardHandler, 0))))
	t.Cleanup(srv.Close)
	content := make([]byte, size)
	if _, err := io.ReadFull(rand.NewChaCha8([32]byte{2}), content); err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{Name: "data", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(size)}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	built, err := estargz.Build(io.NewSectionReader(bytes.NewReader(buf.Bytes()), 0, int64(buf.Len())), estargz.WithChunkSize(chunk.DefaultSize))
	if err != nil {
		t.Fatal(err)
	}
	blob, err := io.ReadAll(built)
	if err != nil {
		t.Fatal(err)
	}
	if err := built.Close(); err != nil {
		t.Fatal(err)
	}
	at, _, err := estargz.OpenFooter(io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob))))
	if err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{DiffIDs: []digest.Digest{built.DiffID()}}})
	if err != nil {
		t.Fatal(err)
	}
	plan := trace.Plan{{Rank: 1, Offset: 0, Size: 70_000}} // the first chunk's member begins in it
	m, err := json.Marshal(ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers: []ocispec.Descriptor{{
			MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(blob), Size: int64(len(blob)),
			Annotations: map[string]string{annotation.TOCDigest: built.TOCDigest().String(), annotation.TOCOffset: fmt.Sprint(at), annotation.Hot: plan.String()},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{blob, config} {
		send(t, http.MethodPost, srv.URL+"/v2/app/blobs/uploads/?digest="+digest.FromBytes(b).String(), b)
	}
	send(t, http.MethodPut, srv.URL+"/v2/app/manifests/1", m)
	return strings.TrimPrefix(srv.URL, "http://") + "/app:1"
}

func send(t *testing.T, method, url string, body []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", ocispec.MediaTypeImageManifest)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil || resp.StatusCode >= 300 {
		t.Fatalf("%s: %s, %v", url, resp.Status, err)
	}
	http.DefaultClient.CloseIdleConnections()
}

// arrivals notes when chunks come.
type arrivals struct {
	link.Sink // nothing else is called
	mu        sync.Mutex
	tree      *toc.Tree
	first     time.Time
	bytes     int64
	came      map[uint32]chan struct{}
}

func (a *arrivals) Manifest(context.Context, link.Manifest) error       { return nil }
func (a *arrivals) Config(context.Context, digest.Digest, []byte) error { return nil }
func (a *arrivals) Status(string)                                       {}
func (a *arrivals) Plan(context.Context, []int) error                   { return nil }

func (a *arrivals) Table(_ context.Context, t link.Table) (c link.Chunks, err error) {
	a.tree, err = toc.Parse(bytes.NewReader(t.Body), t.Payload)
	return treeChunks{a.tree}, err
}

func (a *arrivals) Chunk(_ context.Context, _ int, n uint32, content []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.first.IsZero() {
		a.first = time.Now()
	}
	a.bytes += int64(len(content))
	if c := a.came[n]; c != nil {
		close(c)
		delete(a.came, n)
	}
	return nil
}

// demand waits for a chunk that somebody waits for.
func (a *arrivals) demand(t *testing.T, p *link.Pull, n uint32) time.Duration {
	t.Helper()
	c := make(chan struct{})
	a.mu.Lock()
	if a.came == nil {
		a.came = map[uint32]chan struct{}{}
	}
	a.came[n] = c
	a.mu.Unlock()
	began := time.Now()
	p.Demand(link.Demand, 0, n)
	select {
	case <-c:
	case <-time.After(time.Minute):
		t.Fatal("a demand was not met")
	}
	return time.Since(began)
}

type treeChunks struct{ *toc.Tree }

func (t treeChunks) ChunkID(n uint32) (chunk.ID, uint32) {
	k := t.Chunk(n)
	return k.ID, k.Size
}

// delivered is how many bytes of IP packets have come to the node.
func (ps *pushed) delivered(t *testing.T) uint64 {
	t.Helper()
	s, err := ps.link.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s.Down.Delivered.Bytes
}

// satellite is geo-vsat with a loss that a test asks for.
func satellite(loss float64) rig.Profile {
	p := rig.Profile{Name: "sat", RTT: 600 * time.Millisecond, Down: 2 * rig.Mbit, Up: 500 * rig.Kbit, MTU: 1500}
	if loss > 0 {
		p.Loss = rig.Loss{Mean: loss, Burst: 3}
	}
	return p
}

// warmTime is how long a session is open before it is warm over such a link: some five
// round trips, and the time of a busy machine.
const warmTime = 5 * time.Second

// From the question on a warm session to the first chunk of a start there is one
// round trip: manifest, config, plan and table come in the same answer.
func TestTheFirstChunkComesInOneRoundTrip(t *testing.T) {
	ps := openPushed(t, satellite(0), 1<<20)
	var all []time.Duration
	time.Sleep(warmTime)
	for range 5 {
		a := &arrivals{}
		began := time.Now()
		pull := ps.session.Pull(link.Request{Reference: ps.ref, Platform: "linux/amd64", Depth: link.Start}, a)
		if err := pull.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		all = append(all, a.first.Sub(began))
		pull.Cancel()
	}
	// 64 KiB that don't compress take 270 ms at 2 Mbit/s; a second round trip would
	// be 600 more.
	slices.Sort(all)
	t.Logf("the first chunk came after %v", all)
	// The machine's other work makes one of many late by a round trip.
	if all[len(all)/2] > 600*time.Millisecond+270*time.Millisecond+250*time.Millisecond {
		t.Errorf("the first chunk came after %v: more than one round trip and its own bytes", all)
	}
}

// Bulk fills the link, with loss too, and who waits for something does not notice.
func TestPushedBulkFillsTheLinkAndADemandOvertakes(t *testing.T) {
	for _, c := range []struct {
		loss, least float64
	}{{0, 0.8}, {0.01, 0.6}} {
		t.Run(fmt.Sprintf("loss %v", c.loss), func(t *testing.T) {
			const size = 5 << 20
			ps := openPushed(t, satellite(c.loss), size)
			idleAt := &arrivals{}
			idlePull := ps.session.Pull(link.Request{Reference: ps.ref, Platform: "linux/amd64", Depth: link.Names}, idleAt)
			if err := idlePull.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			var idle, busy []time.Duration
			for i := range uint32(5) {
				time.Sleep(time.Second)
				idle = append(idle, idleAt.demand(t, idlePull, 70+i))
			}
			idlePull.Cancel()
			a := &arrivals{}
			before := ps.delivered(t)
			began := time.Now()
			pull := ps.session.Pull(link.Request{Reference: ps.ref, Platform: "linux/amd64", Depth: link.All}, a)
			time.Sleep(4 * time.Second)
			for i := range uint32(5) {
				busy = append(busy, a.demand(t, pull, 70+i))
				time.Sleep(time.Second)
			}
			if err := pull.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			took := time.Since(began)
			crossed := float64(ps.delivered(t)-before) / float64(size)
			t.Logf("%.3f bytes crossed for each of content", crossed)
			if crossed > 1.08 { // headers take 4.5%, and a demand may be for what has just come
				t.Errorf("%.2f bytes crossed for each of content", crossed)
			}
			use := float64(size) / (took.Seconds() * float64(satellite(0).Down) / 8)
			t.Logf("5 MiB in %v, %.0f%% of the link; 64 KiB in %v alone, %v under bulk", took.Round(100*time.Millisecond), 100*use, median(idle), median(busy))
			if use < c.least {
				t.Errorf("bulk used %.0f%% of the link", 100*use)
			}
			if c.loss == 0 && median(busy) > median(idle)*17/10 {
				t.Errorf("64 KiB took %v alone, %v under bulk", idle, busy)
			}
		})
	}
}
