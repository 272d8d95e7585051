package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/internal/link/wire"
)

// Registry says how to reach a registry. The zero value is HTTPS, the system's
// certificates, docker's credentials.
type Registry struct {
	URL      string // "https://mirror.example", if it is elsewhere
	CA       *x509.CertPool
	Insecure bool
	Username string
	Password string
}

// upstream reads registries, with the credentials that stay here.
type upstream struct {
	known    map[string]Registry
	keychain authn.Keychain

	mu    sync.Mutex
	hosts map[string]http.RoundTripper // guarded by mu; by host as in references
	auth  map[string]http.RoundTripper // guarded by mu; by repository
	down  map[string]time.Time         // guarded by mu; since when a host doesn't answer
}

func newUpstream(known map[string]Registry, keychain authn.Keychain) *upstream {
	if keychain == nil {
		keychain = authn.DefaultKeychain
	}
	return &upstream{known: known, keychain: keychain, hosts: map[string]http.RoundTripper{}, auth: map[string]http.RoundTripper{}, down: map[string]time.Time{}}
}

// close closes idle connections.
func (u *upstream) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, rt := range u.hosts {
		if t, ok := rt.(*moved); ok {
			t.to.CloseIdleConnections()
		}
	}
}

// moved sends what is for a registry to where it is.
type moved struct {
	to   *http.Transport
	host string
	base *url.URL // nil: where its name says
}

// RoundTrip implements http.RoundTripper.
func (m *moved) RoundTrip(r *http.Request) (*http.Response, error) {
	if m.base != nil && r.URL.Host == m.host {
		r = r.Clone(r.Context())
		r.URL.Scheme, r.URL.Host = m.base.Scheme, m.base.Host
	}
	return m.to.RoundTrip(r)
}

func (u *upstream) transport(host string) (http.RoundTripper, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if rt, ok := u.hosts[host]; ok {
		return rt, nil
	}
	conf := u.known[host]
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute,
		TLSClientConfig: &tls.Config{RootCAs: conf.CA, InsecureSkipVerify: conf.Insecure, MinVersion: tls.VersionTLS12}, //nolint:gosec // asked for; content is verified
	}
	m := &moved{to: t, host: host}
	if conf.URL != "" {
		base, err := url.Parse(conf.URL)
		if err != nil || base.Host == "" {
			return nil, fmt.Errorf("proxy: registry %s: %q is no URL", host, conf.URL)
		}
		m.base = base
	}
	u.hosts[host] = m
	return m, nil
}

// Resolve implements authn.Keychain.
func (u *upstream) Resolve(r authn.Resource) (authn.Authenticator, error) {
	if conf := u.known[r.RegistryStr()]; conf.Username != "" {
		return &authn.Basic{Username: conf.Username, Password: conf.Password}, nil
	}
	return u.keychain.Resolve(r)
}

// manifest reads a manifest or index.
func (u *upstream) manifest(ctx context.Context, ref name.Reference) (mediaType string, body []byte, err error) {
	t, err := u.transport(ref.Context().RegistryStr())
	if err != nil {
		return "", nil, err
	}
	d, err := remote.Get(ref, remote.WithContext(ctx), remote.WithTransport(t), remote.WithAuthFromKeychain(u), remote.WithUserAgent("airstream"),
		remote.WithRetryBackoff(remote.Backoff{Duration: time.Millisecond, Steps: 1}), remote.WithRetryStatusCodes()) // retries live in pull.retry
	if err != nil {
		return "", nil, u.judge(ref.Context(), "manifest "+ref.Identifier(), err)
	}
	u.answered(ref.Context())
	if len(d.Manifest) > link.MaxManifest {
		return "", nil, &link.Refusal{Reason: wire.Reason_REASON_IMAGE, Text: fmt.Sprintf("the manifest of %s has %d bytes", ref, len(d.Manifest))}
	}
	return string(d.MediaType), d.Manifest, nil
}

