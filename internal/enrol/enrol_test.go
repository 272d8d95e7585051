package enrol

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func authority(t *testing.T) *Authority {
	t.Helper()
	dir := t.TempDir()
	if err := Init(dir, []string{"proxy.example", "192.0.2.1"}); err != nil {
		t.Fatal(err)
	}
	a, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// enrolled is a node that went the whole way.
func enrolled(t *testing.T, a *Authority, node string) *Identity {
	t.Helper()
	token, err := a.Token(node, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	key, req, err := Request()
	if err != nil {
		t.Fatal(err)
	}
	cert, ca, err := a.Enrol(t.Context(), token, req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Store(filepath.Join(t.TempDir(), "identity"), key, cert, ca); err != nil {
		t.Fatal(err)
	}
	id, err := Store(t.TempDir(), key, cert, ca)
	if err != nil {
		t.Fatal(err)
	}
	if id, err = Load(id.dir); err != nil {
		t.Fatal(err)
	}
	return id
}

// shake makes a handshake and returns the name that the proxy saw.
func shake(t *testing.T, server, client *tls.Config) (node string, err error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close() //nolint:errcheck // a pipe
	defer b.Close() //nolint:errcheck // a pipe
	server.ClientAuth = tls.VerifyClientCertIfGiven
	s := tls.Server(a, server)
	done := make(chan error, 1)
	go func() { done <- s.HandshakeContext(t.Context()) }()
	err = tls.Client(b, client).HandshakeContext(t.Context())
	if err == nil {
		err = <-done
	} else {
		_ = b.Close()
		<-done //nolint:errcheck // it failed with the other end
	}
	if chains := s.ConnectionState().VerifiedChains; err == nil && len(chains) > 0 {
		node = chains[0][0].Subject.CommonName
	}
	return node, err
}

func TestANodeGetsACertificateForItsName(t *testing.T) {
	a := authority(t)
	id := enrolled(t, a, "vessel-1")
	if id.Name() != "vessel-1" || id.Due(time.Now()) || !id.Due(time.Now().Add(nodeLife*3/4)) {
		t.Errorf("%s until %v", id.Name(), id.Until())
	}
	for _, host := range []string{"proxy.example", "192.0.2.1"} {
		if node, err := shake(t, a.TLS(), id.TLS(host)); err != nil || node != "vessel-1" {
			t.Errorf("%s: %q, %v", host, node, err)
		}
	}
	if _, err := shake(t, a.TLS(), id.TLS("other.example")); err == nil {
		t.Error("a proxy of another name was believed")
	}
	if _, err := shake(t, authority(t).TLS(), id.TLS("proxy.example")); err == nil {
		t.Error("another proxy was believed")
	}
}

func TestATokenIsGoodOnceForItsProxyAndForAWhile(t *testing.T) {
	a := authority(t)
	token, err := a.Token("vessel-1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	_, req, err := Request()
	if err != nil {
		t.Fatal(err)
	}
	// A node believes the proxy that made the token, and no other.
	conf, err := Pinned(token, "proxy.example")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := shake(t, a.TLS(), conf); err != nil {
		t.Error(err)
	}
	if _, err := shake(t, authority(t).TLS(), conf); !errors.Is(err, ErrRefused) {
		t.Errorf("another proxy: %v", err)
	}
	if _, _, err := authority(t).Enrol(t.Context(), token, req); !errors.Is(err, ErrRefused) {
		t.Errorf("at another proxy: %v", err)
	}
	if _, _, err := a.Enrol(t.Context(), token, req); err != nil {
		t.Errorf("the first time: %v", err)
	}
	if _, _, err := a.Enrol(t.Context(), token, req); !errors.Is(err, ErrRefused) {
		t.Errorf("the second time: %v", err)
	}
	late, err := a.Token("vessel-1", -2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Enrol(t.Context(), late, req); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "good until") {
		t.Errorf("too late: %v", err)
	}
	for _, bad := range []string{"", "ast1.", "ast1.AAAA", token + "A"} {
		if _, _, err := a.Enrol(t.Context(), bad, req); !errors.Is(err, ErrRefused) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := a.Token("../etc", time.Hour); err == nil {
		t.Error("a node may be called ../etc")
	}
}

func TestRevocationAndRenewal(t *testing.T) {
	a := authority(t)
	id := enrolled(t, a, "vessel-1")
	key, req, err := Request()
	if err != nil {
		t.Fatal(err)
	}
	leaf := id.cert
	cert, ca, err := a.Renew(t.Context(), leaf, req)
	if err != nil {
		t.Fatal(err)
	}
	before := id.Until()
	if err := id.Renewed(key, cert, ca); err != nil || id.Until().Before(before) {
		t.Errorf("until %v, then %v, %v", before, id.Until(), err)
	}
	if node, err := shake(t, a.TLS(), id.TLS("proxy.example")); err != nil || node != "vessel-1" {
		t.Errorf("%q, %v", node, err)
	}
	if a.Revoked("vessel-1") {
		t.Error("revoked")
	}
	if err := a.Revoke("vessel-1"); err != nil || !a.Revoked("vessel-1") {
		t.Errorf("not revoked: %v", err)
	}
	if _, _, err := a.Renew(t.Context(), leaf, req); !errors.Is(err, ErrRefused) {
		t.Errorf("a revoked node was renewed: %v", err)
	}
}

func TestAnAuthorityIsNotReplaced(t *testing.T) {
	a := authority(t)
	if err := Init(a.dir, []string{"x"}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("it was: %v", err)
	}
	if _, err := Load(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a node that was never enrolled: %v", err)
	}
}

// Whoever reaches the proxy may send a token and a request.
func FuzzEnrol(f *testing.F) {
	dir := f.TempDir()
	if err := Init(dir, []string{"proxy.example"}); err != nil {
		f.Fatal(err)
	}
	a, err := Open(dir)
	if err != nil {
		f.Fatal(err)
	}
	token, err := a.Token("vessel-1", time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	_, req, err := Request()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token, req)
	f.Add("ast1.", []byte{0x30})
	f.Fuzz(func(t *testing.T, token string, req []byte) {
		cert, _, err := a.Enrol(t.Context(), token, req)
		if err != nil {
			return
		}
		if c, err := x509.ParseCertificate(cert); err != nil || c.Subject.CommonName != "vessel-1" || c.IsCA {
			t.Errorf("%v, %v", c, err)
		}
	})
}
