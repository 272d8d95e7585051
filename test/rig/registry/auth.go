package registry

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

const (
	tokenPath = "/token"
	service   = "airstream-rig"
)

// grant is what a token says. Tokens are opaque to clients; ours are this, in
// JSON and signed.
type grant struct {
	Scopes  []string // "repository:NAME:ACTION", one action each
	Issued  int64    // ns since 1970
	Expires int64    // ns since 1970
}

// RevokeTokens makes all tokens void that were issued so far, as a token
// service that was restarted does.
func (f *Front) RevokeTokens() { f.revoked.Store(time.Now().UnixNano()) }

// authorize reports whether the request may go on; if not, it has answered.
func (f *Front) authorize(w http.ResponseWriter, r *http.Request, t target) bool {
	switch f.opt.Auth {
	case AuthBasic:
		if f.hasPassword(r) {
			return true
		}
		refuse(w, `Basic realm="`+service+`"`)
		return false
	case AuthBearer:
		return f.authorizeBearer(w, r, t)
	default:
		return true
	}
}

func (f *Front) authorizeBearer(w http.ResponseWriter, r *http.Request, t target) bool {
	challenge := fmt.Sprintf(`Bearer realm="%s%s",service="%s"`, f.token.url, tokenPath, service)
	action := "pull"
	var need []string
	if t.repo != "" {
		need = append(need, "repository:"+t.repo+":pull")
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			action = "pull,push"
			need = append(need, "repository:"+t.repo+":push")
		}
		challenge += fmt.Sprintf(`,scope="repository:%s:%s"`, t.repo, action)
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		refuse(w, challenge)
		return false
	}
	g, ok := f.open(token)
	if !ok {
		refuse(w, challenge+`,error="invalid_token"`)
		return false
	}
	for _, scope := range need {
		if !slices.Contains(g.Scopes, scope) {
			refuse(w, challenge+`,error="insufficient_scope"`)
			return false
		}
	}
	return true
}

// refuse answers 401 as the distribution specification wants it.
func refuse(w http.ResponseWriter, challenge string) {
	w.Header().Set("WWW-Authenticate", challenge)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusUnauthorized)
	_, _ = w.Write([]byte(`{"errors":[{"code":"UNAUTHORIZED","message":"authentication required","detail":null}]}` + "\n"))
}

func (f *Front) hasPassword(r *http.Request) bool {
	user, password, ok := r.BasicAuth()
	return ok && user == f.opt.Username && password == f.opt.Password
}

// serveToken is the token service: GET with basic authentication, and POST as
// OAuth2 has it with a password, which containerd tries first.
func (f *Front) serveToken(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != tokenPath {
		http.NotFound(w, r)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	if err := r.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	known, anonymous := f.hasPassword(r), r.Header.Get("Authorization") == ""
	if r.Method == http.MethodPost {
		if r.Form.Get("grant_type") != "password" {
			http.Error(w, `{"error":"unsupported_grant_type"}`, http.StatusBadRequest)
			return
		}
		known, anonymous = r.Form.Get("username") == f.opt.Username && r.Form.Get("password") == f.opt.Password, false
	}
	if !known && (!anonymous || !f.opt.Anonymous) {
		refuse(w, `Basic realm="`+service+`"`)
		return
	}

	now := time.Now()
	g := grant{Issued: now.UnixNano(), Expires: now.Add(f.opt.TokenLife).UnixNano()}
	for _, asked := range r.Form["scope"] {
		for scope := range strings.FieldsSeq(asked) { // OAuth2 separates by spaces
			g.Scopes = append(g.Scopes, granted(scope, known)...)
		}
	}
	token, err := f.seal(g)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{ // the client that goes away notices by itself
		"token":        token,
		"access_token": token,
		"expires_in":   int(f.opt.TokenLife.Seconds()),
		"issued_at":    now.UTC().Format(time.RFC3339),
	})
}

// granted splits a scope into one for each action that the client may do.
// Whoever has no account may only pull.
func granted(scope string, known bool) []string {
	kind, rest, _ := strings.Cut(scope, ":")
	repo, actions, ok := strings.Cut(rest, ":")
	if kind != "repository" || !ok {
		return nil
	}
	var list []string
	for action := range strings.SplitSeq(actions, ",") {
		if action == "pull" || known && (action == "push" || action == "delete") {
			list = append(list, "repository:"+repo+":"+action)
		}
	}
	return list
}

func (f *Front) seal(g grant) (string, error) {
	raw, err := json.Marshal(g)
	if err != nil {
		return "", fmt.Errorf("registry: seal token: %w", err)
	}
	body := base64.RawURLEncoding.EncodeToString(raw)
	return body + "." + f.sign("token", body), nil
}

// open returns what a token grants if it is ours, still valid and not revoked.
func (f *Front) open(token string) (g grant, ok bool) {
	body, signature, _ := strings.Cut(token, ".")
	if !hmac.Equal([]byte(signature), []byte(f.sign("token", body))) {
		return g, false
	}
	raw, err := base64.RawURLEncoding.DecodeString(body)
	if err != nil || json.Unmarshal(raw, &g) != nil {
		return g, false
	}
	return g, time.Now().UnixNano() < g.Expires && g.Issued > f.revoked.Load()
}

// sign authenticates text for one purpose.
func (f *Front) sign(purpose, text string) string {
	mac := hmac.New(sha256.New, f.secret[:])
	mac.Write([]byte(purpose + "\n" + text))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}
