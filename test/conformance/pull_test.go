// Package conformance holds the mirror to the pull and discovery parts of the
// OCI distribution specification, before a real registry, with the link up and
// dark.
//
// The requests and what they must be answered with are the specification's
// (version 1.1): endpoints end-1, end-2, end-3, end-8 and end-12, and its rules
// for ranges, pages, filters and errors.
package conformance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/airstream-io/airstream/test/rig/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Kinds of front that the mirror stands behind.
var fronts = map[string]registry.FrontOptions{
	"plain": {},
	"tls-token-redirect": {
		TLS: true, Auth: registry.AuthBearer, Username: "crew", Password: "right", Redirect: true, StorageRefusesAuth: true,
	},
}

func TestPullWorkflow(t *testing.T) {
	reg := startRegistry(t)
	c := pushContent(t, reg)
	for kind, opts := range fronts {
		t.Run(kind, func(t *testing.T) {
			front, err := reg.Front(opts)
			must(t, err)
			t.Cleanup(func() { must(t, front.Close()) })
			dir := t.TempDir()
			n := startNode(t, dir, front, opts)
			for _, way := range n.ways() {
				t.Run("up, "+way.name, func(t *testing.T) { check(t, way, c, true) })
			}
			front.SetHook(func(registry.Kind, http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) })
			for _, way := range n.ways() {
				t.Run("dark, "+way.name, func(t *testing.T) { check(t, way, c, false) })
			}
			n.stop()
			n = startNode(t, dir, front, opts)
			for _, way := range n.ways() {
				t.Run("dark after a restart, "+way.name, func(t *testing.T) { check(t, way, c, false) })
			}
			t.Run("an ordinary client, dark", func(t *testing.T) { ordinary(t, n, c) })
		})
	}
}

// check runs the workflow one way. What does not exist is asked for with the
// link up only: with it dark nobody knows, and the question is waited for.
func check(t *testing.T, w way, c content, up bool) {
	t.Helper()
	w.want(t, "GET", "", http.StatusOK) // end-1
	for _, img := range c.images {
		checkManifest(t, w, img)
		checkBlobs(t, w, img)
	}
	absent := digest.FromString("nobody has pushed this").String()
	for _, what := range []string{"manifests/no-such-tag", "manifests/" + absent, "blobs/" + absent} {
		if up {
			w.want(t, "HEAD", what, http.StatusNotFound)
			w.want(t, "GET", what, http.StatusNotFound).wantErrors(t)
		}
	}
	for _, what := range []string{"manifests/sha256:totallywrong", "blobs/sha256:totallywrong"} {
		w.want(t, "GET", what, http.StatusBadRequest).wantErrors(t)
	}
	for _, method := range []string{"PUT", "POST", "PATCH", "DELETE"} {
		w.want(t, method, "manifests/plain", http.StatusMethodNotAllowed).wantErrors(t)
	}
	checkTags(t, w, c)
	checkReferrers(t, w, c)
}

// checkManifest is end-3, and end-2 of a manifest by digest.
func checkManifest(t *testing.T, w way, img *image) {
	t.Helper()
	for _, ref := range []string{img.tag, img.digest} {
		for _, method := range []string{"HEAD", "GET"} {
			a := w.want(t, method, "manifests/"+ref, http.StatusOK, "Accept", img.mediaType)
			if got := a.header.Get("Docker-Content-Digest"); got != img.digest {
				t.Errorf("%s %s: digest %q", method, ref, got)
			}
			if got := a.header.Get("Content-Type"); got != img.mediaType {
				t.Errorf("%s %s: type %q, want %q", method, ref, got, img.mediaType)
			}
			if got := a.header.Get("Content-Length"); got != fmt.Sprint(len(img.manifest)) {
				t.Errorf("%s %s: %s bytes, want %d", method, ref, got, len(img.manifest))
			}
			if method == "GET" && !bytes.Equal(a.body, img.manifest) {
				t.Errorf("%s: other content", ref)
			}
		}
	}
}

// checkBlobs is end-2, with ranges.
func checkBlobs(t *testing.T, w way, img *image) {
	t.Helper()
	for d, want := range img.blobs {
		a := w.want(t, "HEAD", "blobs/"+d, http.StatusOK)
		if a.header.Get("Docker-Content-Digest") != d || a.header.Get("Content-Length") != fmt.Sprint(len(want)) {
			t.Errorf("HEAD %s: %v", d, a.header)
		}
		if a := w.want(t, "GET", "blobs/"+d, http.StatusOK); !bytes.Equal(a.body, want) {
			t.Errorf("GET %s: %d bytes", d, len(a.body))
		}
		size := len(want)
		if size < 20 {
			continue
		}
		for spec, r := range map[string][2]int{
			"bytes=0-9": {0, 10}, "bytes=5-": {5, size}, "bytes=-4": {size - 4, size}, fmt.Sprintf("bytes=7-%d", size+100): {7, size},
		} {
			a := w.want(t, "GET", "blobs/"+d, http.StatusPartialContent, "Range", spec)
			if cr := fmt.Sprintf("bytes %d-%d/%d", r[0], r[1]-1, size); a.header.Get("Content-Range") != cr || !bytes.Equal(a.body, want[r[0]:r[1]]) {
				t.Errorf("%s of %s: %s, %d bytes", spec, d, a.header.Get("Content-Range"), len(a.body))
			}
		}
		w.want(t, "GET", "blobs/"+d, http.StatusRequestedRangeNotSatisfiable, "Range", fmt.Sprintf("bytes=%d-", size))
		w.want(t, "GET", "blobs/"+d, http.StatusOK, "Range", "bytes=0-9", "If-Range", `"another"`)
		w.want(t, "GET", "blobs/"+d, http.StatusPartialContent, "Range", "bytes=0-9", "If-Range", a.header.Get("Etag"))
	}
}

