package location

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	fake "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// manifestBytes is an OCI manifest of some type, about a subject.
func manifestBytes(t *testing.T, artifactType string, subject *v1.Descriptor) (v1.Descriptor, []byte) {
	t.Helper()
	config, _ := blob("{}")
	config.MediaType = types.OCIEmptyJSON
	raw, err := json.Marshal(struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     types.MediaType `json:"mediaType"`
		ArtifactType  string          `json:"artifactType,omitempty"`
		Config        v1.Descriptor   `json:"config"`
		Layers        []v1.Descriptor `json:"layers"`
		Subject       *v1.Descriptor  `json:"subject,omitempty"`
	}{2, types.OCIManifestSchema1, artifactType, config, []v1.Descriptor{}, subject})
	if err != nil {
		t.Fatal(err)
	}
	d, _ := blob(string(raw))
	d.ArtifactType = artifactType
	return d, raw
}

// publish gives a place an image and what refers to it.
func publish(t *testing.T, dst Destination) (image, about v1.Descriptor) {
	t.Helper()
	image, raw := manifestBytes(t, "", nil)
	about, aboutRaw := manifestBytes(t, "application/vnd.test", &image)
	empty, open := blob("{}")
	for _, err := range []error{
		dst.PutBlob(t.Context(), empty, open),
		dst.PutManifest(t.Context(), image, raw),
		dst.PutReferrer(t.Context(), image, about, aboutRaw),
		dst.Commit(t.Context(), image, raw),
		dst.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return image, about
}

func TestReferrerInARegistry(t *testing.T) {
	for name, api := range map[string]bool{"with the API": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			h := fake.New(fake.WithReferrersSupport(api), fake.Logger(log.New(io.Discard, "", 0)))
			srv := httptest.NewServer(h)
			defer srv.Close()
			l, err := Parse(strings.TrimPrefix(srv.URL, "http://")+"/app:1", Options{})
			if err != nil {
				t.Fatal(err)
			}
			var image, about v1.Descriptor
			for range 2 { // the second finds it there
				dst, err := l.OpenDestination(Options{}, Location{})
				if err != nil {
					t.Fatal(err)
				}
				image, about = publish(t, dst)
			}
			index, err := remote.Referrers(l.ref.Context().Digest(image.Digest.String()))
			if err != nil {
				t.Fatal(err)
			}
			checkReferrers(t, index, about)
			tag := l.ref.Context().Tag(strings.Replace(image.Digest.String(), ":", "-", 1))
			if _, err := remote.Head(tag); (err == nil) == api {
				t.Errorf("the tag for registries without the API: %v", err)
			}
			if tr, ok := remote.DefaultTransport.(*http.Transport); ok {
				tr.CloseIdleConnections()
			}
		})
	}
}

func checkReferrers(t *testing.T, index v1.ImageIndex, about v1.Descriptor) {
	t.Helper()
	im, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(im.Manifests) != 1 || im.Manifests[0].Digest != about.Digest { // the fake says another type where it has the API
		t.Errorf("referrers are %+v, want %+v", im.Manifests, about)
	}
}

func TestReferrerInALayout(t *testing.T) {
	for _, tag := range []string{"", ":1.0"} {
		dir := filepath.Join(t.TempDir(), "image")
		var image, about v1.Descriptor
		for range 2 {
			image, about = publish(t, openDir(t, dir+tag))
		}
		for _, name := range []string{"oci:" + dir, "oci:" + dir + tag, fmt.Sprintf("oci:%s:sha256-%s", dir, image.Digest.Hex)} {
			l, err := Parse(name, Options{})
			if err != nil {
				t.Fatal(err)
			}
			src, err := l.OpenSource(t.Context(), Options{}, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			d, raw, err := src.Root(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(name, ":sha256-") {
				if d.Digest != image.Digest {
					t.Errorf("%s is %s, want the image %s", name, d.Digest, image.Digest)
				}
				continue
			}
			var im v1.IndexManifest
			if err := json.Unmarshal(raw, &im); err != nil {
				t.Fatal(err)
			}
			if len(im.Manifests) != 1 || im.Manifests[0].Digest != about.Digest || im.Manifests[0].ArtifactType != about.ArtifactType {
				t.Errorf("referrers are %s, want %+v", raw, about)
			}
			if _, err := src.Manifest(t.Context(), about); err != nil {
				t.Error(err)
			}
			if err := src.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// Nothing stays of an image that isn't finished.
func TestReferrerWithoutACommit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "image")
	dst := openDir(t, dir)
	image, raw := manifestBytes(t, "", nil)
	about, aboutRaw := manifestBytes(t, "application/vnd.test", &image)
	for _, err := range []error{dst.PutManifest(t.Context(), image, raw), dst.PutReferrer(t.Context(), image, about, aboutRaw), dst.Close()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if list, _ := filepath.Glob(dir + "/*"); len(list) > 0 {
		t.Errorf("left: %v", list)
	}
}
