package mirror

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/airstream-io/airstream/fetcher/registry"
)

// members makes the shore want a token that only "pod:secret" gets, or Basic
// with it.
func (s *shore) members(t *testing.T, bearer bool) {
	t.Helper()
	s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
		u, p, _ := r.BasicAuth()
		known := u+":"+p == "pod:secret"
		switch {
		case r.URL.Path == "/token" && known:
			_, err := fmt.Fprint(w, `{"token":"t"}`)
			return err == nil
		case known && !bearer, r.Header.Get("Authorization") == "Bearer t":
			return false
		case bearer && r.URL.Path != "/token":
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+s.URL+`/token",service="shore"`)
		default:
			w.Header().Set("WWW-Authenticate", `Basic realm="shore"`)
		}
		http.Error(w, "members only", http.StatusUnauthorized)
		return true
	})
}

func basic(login string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(login))
}

func TestClientsCredentials(t *testing.T) {
	for _, bearer := range []bool{false, true} {
		t.Run(fmt.Sprint("bearer ", bearer), func(t *testing.T) {
			s, dir := newShore(t), t.TempDir()
			img := randomImage(t)
			s.push(t, "app:1", img)
			s.members(t, bearer)
			n := newNode(t, s, dir)
			s.seen()
			for range 2 {
				resp := n.get(t, "HEAD", "app/manifests/1")
				if resp.status != 401 || !strings.HasPrefix(resp.header.Get("WWW-Authenticate"), `Basic realm="shore.example`) {
					t.Fatalf("without credentials: %d %v", resp.status, resp.header)
				}
			}
			if seen := s.seen(); len(seen) > 2 { // the manifest, and the token that is not given
				t.Errorf("asked %q to learn that a client has no credentials", seen)
			}
			if resp := n.get(t, "HEAD", "app/manifests/1", "Authorization", basic("pod:guess")); resp.status != 403 {
				t.Errorf("with wrong credentials: %d", resp.status)
			}
			if resp := n.get(t, "GET", "app/manifests/1", "Authorization", basic("pod:secret")); resp.status != 200 {
				t.Fatalf("with the right ones: %d %s", resp.status, resp.body)
			}
			if resp := n.get(t, "HEAD", "app/manifests/1"); resp.status != 401 {
				t.Errorf("another client gets a private tag while the link is up: %d", resp.status)
			}
			// Layers are fetched with what the registry took, also by the fetcher.
			layer := firstLayer(t, img)
			if resp := n.get(t, "GET", "app/blobs/"+layer, "Authorization", basic("pod:secret")); resp.status != 200 {
				t.Errorf("layer: %d %s", resp.status, resp.body)
			}
			// Dark, what is on site starts.
			s.setMood(dead)
			if resp := n.get(t, "GET", "app/manifests/1", "Authorization", basic("pod:secret")); resp.status != 200 {
				t.Errorf("dark, with credentials: %d", resp.status)
			}
			if resp := n.get(t, "GET", "app/manifests/1"); resp.status != 200 {
				t.Errorf("dark, without: %d %s", resp.status, resp.body)
			}
			n.stop()
			secretFree(t, dir, n.words.String())
		})
	}
}

func firstLayer(t *testing.T, img v1.Image) string {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	d, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// secretFree checks that neither the disk nor the log has a client's password.
func secretFree(t *testing.T, dir, words string) {
	t.Helper()
	secrets := []string{"pod:secret", strings.TrimPrefix(basic("pod:secret"), "Basic "), "\x00secret"}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		for _, secret := range secrets {
			if strings.Contains(string(b), secret) {
				t.Errorf("%s holds a client's password", path)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for _, secret := range secrets {
		if strings.Contains(words, secret) {
			t.Error("the log holds a client's password")
		}
	}
}

// After a restart nothing is remembered, but a pull that goes on brings its
// credentials along.
func TestPullOfAPrivateImageGoesOnAfterARestart(t *testing.T) {
	s, dir := newShore(t), t.TempDir()
	img := randomImage(t)
	s.push(t, "app:1", img)
	s.members(t, true)
	n := newNode(t, s, dir)
	if resp := n.get(t, "GET", "app/manifests/1", "Authorization", basic("pod:secret")); resp.status != 200 {
		t.Fatalf("%d %s", resp.status, resp.body)
	}
	n.stop()
	n = newNode(t, s, dir)
	layer := firstLayer(t, img)
	if resp := n.get(t, "GET", "app/blobs/"+layer); resp.status != 401 {
		t.Errorf("without credentials: %d", resp.status)
	}
	if resp := n.get(t, "GET", "app/blobs/"+layer, "Authorization", basic("pod:secret"), "Range", "bytes=1000-"); resp.status != 206 {
		t.Errorf("with them: %d %s", resp.status, resp.body)
	}
}

// Where the node has credentials of its own and they are refused, the client is
// told to look at those.
func TestNodesCredentialsThatAreRefused(t *testing.T) {
	s := newShore(t)
	s.push(t, "app:1", randomImage(t))
	s.members(t, false)
	n := newNode(t, s, t.TempDir(), func(_ *Options, hosts map[string]registry.Host) {
		hosts["shore.example"] = registry.Host{URL: s.URL, Username: "fleet", Password: "outdated"}
	})
	for range 2 {
		if resp := n.get(t, "GET", "app/manifests/1"); resp.status != 403 || !strings.Contains(string(resp.body), "credentials for shore.example") {
			t.Errorf("%d %s", resp.status, resp.body)
		}
	}
}

func TestPasswordIsNotForAnotherRegistry(t *testing.T) {
	s := newShore(t)
	s.push(t, "app:1", randomImage(t))
	s.members(t, false)
	n := newNode(t, s, t.TempDir(), func(o *Options, _ map[string]registry.Host) { o.Rewrite = []Rule{{"other.example", "shore.example"}} })
	if resp := n.ask(t, "GET", "/v2/app/manifests/1?ns=other.example", "Authorization", basic("pod:secret")); resp.status != 403 {
		t.Errorf("%d", resp.status)
	}
	if resp := n.ask(t, "GET", "/v2/app/manifests/1?ns=other.example"); resp.status != 401 {
		t.Errorf("without a password: %d", resp.status)
	}
}