// checkTags is end-8: all tags, sorted, and the same page by page.
func checkTags(t *testing.T, w way, c content) {
	t.Helper()
	var want []string
	for _, img := range c.images {
		want = append(want, img.tag)
	}
	slices.Sort(want)
	got := func(a answer) []string {
		t.Helper()
		var list struct {
			Name string
			Tags []string
		}
		if err := json.Unmarshal(a.body, &list); err != nil || list.Name != w.repo {
			t.Errorf("tags: %s %v", a.body, err)
		}
		// A registry without the referrers API has tags that stand for it.
		return slices.DeleteFunc(list.Tags, func(s string) bool { return strings.HasPrefix(s, "sha256-") })
	}
	if diff := cmp.Diff(want, got(w.want(t, "GET", "tags/list", http.StatusOK))); diff != "" {
		t.Errorf("tags: %s", diff)
	}
	var all []string
	next := w.url("tags/list") + w.and() + "n=2"
	for range 20 {
		a := w.ask(t, "GET", next)
		all = append(all, got(a)...)
		link, ok := strings.CutSuffix(a.header.Get("Link"), `>; rel="next"`)
		if !ok {
			break
		}
		next = w.base + strings.TrimPrefix(link, "<")
	}
	if diff := cmp.Diff(want, all); diff != "" {
		t.Errorf("tags in pages: %s", diff)
	}
}

// checkReferrers is end-12, with and without a filter.
func checkReferrers(t *testing.T, w way, c content) {
	t.Helper()
	types := func(a answer) []string {
		t.Helper()
		var idx struct {
			SchemaVersion int
			MediaType     string
			Manifests     []struct {
				Digest, ArtifactType string
			}
		}
		if err := json.Unmarshal(a.body, &idx); err != nil || idx.SchemaVersion != 2 || idx.Manifests == nil || idx.MediaType != a.header.Get("Content-Type") {
			t.Errorf("referrers: %v %s", err, a.body)
		}
		found := []string{}
		for _, m := range idx.Manifests {
			if c.referrers[m.Digest] != m.ArtifactType {
				t.Errorf("referrer %s is %q", m.Digest, m.ArtifactType)
			}
			found = append(found, m.ArtifactType)
		}
		slices.Sort(found)
		return found
	}
	subject := c.images[0].digest
	if diff := cmp.Diff([]string{"application/sbom", "application/signature"}, types(w.want(t, "GET", "referrers/"+subject, http.StatusOK))); diff != "" {
		t.Error(diff)
	}
	a := w.ask(t, "GET", w.url("referrers/"+subject)+w.and()+"artifactType=application/sbom")
	if diff := cmp.Diff([]string{"application/sbom"}, types(a)); diff != "" || a.header.Get("OCI-Filters-Applied") != "artifactType" {
		t.Errorf("filtered: %v %s", a.header, diff)
	}
	if got := types(w.want(t, "GET", "referrers/"+c.images[1].digest, http.StatusOK)); len(got) != 0 {
		t.Errorf("nothing refers to it, but %q", got)
	}
	for d := range c.referrers {
		w.want(t, "GET", "manifests/"+d, http.StatusOK)
	}
}

// ordinary pulls with a client that knows nothing of mirrors, and verifies all
// that it gets.
func ordinary(t *testing.T, n *shipNode, c content) {
	t.Helper()
	for _, img := range c.images {
		ref, err := name.ParseReference(strings.TrimPrefix(n.url, "http://") + "/" + repo + ":" + img.tag)
		must(t, err)
		desc, err := remote.Get(ref, remote.WithContext(t.Context()), remote.WithTransport(n.http.Transport))
		must(t, err)
		if desc.MediaType.IsIndex() {
			idx, err := desc.ImageIndex()
			must(t, err)
			must(t, validate.Index(idx))
			continue
		}
		got, err := desc.Image()
		must(t, err)
		must(t, validate.Image(got))
	}
}

// want asks, and fails unless the status is the one wanted.
func (w way) want(t *testing.T, method, what string, status int, header ...string) answer {
	t.Helper()
	a := w.ask(t, method, w.url(what), header...)
	if a.status != status {
		t.Errorf("%s %s: %d, want %d: %.300s", method, what, a.status, status, a.body)
	}
	return a
}

func (w way) ask(t *testing.T, method, url string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, http.NoBody)
	must(t, err)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := w.http.Do(req)
	must(t, err)
	body, err := io.ReadAll(resp.Body)
	must(t, err)
	must(t, resp.Body.Close())
	return answer{resp.StatusCode, resp.Header, body}
}

// codes are the specification's.
var codes = []string{
	"BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN", "MANIFEST_INVALID",
	"MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED", "DENIED", "UNSUPPORTED", "TOOMANYREQUESTS",
}

// wantErrors checks the body of an error. The specification has codes for a
// client's mistakes alone.
func (a answer) wantErrors(t *testing.T) {
	t.Helper()
	var body struct {
		Errors []struct{ Code, Message string }
	}
	if err := json.Unmarshal(a.body, &body); err != nil || len(body.Errors) == 0 || body.Errors[0].Message == "" {
		t.Errorf("%d with %s", a.status, a.body)
		return
	}
	if a.status < 500 && !slices.Contains(codes, body.Errors[0].Code) {
		t.Errorf("%d with code %q", a.status, body.Errors[0].Code)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
