package registry

import (
	"context"
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
	basic  string           // guarded by mu; the header, if the host wants Basic
	tokens map[string]token // guarded by mu; by repository
}

type token struct {
	header string
	until  time.Time
}

// header returns what to send along for a repository, or "".
func (c *credentials) header(repo string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.basic != "" {
		return c.basic
	}
	if t := c.tokens[repo]; time.Now().Before(t.until) {
		return t.header
	}
	return ""
}

func (c *credentials) setToken(repo string, t token) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tokens == nil {
		c.tokens = map[string]token{}
	}
	c.tokens[repo] = t
}

func (c *credentials) setBasic(header string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.basic = header
}

// forget drops a header that was refused, unless it was renewed meanwhile.
func (c *credentials) forget(repo, header string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.basic == header {
		c.basic = ""
	}
	if c.tokens[repo].header == header {
		delete(c.tokens, repo)
	}
}

// login answers the challenges of a 401 to a request that carried refused.
// Of several that were challenged at once, one asks for the token.
func (c *Client) login(ctx context.Context, a *attempt, h *host, src catalog.Source, challenges []string, refused string) error {
	h.login.Lock()
	defer h.login.Unlock()
	h.cred.forget(src.Repo, refused)
	if h.cred.header(src.Repo) != "" {
		return nil // another request has just logged in
	}
	auth, err := c.authorization(ctx, h)
	if err != nil {
		return fmt.Errorf("registry: credentials for %s: %w", h.name, err)
	}
	for _, raw := range challenges {
		scheme, params := parseChallenge(raw)
		switch scheme {
		case "bearer":
			t, err := c.token(ctx, a, h, src, params, auth)
			if err != nil {
				return err
			}
			h.cred.setToken(src.Repo, t)
			return nil
		case "basic":
			if auth.Username != "" || auth.Auth != "" {
				h.cred.setBasic(basicHeader(auth))
				return nil
			}
		}
	}
	return nil // nothing to log in with: the 401 stands
}

// authorization returns the configured credentials of a host: the node's own
// configuration first, then docker's.
func (c *Client) authorization(ctx context.Context, h *host) (*authn.AuthConfig, error) {
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

func basicHeader(auth *authn.AuthConfig) string {
	if auth.Auth != "" {
		return "Basic " + auth.Auth
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(auth.Username+":"+auth.Password))
}

// token asks a token service for leave to pull. It speaks the docker token
// protocol: GET with Basic, or POST where the credential is a refresh token.
func (c *Client) token(ctx context.Context, a *attempt, h *host, src catalog.Source, params map[string]string, auth *authn.AuthConfig) (token, error) {
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
