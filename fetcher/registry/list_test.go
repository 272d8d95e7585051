package registry

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/fetcher/uplink"
)

func TestTagsInPages(t *testing.T) {
	s := newShore(t, false)
	s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("last") == "" {
			w.Header().Set("Link", `</elsewhere>; rel="prev", </v2/app/web/tags/list?last=b&n=2>; rel="next"`)
			_, err := io.WriteString(w, `{"name":"app/web","tags":["a","b"]}`)
			return err == nil
		}
		_, err := io.WriteString(w, `{"name":"app/web","tags":["c"]}`)
		return err == nil
	})
	c := client(t, s, nil)
	var all []string
	for q := (url.Values{"n": {"2"}}); q != nil; {
		tags, err := c.Tags(t.Context(), s.src(), q)
		if err != nil {
			t.Fatal(err)
		}
		all, q = append(all, tags.Names...), tags.Next
	}
	if diff := cmp.Diff([]string{"a", "b", "c"}, all); diff != "" {
		t.Error(diff)
	}
}

func TestReferrersInPagesAndByTag(t *testing.T) {
	d := digest.FromString("image")
	for _, api := range []bool{true, false} {
		s := newShore(t, false)
		s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
			page := `{"schemaVersion":2,"manifests":[{"digest":"one"}]}`
			switch {
			case api && r.URL.Path == "/v2/app/web/referrers/"+d.String():
				if r.URL.Query().Get("page") == "" {
					w.Header().Set("Link", "<"+r.URL.Path+`?page=2>; rel=next`)
				} else {
					page = `{"schemaVersion":2,"manifests":[{"digest":"two"}]}`
				}
			case !api && r.URL.Path == "/v2/app/web/manifests/sha256-"+d.Encoded():
			default:
				http.NotFound(w, r)
				return true
			}
			_, err := io.WriteString(w, page)
			return err == nil
		})
		c := client(t, s, nil)
		all, err := c.Referrers(t.Context(), s.src(), d)
		want := `[{"digest":"one"}]`
		if api {
			want = `[{"digest":"one"} {"digest":"two"}]`
		}
		if got := fmt.Sprintf("%s", all); err != nil || got != want {
			t.Errorf("API %v: %s, %v", api, got, err)
		}
		if all, err := c.Referrers(t.Context(), s.src(), digest.FromString("another")); err != nil || len(all) != 0 {
			t.Errorf("API %v, nothing refers: %s, %v", api, all, err)
		}
		s.setMood(answerWith(503))
		if _, err := c.Referrers(t.Context(), s.src(), d); !Temporary(err) {
			t.Errorf("API %v: %v", api, err)
		}
	}
}

func TestSizeOfABlob(t *testing.T) {
	s := newShore(t, false)
	c := client(t, s, nil)
	for _, ranges := range []bool{true, false} {
		s.setMood(func(_ http.ResponseWriter, r *http.Request) bool {
			if !ranges {
				r.Header.Del("Range")
			}
			return false
		})
		if n, err := c.Size(t.Context(), s.src(), s.digest()); err != nil || n != 100_000 {
			t.Errorf("ranges %v: %d, %v", ranges, n, err)
		}
	}
	s.setMood(answerWith(404))
	if _, err := c.Size(t.Context(), s.src(), s.digest()); !NotFound(err) {
		t.Errorf("got %v", err)
	}
}

func TestHeadTellsWhatATagMeans(t *testing.T) {
	s := newShore(t, false)
	d := digest.FromString("manifest")
	c := client(t, s, nil)
	for _, tc := range []struct {
		status int
		digest string
		want   digest.Digest
		ok     bool
	}{{200, d.String(), d, true}, {200, "", "", true}, {200, "nonsense", "", true}, {405, "", "", true}, {404, "", "", false}, {503, "", "", false}} {
		s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodHead || !strings.Contains(r.Header.Get("Accept"), "image.index") {
				t.Errorf("%s with Accept %q", r.Method, r.Header.Get("Accept"))
			}
			w.Header().Set("Docker-Content-Digest", tc.digest)
			w.WriteHeader(tc.status)
			return true
		})
		if got, err := c.Head(t.Context(), uplink.Background, s.src(), "1"); got != tc.want || (err == nil) != tc.ok {
			t.Errorf("%+v: %q, %v", tc, got, err)
		}
	}
}
