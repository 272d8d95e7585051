package registry

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func TestWhoIsRefused(t *testing.T) {
	for mode, opt := range map[string]FrontOptions{"basic": {Auth: AuthBasic}, "bearer": {Auth: AuthBearer}} {
		t.Run(mode, func(t *testing.T) {
			f, img := front(t, opt)
			if err := pull(t, f, authn.Anonymous); err == nil {
				t.Error("anonymous pull went through")
			}
			if err := pull(t, f, &authn.Basic{Username: "mate", Password: "guess"}); err == nil {
				t.Error("pull with a wrong password went through")
			}
			blob, _ := blobOf(t, img)
			got := get(t, f, f.URL()+blob, nil)
			if challenge := got.header.Get("WWW-Authenticate"); got.status != 401 || !strings.HasPrefix(strings.ToLower(challenge), mode) {
				t.Errorf("status %d, challenge %q", got.status, challenge)
			}
		})
	}
}

func TestAnonymousMayPullAndNotPush(t *testing.T) {
	f, img := front(t, FrontOptions{Auth: AuthBearer, Anonymous: true})
	if err := pull(t, f, authn.Anonymous); err != nil {
		t.Errorf("anonymous pull: %v", err)
	}
	ref, err := name.ParseReference(f.Host()+"/other:v1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	opts := []remote.Option{remote.WithContext(t.Context()), remote.WithTransport(client(t, f))}
	if err := remote.Write(ref, img, append(opts, remote.WithAuth(authn.Anonymous))...); err == nil {
		t.Error("anonymous push went through")
	}
	if err := remote.Write(ref, img, append(opts, remote.WithAuth(account))...); err != nil {
		t.Errorf("push with an account: %v", err)
	}
}

func token(t *testing.T, f *Front, scope string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+f.TokenHost()+"/token?service=x&scope="+url.QueryEscape(scope), http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(account.Username, account.Password)
	resp, err := client(t, f).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // a reader
	var answer struct{ Token string }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || answer.Token == "" {
		t.Fatalf("token service: %d, %v", resp.StatusCode, err)
	}
	return answer.Token
}

// A token opens what it was asked for, as long as it lasts.
func TestTokensHaveScopeAndExpiry(t *testing.T) {
	f, img := front(t, FrontOptions{Auth: AuthBearer, TokenLife: 400 * time.Millisecond})
	blob, _ := blobOf(t, img)
	ask := func(token string) (int, string) {
		got := get(t, f, f.URL()+blob, map[string]string{"Authorization": "Bearer " + token})
		return got.status, got.header.Get("WWW-Authenticate")
	}
	if status, challenge := ask(token(t, f, "repository:other:pull")); status != 401 || !strings.Contains(challenge, `error="insufficient_scope"`) || !strings.Contains(challenge, `scope="repository:app:pull"`) {
		t.Errorf("token for another repository: %d, %q", status, challenge)
	}
	if status, challenge := ask("forged." + "x"); status != 401 || !strings.Contains(challenge, `error="invalid_token"`) {
		t.Errorf("forged token: %d, %q", status, challenge)
	}
	good := token(t, f, "repository:app:pull")
	if status, _ := ask(good); status != 200 {
		t.Errorf("good token: %d", status)
	}
	f.RevokeTokens()
	if status, _ := ask(good); status != 401 {
		t.Errorf("revoked token: %d", status)
	}
	good = token(t, f, "repository:app:pull")
	if status, _ := ask(good); status != 200 {
		t.Errorf("new token: %d", status)
	}
	time.Sleep(450 * time.Millisecond)
	if status, challenge := ask(good); status != 401 || !strings.Contains(challenge, `error="invalid_token"`) {
		t.Errorf("expired token: %d, %q", status, challenge)
	}
}

// containerd asks for tokens with a form before it tries GET.
func TestTokenByForm(t *testing.T) {
	f, img := front(t, FrontOptions{Auth: AuthBearer})
	ask := func(password string) (int, string) {
		resp, err := (&http.Client{Transport: client(t, f)}).PostForm("http://"+f.TokenHost()+"/token", url.Values{
			"grant_type": {"password"}, "username": {account.Username}, "password": {password}, "service": {service},
			"scope": {"repository:other:pull repository:app:pull,push"},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close() //nolint:errcheck // a reader
		var answer struct {
			AccessToken string `json:"access_token"`
		}
		_ = json.NewDecoder(resp.Body).Decode(&answer)
		return resp.StatusCode, answer.AccessToken
	}
	status, token := ask(account.Password)
	blob, _ := blobOf(t, img)
	if got := get(t, f, f.URL()+blob, map[string]string{"Authorization": "Bearer " + token}); status != 200 || got.status != 200 {
		t.Errorf("token service: %d, blob: %d", status, got.status)
	}
	if status, _ := ask("guess"); status != 401 {
		t.Errorf("wrong password: %d", status)
	}
}
