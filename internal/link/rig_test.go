package link

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/link/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// an image of one layer with four chunks, as a proxy would send it. The table
// is no real one: nobody here reads it.
type fixture struct {
	manifest, config, table []byte
	chunks                  [][]byte
}

func newFixture() *fixture {
	f := &fixture{config: []byte(`{"os":"linux"}`), table: []byte("a table of contents")}
	for i := range 4 {
		f.chunks = append(f.chunks, fmt.Appendf(nil, "the content of chunk %d", i))
	}
	m := ocispec.Manifest{
		Config: ocispec.Descriptor{Digest: digest.FromBytes(f.config)},
		Layers: []ocispec.Descriptor{{Digest: digest.FromString("blob"), Annotations: map[string]string{annotation.TOCDigest: digest.FromBytes(f.table).String()}}},
	}
	var err error
	if f.manifest, err = json.Marshal(m); err != nil {
		panic(err)
	}
	return f
}

func sum(b []byte) []byte {
	d, err := hex.DecodeString(digest.FromBytes(b).Encoded())
	if err != nil {
		panic(err)
	}
	return d
}

// script sends records to whoever pulls.
type script struct {
	f   *fixture
	p   *Peer
	ctx context.Context //nolint:containedctx // of one session of a test
	id  uint32
	err error
}

func (s *script) put(lane Lane, h *wire.Head, payload []byte) {
	h.Pull = s.id
	if h.Length == 0 {
		h.Length = uint64(len(payload))
	}
	if err := s.p.Put(s.ctx, lane, Record{Head: h, Payload: payload}); err != nil && s.err == nil {
		s.err = err
	}
}

func (s *script) names() {
	s.put(Demand, &wire.Head{Kind: &wire.Head_Manifest{Manifest: &wire.Manifest{MediaType: ocispec.MediaTypeImageManifest, Digest: sum(s.f.manifest)}}}, s.f.manifest)
	s.put(Demand, &wire.Head{Kind: &wire.Head_Config{Config: &wire.Config{}}}, s.f.config)
}

func (s *script) plan(items uint64) {
	s.put(Demand, &wire.Head{Kind: &wire.Head_Plan{Plan: &wire.Plan{Digest: sum([]byte("plan")), Items: items, Hot: items}}}, nil)
}

func (s *script) table(item uint64) {
	s.put(Hot, &wire.Head{Item: item, Kind: &wire.Head_Table{Table: &wire.Table{Format: FormatEStargz, Digest: sum(s.f.table)}}}, s.f.table)
}

func (s *script) chunk(item uint64, n uint32, content []byte) {
	s.put(Hot, &wire.Head{Item: item, Kind: &wire.Head_Chunk{Chunk: &wire.Chunk{Chunk: n}}}, content)
}

func (s *script) done() { s.put(Rest, &wire.Head{Kind: &wire.Head_Done{Done: &wire.Done{}}}, nil) }

// proxyOf is a proxy that follows a script for every pull.
type proxyOf struct {
	f  *fixture
	do func(s *script, req *wire.Pull)
}

// Serve implements Handler.
func (h proxyOf) Serve(ctx context.Context, p *Peer) error {
	for {
		m, err := p.Recv(ctx)
		if err != nil {
			return err
		}
		if req := m.GetPull(); req != nil {
			s := &script{f: h.f, p: p, ctx: ctx, id: req.GetId()}
			if h.do(s, req); s.err != nil {
				return s.err
			}
		}
	}
}

// testTLS makes an authority and both ends' certificates.
var testTLS = sync.OnceValues(func() (server, client *tls.Config) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "vessel-1"}, DNSNames: []string{"proxy.test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	pair := []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
	return &tls.Config{Certificates: pair, ClientCAs: pool}, &tls.Config{Certificates: pair, RootCAs: pool, ServerName: "proxy.test"}
})

// open serves a handler and opens a session with it.
func open(t *testing.T, h Handler) *Session {
	t.Helper()
	server, client := testTLS()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- NewServer(server, h, nil).Serve(ctx, l) }()
	s := Open(Options{Address: l.Addr().String(), TLS: client, MinStall: time.Second, MaxPause: 20 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() {
		s.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// sink takes what comes.
type sink struct {
	f *fixture

	mu     sync.Mutex
	chunks map[uint32]string
	status []string
	fail   error
}

func newSink(f *fixture) *sink { return &sink{f: f, chunks: map[uint32]string{}} }

func (s *sink) Manifest(context.Context, Manifest) error                       { return nil }
func (s *sink) Config(context.Context, digest.Digest, []byte) error            { return nil }
func (s *sink) Plan(context.Context, []int) error                              { return nil }
func (s *sink) Table(context.Context, Table) (Chunks, error)                   { return s.f, nil }
func (s *sink) Base(context.Context, Base) ([]byte, error)                     { return nil, errors.New("not here") }
func (s *sink) Known(context.Context, int, ocispec.Descriptor) (Chunks, error) { return nil, nil } //nolint:nilnil // not here

func (s *sink) Chunk(_ context.Context, _ int, n uint32, content []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chunks[n] = string(content)
	return s.fail
}

func (s *sink) Status(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status = append(s.status, text)
}

// NumChunks implements Chunks.
func (f *fixture) NumChunks() int { return len(f.chunks) }

// ChunkID implements Chunks.
func (f *fixture) ChunkID(n uint32) (chunk.ID, uint32) {
	return chunk.Sum(f.chunks[n]), uint32(len(f.chunks[n]))
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("timed out: %s", what)
}

func digestOf(b []byte) digest.Digest { return digest.FromBytes(b) }
