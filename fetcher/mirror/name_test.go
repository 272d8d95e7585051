package mirror

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/internal/catalog"
)

func TestRewrite(t *testing.T) {
	rules := []Rule{
		{"docker.io", "cache.example/hub"},
		{"docker.io/library", "cache.example/official"},
		{"index.docker.io/acme", "cache.example"},
		{"a.example", "b.example"},
		{"b.example", "a.example"},
		{"registry.example:5000/x", "docker.io/y"},
		{"exact.example/one", "cache.example/uno"},
		{"short.example", "docker.io"},
	}
	for from, want := range map[string]string{
		"docker.io/library/redis":      "cache.example/official/redis",
		"docker.io/libraryx/redis":     "cache.example/hub/libraryx/redis",
		"docker.io/acme/app":           "cache.example/app",
		"docker.io/acme":               "cache.example/hub/acme", // the other rule would leave nothing
		"a.example/app":                "b.example/app",          // once: no circle
		"b.example/app":                "a.example/app",
		"registry.example:5000/x/app":  "docker.io/y/app",
		"registry.example:5000/xy/app": "registry.example:5000/xy/app",
		"exact.example/one":            "cache.example/uno",
		"exact.example/one/two":        "cache.example/uno/two",
		"other.example/app":            "other.example/app",
		"short.example/redis":          "docker.io/library/redis",
	} {
		host, repo, _ := strings.Cut(from, "/")
		if got := rewrite(rules, catalog.Source{Host: host, Repo: repo}); got.Host+"/"+got.Repo != want {
			t.Errorf("%s: %s/%s, want %s", from, got.Host, got.Repo, want)
		}
	}
}

func TestRulesAreChecked(t *testing.T) {
	for _, r := range []Rule{{"", "a"}, {"a", ""}, {"https://a", "b"}, {"a/", "b"}, {"a/../b", "c"}, {"a", "b/C"}} {
		if r.Validate() == nil {
			t.Errorf("%+v passes", r)
		}
	}
	if err := (Rule{"docker.io/library", "registry.example:5000/hub"}).Validate(); err != nil {
		t.Error(err)
	}
}

func TestWhichRegistryIsMeant(t *testing.T) {
	for _, tc := range []struct{ url, def, want string }{
		{"/v2/app/manifests/1?ns=shore.example", "", "shore.example/app:1"},
		{"/v2/app/manifests/1?ns=Shore.Example", "", "shore.example/app:1"},
		{"/v2/library/redis/manifests/1?ns=docker.io", "", "docker.io/library/redis:1"},
		{"/v2/redis/manifests/1?ns=registry-1.docker.io", "", "docker.io/library/redis:1"},
		{"/v2/redis/manifests/1", "docker.io", "docker.io/library/redis:1"},
		{"/v2/shore.example/app/manifests/1", "docker.io", "shore.example/app:1"},
		{"/v2/shore.example:5000/app/manifests/1", "", "shore.example:5000/app:1"},
		{"/v2/localhost/app/manifests/1", "", "localhost/app:1"},
		{"/v2/acme/app/manifests/1", "shore.example", "shore.example/acme/app:1"},
		{"/v2/acme/app/manifests/1", "", ""},
		{"/v2/blobs/manifests/app/manifests/1?ns=shore.example", "", "shore.example/blobs/manifests/app:1"},
	} {
		q, err := parse(httptest.NewRequestWithContext(t.Context(), "GET", tc.url, http.NoBody), tc.def)
		if got := q.name(); (err == nil) != (tc.want != "") || err == nil && got != tc.want {
			t.Errorf("%s: %s, %v; want %s", tc.url, got, err, tc.want)
		}
	}
}

// An image that a rule fetches from elsewhere keeps its name, dark too.
func TestRewrittenImageKeepsItsName(t *testing.T) {
	s, dir := newShore(t), t.TempDir()
	img := randomImage(t)
	s.push(t, "hub/library/redis:1", img)
	rewriting := func(o *Options, _ map[string]registry.Host) {
		o.Rewrite = []Rule{{"docker.io", "shore.example/hub"}, {"bad rule", "x"}}
		o.Default = "docker.io"
	}
	n := newNode(t, s, dir, rewriting)
	for _, url := range []string{"/v2/library/redis/manifests/1?ns=docker.io", "/v2/redis/manifests/1"} {
		if resp := n.ask(t, "GET", url); resp.header.Get("Docker-Content-Digest") != digestOf(t, img) {
			t.Errorf("%s: %d %s", url, resp.status, resp.body)
		}
	}
	images, err := n.catalog.Images()
	if err != nil || len(images) != 1 || !slices.Equal(images[0].Names, []string{"docker.io/library/redis:1"}) {
		t.Errorf("%+v, %v", images, err)
	}
	n.stop()
	s.setMood(dead)
	n = newNode(t, s, dir, rewriting)
	if resp := n.ask(t, "GET", "/v2/redis/manifests/1"); resp.header.Get("Docker-Content-Digest") != digestOf(t, img) {
		t.Errorf("dark: %d %s", resp.status, resp.body)
	}
}

// A mirror that is configured as its own registry says so at once.
func TestLoopIsRefused(t *testing.T) {
	s := newShore(t)
	var n *nodeSide
	self := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL.RawQuery = "ns=shore.example"
		n.ServeHTTP(w, r)
	}))
	defer self.Close()
	n = newNode(t, s, t.TempDir(), func(_ *Options, hosts map[string]registry.Host) {
		hosts["shore.example"] = registry.Host{URL: self.URL}
	})
	resp := n.get(t, "GET", "app/manifests/1")
	if resp.status < 500 || !strings.Contains(string(resp.body), "leads back here") {
		t.Errorf("%d %s", resp.status, resp.body)
	}
}
