package proxy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/airstream-io/airstream/internal/link"
)

// authority makes certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

var testAuthority = sync.OnceValue(func() *authority {
	a := &authority{pool: x509.NewCertPool()}
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, a.key.Public(), a.key)
	if err != nil {
		panic(err)
	}
	a.cert, _ = x509.ParseCertificate(der)
	a.pool.AddCert(a.cert)
	return a
})

func (a *authority) issue(name string) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// served is a proxy that listens on loopback.
type served struct {
	*Server
	addr string
	stop func()
}

func serve(tb testing.TB, dir, addr string, opts Options) *served {
	tb.Helper()
	opts.Dir = dir
	opts.Keychain = authn.NewMultiKeychain()
	opts.Logger = logTo(tb)
	s, err := New(opts)
	if err != nil {
		tb.Fatal(err)
	}
	var l net.Listener
	for range 50 { // an address that was just left
		if l, err = net.Listen("tcp", addr); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	a := testAuthority()
	go func() {
		done <- s.Listen(ctx, l, &tls.Config{Certificates: []tls.Certificate{a.issue("proxy.test")}, ClientCAs: a.pool})
	}()
	var once sync.Once
	p := &served{Server: s, addr: l.Addr().String()}
	p.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				tb.Error(err)
			}
			s.Close()
		})
	}
	tb.Cleanup(p.stop)
	return p
}

func logTo(tb testing.TB) *slog.Logger {
	tb.Helper()
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(tb.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

func dial(tb testing.TB, addr, node string, change func(*link.Options)) *link.Session {
	tb.Helper()
	a := testAuthority()
	o := link.Options{
		Address: addr, Logger: logTo(tb), MinStall: time.Second, MaxPause: 50 * time.Millisecond,
		TLS: &tls.Config{RootCAs: a.pool, ServerName: "proxy.test", Certificates: []tls.Certificate{a.issue(node)}},
	}
	if change != nil {
		change(&o)
	}
	s := link.Open(o)
	tb.Cleanup(s.Close)
	return s
}
