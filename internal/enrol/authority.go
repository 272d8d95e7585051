// Package enrol decides who a node is.
//
// A proxy has a small authority of its own: a key in a directory, and no
// service. It makes a token for a node's name, which is good once and for a
// while; with that the node gets a certificate for the name, and from then on
// renews it by itself, with the one before. A name can be revoked: its
// certificates are turned away from then on, and so is their renewal.
//
// The token carries the digest of the authority's certificate, so a node that
// enrols knows whom it speaks to before it says anything: nobody has to carry
// a CA file around beside it.
//
// The directory of an authority holds
//
//	ca.pem, ca-key.pem        the authority's certificate and key
//	hosts                     names and addresses of the proxy, a line each
//	tokens/<SHA-256 of it>    node and last second of a token that was not used
//	revoked/<node>            names that were revoked, as empty files
//
// Proxies behind a load balancer share it, or a copy: a token is used up by
// removing its file, which one of them can do.
//
// Keys are ECDSA on P-256: all that TLS libraries anywhere take.
package enrol

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// How long certificates are good. A node may be dark for months, and its renewal
// waits for half of its certificate's life.
const (
	authorityLife = 20 * 365 * 24 * time.Hour
	nodeLife      = 2 * 365 * 24 * time.Hour
	serverLife    = 30 * 24 * time.Hour
	skew          = 24 * time.Hour // what a node's clock may be behind
)

// ErrRefused says that a token or a certificate is not good. Waiting doesn't
// help.
var ErrRefused = errors.New("enrolment refused")

// Authority gives nodes their certificates. It is safe for concurrent use.
type Authority struct {
	dir   string
	cert  *x509.Certificate
	key   *ecdsa.PrivateKey
	hosts []string

	mu     sync.Mutex
	server *tls.Certificate // guarded by mu; the proxy's own
	until  time.Time        // guarded by mu; when it is to be replaced
}

// Init makes an authority in dir for a proxy that nodes reach at hosts: names or
// addresses. One that is there is left alone; then it is fs.ErrExist.
func Init(dir string, hosts []string) error {
	if len(hosts) == 0 {
		return errors.New("enrol: an authority needs a host that nodes reach the proxy at")
	}
	if _, err := os.Stat(filepath.Join(dir, "ca-key.pem")); err == nil {
		return fmt.Errorf("enrol: %s: %w", dir, fs.ErrExist)
	}
	for _, d := range []string{dir, filepath.Join(dir, "tokens"), filepath.Join(dir, "revoked")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("enrol: %w", err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("enrol: %w", err)
	}
	tmpl, err := template("airstream proxy authority", authorityLife)
	if err != nil {
		return err
	}
	tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage, tmpl.MaxPathLenZero = true, true, x509.KeyUsageCertSign, true
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return fmt.Errorf("enrol: %w", err)
	}
	if err := save(filepath.Join(dir, "hosts"), []byte(strings.Join(hosts, "\n")+"\n"), 0o644); err != nil {
		return err
	}
	if err := save(filepath.Join(dir, "ca.pem"), encodeCert(der), 0o644); err != nil {
		return err
	}
	k, err := encodeKey(key)
	if err != nil {
		return err
	}
	return save(filepath.Join(dir, "ca-key.pem"), k, 0o600) // last: with it, it is one
}

func template(name string, life time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		return nil, fmt.Errorf("enrol: %w", err)
	}
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-skew), NotAfter: now.Add(life)}, nil
}

// Open opens the authority in dir.
func Open(dir string) (*Authority, error) {
	a := &Authority{dir: dir}
	var err error
	if a.cert, err = readCert(filepath.Join(dir, "ca.pem")); err != nil {
		return nil, err
	}
	if a.key, err = readKey(filepath.Join(dir, "ca-key.pem")); err != nil {
		return nil, err
	}
	if !a.key.PublicKey.Equal(a.cert.PublicKey) {
		return nil, fmt.Errorf("enrol: %s: ca.pem and ca-key.pem don't belong together", dir)
	}
	b, err := os.ReadFile(filepath.Join(dir, "hosts"))
	if err != nil {
		return nil, fmt.Errorf("enrol: %w", err)
	}
	a.hosts = strings.Fields(string(b))
	return a, nil
}

// TLS returns the proxy's configuration: its certificate, which is made anew
// before it ends, and its nodes' authority.
func (a *Authority) TLS() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ClientCAs: pool,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return a.serverCert() },
	}
}

func (a *Authority) serverCert() (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.server != nil && time.Now().Before(a.until) {
		return a.server, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("enrol: %w", err)
	}
	tmpl, err := template("airstream proxy", serverLife)
	if err != nil {
		return nil, err
	}
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, h := range a.hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("enrol: %w", err)
	}
	// The authority's certificate goes along, for nodes that know its digest only.
	a.server, a.until = &tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key}, time.Now().Add(serverLife/2)
	return a.server, nil
}

