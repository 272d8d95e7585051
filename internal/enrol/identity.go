package enrol

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Identity is what a node shows a proxy: the directory holds node.pem, which
// has the certificate and its key, and ca.pem. It is safe for concurrent use.
type Identity struct {
	dir string

	mu   sync.Mutex
	cert *x509.Certificate // guarded by mu
	key  *ecdsa.PrivateKey // guarded by mu
	ca   *x509.Certificate // guarded by mu
}

// Request makes a key, and the request for a certificate for it.
func Request() (key *ecdsa.PrivateKey, request []byte, err error) {
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, fmt.Errorf("enrol: %w", err)
	}
	if request, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key); err != nil {
		return nil, nil, fmt.Errorf("enrol: %w", err)
	}
	return key, request, nil
}

// Store checks what a proxy answered to a request for key, and writes it to dir,
// in place of what is there.
func Store(dir string, key *ecdsa.PrivateKey, certificate, authority []byte) (*Identity, error) {
	cert, err := x509.ParseCertificate(certificate)
	if err != nil {
		return nil, fmt.Errorf("enrol: the proxy's answer: %w", err)
	}
	ca, err := x509.ParseCertificate(authority)
	if err != nil {
		return nil, fmt.Errorf("enrol: the proxy's answer: %w", err)
	}
	if err := cert.CheckSignatureFrom(ca); err != nil {
		return nil, fmt.Errorf("enrol: the proxy's answer: %w", err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("enrol: the proxy's answer is a certificate for another key")
	}
	k, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("enrol: %w", err)
	}
	if err := save(filepath.Join(dir, "ca.pem"), encodeCert(authority), 0o644); err != nil {
		return nil, err
	}
	// One file, so that a key is never without its certificate.
	if err := save(filepath.Join(dir, "node.pem"), append(k, encodeCert(certificate)...), 0o600); err != nil {
		return nil, err
	}
	return &Identity{dir: dir, cert: cert, key: key, ca: ca}, nil
}

// Load reads the identity in dir. If the node was never enrolled, it is
// fs.ErrNotExist.
func Load(dir string) (*Identity, error) {
	name := filepath.Join(dir, "node.pem")
	pair, err := tls.LoadX509KeyPair(name, name)
	if err != nil {
		return nil, fmt.Errorf("enrol: %w", err)
	}
	ca, err := readCert(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return nil, err
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("enrol: %s: not an ECDSA key", name)
	}
	return &Identity{dir: dir, cert: pair.Leaf, key: key, ca: ca}, nil
}

// Name returns the node's name.
func (i *Identity) Name() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.cert.Subject.CommonName
}

// Until returns when the certificate ends.
func (i *Identity) Until() time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.cert.NotAfter
}

// Due tells whether the certificate should be renewed: half of its life is over.
func (i *Identity) Due(now time.Time) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return now.After(i.cert.NotAfter.Add(-nodeLife / 2))
}

// Renewed stores a new certificate, which is used from the next connection on.
func (i *Identity) Renewed(key *ecdsa.PrivateKey, certificate, authority []byte) error {
	next, err := Store(i.dir, key, certificate, authority)
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.cert, i.key, i.ca = next.cert, next.key, next.ca
	return nil
}

// TLS returns the node's configuration for a proxy that is called server.
func (i *Identity) TLS(server string) *tls.Config {
	i.mu.Lock()
	defer i.mu.Unlock()
	pool := x509.NewCertPool()
	pool.AddCert(i.ca)
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: server, RootCAs: pool,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			i.mu.Lock()
			defer i.mu.Unlock()
			return &tls.Certificate{Certificate: [][]byte{i.cert.Raw}, PrivateKey: i.key}, nil
		},
	}
}

// Pinned returns the configuration with which a node enrols: it has no
// certificate yet, and knows its proxy by what the token says of it.
func Pinned(token, server string) (*tls.Config, error) {
	_, pin, err := parseToken(token)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: server,
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection does, below
		VerifyConnection: func(s tls.ConnectionState) error {
			pool := x509.NewCertPool()
			found := false
			for _, c := range s.PeerCertificates {
				if sha256.Sum256(c.Raw) == pin {
					pool.AddCert(c)
					found = true
				}
			}
			if !found || len(s.PeerCertificates) == 0 {
				return fmt.Errorf("enrol: %w: what answers is not the proxy that made the token", ErrRefused)
			}
			_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, DNSName: server})
			return err
		},
	}, nil
}
