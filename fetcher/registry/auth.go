package registry

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/airstream-io/airstream/internal/catalog"
)

const (
	maxTokenSize = 64 << 10 // bytes of a token service's answer

	// tokenSpare is how long before its end a token is renewed. A token that
	// expires on the way costs two round trips more than one renewed early.
	tokenSpare = 10 * time.Second

	// defaultTokenLife is what the token specification gives an answer
	// without expires_in.
	defaultTokenLife = 60 * time.Second
)

// credentials are what a host accepted last.
type credentials struct {
	mu     sync.Mutex
	tokens map[credKey]token  // guarded by mu
	denied map[credKey]denial // guarded by mu
}

// credKey says whose credentials for which repository: repo is "" for what is
// good for all of a host.
type credKey struct{ user, repo string }

type token struct {
	header string
	until  time.Time // zero: until it is refused
	from   string    // fingerprint of the credentials that it was got with
}

// denial is credentials that were refused. Offering them again at once would
// lock accounts and annoy token services.
type denial struct {
	from  string // fingerprint: other credentials may be offered at once
	times int
	until time.Time
	err   error
}

// How long refused credentials are not offered again: the first time, and at
// most. Guesses: shorter than what somebody waits who has just mended them.
const (
	firstDenial   = 10 * time.Second
	longestDenial = 5 * time.Minute
)

// find returns what to send along for a repository, if there is something.
func (c *credentials) find(k credKey) (token, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range []credKey{{k.user, ""}, k} {
		if t, ok := c.tokens[k]; ok && (t.until.IsZero() || time.Now().Before(t.until)) {
			return t, true
		}
	}
	return token{}, false
}

// header returns the header to send along for a repository, or "".
func (c *credentials) header(k credKey) string {
	t, _ := c.find(k)
	return t.header
}

func (c *credentials) set(k credKey, t token) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tokens == nil || len(c.tokens) > 10_000 { // repositories come and go; these are got again
		c.tokens = map[credKey]token{}
	}
	c.tokens[k] = t
}

// forget drops a header that was refused, unless it was renewed meanwhile.
func (c *credentials) forget(k credKey, header string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range []credKey{{k.user, ""}, k} {
		if c.tokens[k].header == header {
			delete(c.tokens, k)
		}
	}
}

// deny notes that the credentials with a fingerprint were refused with err.
func (c *credentials) deny(k credKey, from string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.denied == nil || len(c.denied) > 10_000 {
		c.denied = map[credKey]denial{}
	}
	d := c.denied[k]
	if d.from != from {
		d = denial{from: from}
	}
	if now := time.Now(); now.After(d.until) {
		d.until = now.Add(min(firstDenial<<min(d.times, 10), longestDenial))
		d.times++
	}
	d.err = err
	c.denied[k] = d
}

// denial returns why credentials are not to be offered now, or nil.
func (c *credentials) denial(k credKey, from string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := c.denied[k]; d.from == from && time.Now().Before(d.until) {
		return d.err
	}
	return nil
}

func (c *credentials) allow(k credKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.denied, k)
}

// loginLock lets one login at a time go to a host. It is held across the
// login's request, by logins alone.
type loginLock struct {
	place chan struct{} // of one

	mu     sync.Mutex
	failed time.Time // guarded by mu; when the last login ended for want of an answer
	err    error     // guarded by mu; how
}