// ValidName tells whether a node may be called that: it is a file name, too.
func ValidName(node string) bool {
	if node == "" || len(node) > 63 || node[0] == '.' || node[0] == '-' {
		return false
	}
	return !strings.ContainsFunc(node, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '.'
	})
}

// tokenPrefix begins every token; then come, in unpadded URL-safe base64, 16
// bytes of secret and the SHA-256 of the authority's certificate.
const tokenPrefix = "ast1."

const secretSize = 16

// Token makes a token with which a node can enrol once within life.
func (a *Authority) Token(node string, life time.Duration) (string, error) {
	if !ValidName(node) {
		return "", fmt.Errorf("enrol: %q can't be a node's name: use lower-case letters, digits, dots and hyphens", node)
	}
	secret := make([]byte, secretSize)
	if _, err := rand.Read(secret); err != nil {
		return "", fmt.Errorf("enrol: %w", err)
	}
	text := node + " " + strconv.FormatInt(time.Now().Add(life).Unix(), 10) + "\n"
	if err := save(a.tokenFile(secret), []byte(text), 0o600); err != nil {
		return "", err
	}
	pin := sha256.Sum256(a.cert.Raw)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(secret, pin[:]...)), nil
}

func (a *Authority) tokenFile(secret []byte) string {
	sum := sha256.Sum256(secret) // who reads the directory learns no token
	return filepath.Join(a.dir, "tokens", hex.EncodeToString(sum[:]))
}

// parseToken splits a token.
func parseToken(token string) (secret []byte, pin [sha256.Size]byte, err error) {
	text, ok := strings.CutPrefix(strings.TrimSpace(token), tokenPrefix)
	b, decErr := base64.RawURLEncoding.DecodeString(text)
	if !ok || decErr != nil || len(b) != secretSize+sha256.Size {
		return nil, pin, fmt.Errorf("enrol: %w: that is no token; airstream proxy token makes one", ErrRefused)
	}
	copy(pin[:], b[secretSize:])
	return b[:secretSize], pin, nil
}

// Enrol gives a certificate for a token, and uses it up.
func (a *Authority) Enrol(_ context.Context, token string, request []byte) (certificate, authority []byte, err error) {
	secret, pin, err := parseToken(token)
	if err != nil {
		return nil, nil, err
	}
	if mine := sha256.Sum256(a.cert.Raw); subtle.ConstantTimeCompare(mine[:], pin[:]) == 0 {
		return nil, nil, fmt.Errorf("enrol: %w: the token is another proxy's", ErrRefused)
	}
	name := a.tokenFile(secret)
	b, err := os.ReadFile(name)
	if err == nil {
		err = os.Remove(name) // of several that use it at once, one succeeds
	}
	if err != nil {
		return nil, nil, fmt.Errorf("enrol: %w: the token is not known: it was used, or another proxy made it", ErrRefused)
	}
	node, text, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	until, err := strconv.ParseInt(text, 10, 64)
	if err != nil || time.Now().Unix() > until {
		return nil, nil, fmt.Errorf("enrol: %w: the token was good until %s", ErrRefused, time.Unix(until, 0).UTC().Format(time.RFC3339))
	}
	return a.issue(node, request)
}

// Renew gives a new certificate to who has one that is good.
func (a *Authority) Renew(_ context.Context, leaf *x509.Certificate, request []byte) (certificate, authority []byte, err error) {
	return a.issue(leaf.Subject.CommonName, request)
}

func (a *Authority) issue(node string, request []byte) (certificate, authority []byte, err error) {
	if !ValidName(node) || a.Revoked(node) {
		return nil, nil, fmt.Errorf("enrol: %w: %q was revoked", ErrRefused, node)
	}
	req, err := x509.ParseCertificateRequest(request)
	if err == nil {
		err = req.CheckSignature()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("enrol: %w: the request is no certificate request: %w", ErrRefused, err)
	}
	if key, ok := req.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return nil, nil, fmt.Errorf("enrol: %w: the key is not ECDSA on P-256", ErrRefused)
	}
	tmpl, err := template(node, nodeLife) // nothing of the request but its key
	if err != nil {
		return nil, nil, err
	}
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, req.PublicKey, a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("enrol: %w", err)
	}
	return der, a.cert.Raw, nil
}

// Revoke makes all certificates of a name worthless, for ever: a node that comes
// back gets another name.
func (a *Authority) Revoke(node string) error {
	if !ValidName(node) {
		return fmt.Errorf("enrol: %q can't be a node's name", node)
	}
	return save(filepath.Join(a.dir, "revoked", node), nil, 0o644)
}

// Revoked tells whether a name was revoked. What can't be told is yes.
func (a *Authority) Revoked(node string) bool {
	if !ValidName(node) {
		return true
	}
	_, err := os.Lstat(filepath.Join(a.dir, "revoked", node))
	return !errors.Is(err, fs.ErrNotExist)
}
