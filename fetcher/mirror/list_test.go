package mirror

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

func (a answer) tags(t *testing.T) []string {
	t.Helper()
	var list struct {
		Name string
		Tags []string
	}
	if err := json.Unmarshal(a.body, &list); err != nil || a.status != 200 || list.Name != "app" {
		t.Fatalf("%d %s %v", a.status, a.body, err)
	}
	return list.Tags
}

func TestTagsUpAndDark(t *testing.T) {
	s := newShore(t)
	img := randomImage(t)
	for _, tag := range []string{"1", "2", "3", "4"} {
		s.push(t, "app:"+tag, img)
	}
	s.push(t, "apple:9", img)
	n := newNode(t, s, t.TempDir())
	if diff := cmp.Diff([]string{"1", "2", "3", "4"}, n.get(t, "GET", "app/tags/list").tags(t)); diff != "" {
		t.Errorf("up: %s", diff)
	}
	for _, ref := range []string{"app:1", "app:3", "app:4", "apple:9"} {
		n.means(t, ref)
	}
	s.setMood(dead)
	if diff := cmp.Diff([]string{"1", "3", "4"}, n.get(t, "GET", "app/tags/list").tags(t)); diff != "" {
		t.Errorf("dark: %s", diff)
	}
	resp := n.get(t, "GET", "app/tags/list&n=2")
	if diff := cmp.Diff([]string{"1", "3"}, resp.tags(t)); diff != "" {
		t.Errorf("first page: %s", diff)
	}
	link, ok := strings.CutSuffix(resp.header.Get("Link"), `>; rel="next"`)
	u, err := url.Parse(strings.TrimPrefix(link, "<"))
	if err != nil || !ok || u.Query().Get("ns") != "shore.example" {
		t.Fatalf("Link %q", resp.header.Get("Link"))
	}
	if diff := cmp.Diff([]string{"4"}, n.ask(t, "GET", u.String()).tags(t)); diff != "" {
		t.Errorf("second page: %s", diff)
	}
	if resp := n.get(t, "GET", "unknown/tags/list"); resp.status != http.StatusServiceUnavailable {
		t.Errorf("unknown, dark: %d", resp.status)
	}
}

func TestReferrersUpAndDark(t *testing.T) {
	for _, api := range []bool{true, false} {
		s, dir := newShore(t), t.TempDir()
		subject := digest.FromString("image")
		const signature, sbom = `{"digest":"sha256:aa","artifactType":"signature"}`, `{"digest":"sha256:bb","artifactType":"sbom","annotations":{"a":"b"}}`
		mood := func(w http.ResponseWriter, r *http.Request) bool {
			path := "/v2/app/referrers/" + subject.String()
			if !api {
				path = "/v2/app/manifests/sha256-" + subject.Encoded()
			}
			if r.URL.Path != path {
				http.NotFound(w, r)
				return true
			}
			if r.URL.RawQuery != "" {
				t.Errorf("asked with %q: what is cached must be complete", r.URL.RawQuery)
			}
			_, err := io.WriteString(w, `{"schemaVersion":2,"manifests":[`+signature+","+sbom+"]}")
			return err == nil
		}
		s.setMood(mood)
		n := newNode(t, s, dir)
		check := func(when string) {
			t.Helper()
			resp := n.get(t, "GET", "app/referrers/"+subject.String())
			if resp.status != 200 || resp.header.Get("Content-Type") != "application/vnd.oci.image.index.v1+json" || resp.header.Get("OCI-Filters-Applied") != "" ||
				!strings.Contains(string(resp.body), signature+","+sbom) {
				t.Errorf("%s: %d %v %s", when, resp.status, resp.header, resp.body)
			}
			resp = n.get(t, "GET", "app/referrers/"+subject.String()+"&artifactType=sbom")
			if resp.status != 200 || resp.header.Get("OCI-Filters-Applied") != "artifactType" || strings.Contains(string(resp.body), signature) || !strings.Contains(string(resp.body), sbom) {
				t.Errorf("%s, filtered: %d %v %s", when, resp.status, resp.header, resp.body)
			}
		}
		check("up")
		n.stop()
		s.setMood(dead)
		n = newNode(t, s, dir)
		check("dark, after a restart")
		if resp := n.get(t, "GET", "app/referrers/"+digest.FromString("never asked").String()); resp.status != http.StatusServiceUnavailable {
			t.Errorf("dark and never asked: %d", resp.status)
		}
		s.setMood(mood)
		eventually(t, "the link is still dark", func() bool {
			resp := n.get(t, "GET", "app/referrers/"+digest.FromString("nothing refers").String())
			return resp.status == 200 && strings.Contains(string(resp.body), fmt.Sprintf("%q:[]", "manifests"))
		})
		n.opts.Referrers = false
		s.seen()
		if resp := n.get(t, "GET", "app/referrers/"+digest.FromString("switched off").String()); resp.status != 200 || len(s.seen()) != 0 {
			t.Errorf("switched off: %d", resp.status)
		}
	}
}