// lock waits for the place. It fails with the error of a login that got no
// answer while this one waited: its turn would bring the same.
func (l *loginLock) lock(ctx context.Context) error {
	came := time.Now()
	select {
	case l.place <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil && l.failed.After(came) {
		<-l.place
		return l.err
	}
	return nil
}

func (l *loginLock) unlock(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err = nil; Temporary(err) {
		l.failed, l.err = time.Now(), err
	}
	<-l.place
}

// login answers the challenges of a 401 to a request that carried refused.
// Of several that were challenged at once, one asks for the token.
func (c *Client) login(ctx context.Context, a *attempt, src catalog.Source, as user, challenges []string, refused string) (err error) {
	h, key := a.h, as.key(src.Repo)
	a.rest() // it may be long until it is this one's turn
	if err := h.login.lock(ctx); err != nil {
		return &Error{Source: src, What: "login", Err: err}
	}
	defer func() { h.login.unlock(err) }()
	h.cred.forget(key, refused)
	if h.cred.header(key) != "" {
		return nil // another request has just logged in
	}
	auth, err := c.authorization(ctx, h, as)
	if err != nil {
		return fmt.Errorf("registry: credentials for %s: %w", h.name, err)
	}
	from := fingerprint(auth)
	if err := h.cred.denial(key, from); err != nil {
		return err
	}
	for _, raw := range challenges {
		scheme, params := parseChallenge(raw)
		switch scheme {
		case "bearer":
			t, err := c.token(ctx, a, src, params, auth)
			if Refused(err) {
				h.cred.deny(key, from, err)
			}
			if err != nil {
				return err
			}
			t.from = from
			h.cred.set(key, t)
			return nil
		case "basic":
			if auth.Username != "" || auth.Auth != "" {
				h.cred.set(credKey{user: key.user}, token{header: basicHeader(auth), from: from})
				return nil
			}
		}
	}
	return nil // nothing to log in with: the 401 stands
}

// accepted notes that a registry answered to credentials.
func (c *Client) accepted(h *host, src catalog.Source, as user, sent string) {
	if sent == "" {
		return
	}
	h.cred.allow(as.key(src.Repo))
	if as.id != "" {
		c.grant(src, as.login)
	}
}

// rejected notes that a registry refused what it was sent right after the
// login.
func (c *Client) rejected(h *host, src catalog.Source, as user, sent string) {
	key := as.key(src.Repo)
	if t, ok := h.cred.find(key); ok && t.header == sent {
		h.cred.deny(key, t.from, &Error{Source: src, What: "login", Status: http.StatusUnauthorized, Detail: "the registry refused these credentials a moment ago"})
	}
	h.cred.forget(key, sent)
	if as.id != "" {
		c.revoke(src, as.login)
	}
}

// authorization returns the credentials to log in with: the client's own, if
// it is for a client; else those of the node's configuration, else docker's.
func (c *Client) authorization(ctx context.Context, h *host, as user) (*authn.AuthConfig, error) {
	if as.id != "" {
		return &authn.AuthConfig{Username: as.login.Username, Password: as.login.Password}, nil
	}
	if h.Username != "" {
		return &authn.AuthConfig{Username: h.Username, Password: h.Password}, nil
	}
	reg, err := name.NewRegistry(h.name, name.WeakValidation)
	if err != nil {
		return nil, err
	}
	auth, err := authn.Resolve(ctx, c.opts.Keychain, reg)
	if err != nil {
		return nil, err
	}
	return authn.Authorization(ctx, auth)
}

// HasCredentials tells whether the node has credentials of its own for a
// registry. A credential helper that fails has none to give.
func (c *Client) HasCredentials(ctx context.Context, known string) bool {
	list, err := c.upstreams(known)
	if err != nil {
		return false
	}
	auth, err := c.authorization(ctx, list[len(list)-1], user{})
	return err == nil && *auth != (authn.AuthConfig{})
}

// fingerprint tells credentials apart without holding them.
func fingerprint(auth *authn.AuthConfig) string {
	sum := sha256.Sum256([]byte(strings.Join([]string{auth.Username, auth.Password, auth.Auth, auth.IdentityToken, auth.RegistryToken}, "\x00")))
	return string(sum[:])
}

func basicHeader(auth *authn.AuthConfig) string {
	if auth.Auth != "" {
		return "Basic " + auth.Auth
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(auth.Username+":"+auth.Password))
}

// token asks a token service for leave to pull. It speaks the docker token
// protocol: GET with Basic, or POST where the credential is a refresh token.
func (c *Client) token(ctx context.Context, a *attempt, src catalog.Source, params map[string]string, auth *authn.AuthConfig) (token, error) {
	h := a.h
	if auth.RegistryToken != "" {
		return token{header: "Bearer " + auth.RegistryToken, until: time.Now().Add(defaultTokenLife)}, nil
	}
	realm, err := url.Parse(params["realm"])
	if err != nil || realm.Host == "" || realm.Scheme != "https" && realm.Scheme != "http" {
		return token{}, fmt.Errorf("registry: %s names no usable token service: %q", h.name, params["realm"])
	}
	if realm.Scheme == "http" && h.base.Scheme == "https" {
		return token{}, fmt.Errorf("registry: %s would have credentials sent unencrypted to %s; refused", h.name, realm.Host)
	}
	q := url.Values{"scope": {"repository:" + src.Repo + ":pull"}}
	if s := params["service"]; s != "" {
		q.Set("service", s)
	}
	var req *http.Request
	if auth.IdentityToken != "" {
		q.Set("grant_type", "refresh_token")
		q.Set("refresh_token", auth.IdentityToken)
		q.Set("client_id", "airstream")
		req, err = http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(q.Encode()))
		if err == nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
	} else {
		maps.Copy(q, realm.Query())
		realm.RawQuery = q.Encode()
		req, err = http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), nil)
		if err == nil && (auth.Username != "" || auth.Auth != "") {
			req.Header.Set("Authorization", basicHeader(auth))
		}
	}
	if err != nil {
		return token{}, fmt.Errorf("registry: token service of %s: %w", h.name, err)
	}
	resp, err := c.do(ctx, a, h, req)
	if err != nil {
		return token{}, &Error{Source: src, What: "token", Err: err}
	}
	if resp.StatusCode != http.StatusOK {
		return token{}, refused(src, "token", resp)
	}
	return readToken(resp.Body, src)
}