// blob reads n bytes of a blob from off on; n < 0: to its end.
func (u *upstream) blob(ctx context.Context, repo name.Repository, d digest.Digest, off, n int64) (io.ReadCloser, error) {
	rt, err := u.authorized(ctx, repo)
	if err != nil {
		return nil, u.judge(repo, "login", err)
	}
	where := url.URL{Scheme: repo.Scheme(), Host: repo.RegistryStr(), Path: "/v2/" + repo.RepositoryStr() + "/blobs/" + d.String()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("proxy: blob %s: %w", d, err)
	}
	switch {
	case n >= 0:
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	case off > 0:
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", off))
	}
	resp, err := (&http.Client{Transport: rt}).Do(req)
	if err != nil {
		return nil, u.judge(repo, "blob "+d.String(), err)
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		return nil, u.judge(repo, "blob "+d.String(), errors.Join(err, resp.Body.Close()))
	}
	u.answered(repo)
	var body io.Reader = resp.Body
	if resp.StatusCode == http.StatusOK && off > 0 { // it sends no ranges
		if _, err := io.CopyN(io.Discard, body, off); err != nil {
			return nil, u.judge(repo, "blob "+d.String(), errors.Join(err, resp.Body.Close()))
		}
	}
	if n >= 0 {
		body = io.LimitReader(body, n)
	}
	return &upstreamBody{body, resp.Body, u, repo, d}, nil
}

// upstreamBody gives errors of a body their meaning.
type upstreamBody struct {
	io.Reader
	io.Closer
	u    *upstream
	repo name.Repository
	d    digest.Digest
}

// Read implements io.Reader.
func (b *upstreamBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.u.judge(b.repo, "blob "+b.d.String(), err)
	}
	return n, err
}

// authorized returns a transport that is logged in to a repository.
func (u *upstream) authorized(ctx context.Context, repo name.Repository) (http.RoundTripper, error) {
	u.mu.Lock()
	rt, ok := u.auth[repo.Name()]
	u.mu.Unlock()
	if ok {
		return rt, nil
	}
	base, err := u.transport(repo.RegistryStr())
	if err != nil {
		return nil, err
	}
	auth, err := u.Resolve(repo)
	if err != nil {
		return nil, err
	}
	// The transport outlives the request that made it; so must its context.
	rt, err = transport.NewWithContext(context.WithoutCancel(ctx), repo.Registry, auth, base, []string{repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.auth[repo.Name()] = rt
	return rt, nil
}

// answered notes that a registry is there.
func (u *upstream) answered(repo name.Repository) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.down, repo.RegistryStr())
}

// judge turns an error into what a node should be told.
func (u *upstream) judge(repo name.Repository, what string, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	host := repo.RegistryStr()
	if said, ok := errors.AsType[*transport.Error](err); ok && said.StatusCode < 500 && said.StatusCode != http.StatusTooManyRequests {
		u.answered(repo)
		u.mu.Lock()
		delete(u.auth, repo.Name())
		u.mu.Unlock()
		why := "there is no such image"
		if said.StatusCode == http.StatusUnauthorized || said.StatusCode == http.StatusForbidden {
			why = "the proxy's credentials don't reach it"
		}
		return &link.Refusal{Reason: wire.Reason_REASON_IMAGE, Text: fmt.Sprintf("%s of %s: %s (HTTP status %d)", what, repo.Name(), why, said.StatusCode)}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	since, ok := u.down[host]
	if !ok {
		since = time.Now()
		u.down[host] = since
	}
	return &link.Refusal{Reason: wire.Reason_REASON_UPSTREAM, Text: fmt.Sprintf("registry %s does not answer: %s: %v", host, what, rootCause(err)), Since: since}
}

// rootCause drops what wraps an error: addresses of the shore are not the node's
// business.
func rootCause(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

// Down returns the registries that don't answer, and since when.
func (u *upstream) Down() map[string]time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	return maps.Clone(u.down)
}