func readToken(body io.ReadCloser, src catalog.Source) (token, error) {
	b, err := io.ReadAll(io.LimitReader(body, maxTokenSize))
	if err = errors.Join(err, body.Close()); err != nil {
		return token{}, &Error{Source: src, What: "token", Err: err}
	}
	var answer struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"` // seconds
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return token{}, fmt.Errorf("registry: token for %s/%s: %w", src.Host, src.Repo, err)
	}
	if answer.Token == "" {
		answer.Token = answer.AccessToken
	}
	if answer.Token == "" || strings.ContainsAny(answer.Token, "\r\n") {
		return token{}, fmt.Errorf("registry: token for %s/%s: the token service sent none", src.Host, src.Repo)
	}
	life := defaultTokenLife
	if answer.ExpiresIn > 0 && answer.ExpiresIn < 1<<31 {
		life = time.Duration(answer.ExpiresIn) * time.Second
	}
	// A token that lives no longer than the spare would never be used.
	life = max(life-tokenSpare, life/2)
	return token{header: "Bearer " + answer.Token, until: time.Now().Add(life)}, nil
}

// parseChallenge reads one WWW-Authenticate value: the scheme in lower case,
// and its parameters.
func parseChallenge(s string) (scheme string, params map[string]string) {
	scheme, rest, _ := strings.Cut(strings.TrimSpace(s), " ")
	params = map[string]string{}
	for rest != "" {
		var key, value string
		key, rest, _ = strings.Cut(rest, "=")
		key = strings.ToLower(strings.Trim(key, " ,"))
		rest = strings.TrimLeft(rest, " ")
		if quoted, ok := strings.CutPrefix(rest, `"`); ok {
			value, rest, _ = strings.Cut(quoted, `"`)
		} else {
			value, rest, _ = strings.Cut(rest, ",")
			value = strings.TrimSpace(value)
		}
		if key != "" {
			params[key] = value
		}
	}
	return strings.ToLower(scheme), params
}
