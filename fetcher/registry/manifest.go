package registry

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/catalog"
)

// MaxManifestSize bounds manifests and indexes, in bytes, as registries do.
const MaxManifestSize = 4 << 20

// accepted are the manifest types that a node can do something with.
var accepted = strings.Join([]string{
	"application/vnd.oci.image.index.v1+json",
	"application/vnd.oci.image.manifest.v1+json",
	"application/vnd.docker.distribution.manifest.list.v2+json",
	"application/vnd.docker.distribution.manifest.v2+json",
	"*/*",
}, ", ")

// Manifest is a manifest or an index as a registry sent it.
type Manifest struct {
	Digest    digest.Digest // of Body, computed here
	MediaType string        // without parameters
	Body      []byte
}

// Manifest fetches the manifest or index that ref, a tag or a digest, names,
// with the urgency of class. If ref is a digest, the body has it; other content
// is ErrContent, and counted.
func (c *Client) Manifest(ctx context.Context, class uplink.Class, src catalog.Source, ref string) (Manifest, error) {
	if m, ok, err := c.elsewhere(ctx, src, ref); ok {
		return m, err
	}
	var m Manifest
	err := c.each(ctx, src, func(h *host) (err error) {
		m, err = c.manifest(ctx, h, class, src, ref)
		return err
	})
	return m, err
}

// elsewhere asks the shore, if there is one. ok is false if the registry is to be
// asked.
func (c *Client) elsewhere(ctx context.Context, src catalog.Source, ref string) (m Manifest, ok bool, err error) {
	if c.opts.Shore == nil {
		return m, false, nil
	}
	if m, ok, err = c.opts.Shore.Manifest(ctx, src, ref); !ok || err != nil {
		return m, ok, err
	}
	m.Digest = digest.FromBytes(m.Body)
	if want := digest.Digest(ref); want.Validate() == nil && want != m.Digest {
		c.wrong.Add(1)
		return Manifest{}, true, fmt.Errorf("registry: manifest %s of %s/%s: %w: the proxy sent %s", ref, src.Host, src.Repo, ErrContent, m.Digest)
	}
	c.hear()
	return m, true, nil
}

func (c *Client) manifest(ctx context.Context, h *host, class uplink.Class, src catalog.Source, ref string) (Manifest, error) {
	what := "manifest " + ref
	header, b, err := c.small(ctx, h, class, src, what, "/manifests/"+ref, http.Header{"Accept": {accepted}}, MaxManifestSize)
	if err != nil {
		return Manifest{}, err
	}
	mediaType, _, _ := strings.Cut(header.Get("Content-Type"), ";")
	m := Manifest{Digest: digest.FromBytes(b), MediaType: strings.TrimSpace(mediaType), Body: b}
	want := digest.Digest(ref)
	if want.Validate() != nil {
		// A tag: what the registry says of its answer must hold, too.
		want = digest.Digest(header.Get("Docker-Content-Digest"))
	}
	if want.Validate() == nil && want.Algorithm() == digest.SHA256 && m.Digest != want {
		c.wrong.Add(1)
		return Manifest{}, fmt.Errorf("registry: %s of %s/%s: %w: %s sent other content, %s in place of %s", what, src.Host, src.Repo, ErrContent, h.base.Host, m.Digest, want)
	}
	return m, nil
}

// Head asks what a tag means now, with the urgency of class: the digest, or ""
// if the registry does not say without sending the manifest.
func (c *Client) Head(ctx context.Context, class uplink.Class, src catalog.Source, tag string) (digest.Digest, error) {
	if m, ok, err := c.elsewhere(ctx, src, tag); ok {
		return m.Digest, err
	}
	var d digest.Digest
	err := c.each(ctx, src, func(h *host) (err error) {
		d, err = c.head(ctx, h, class, src, tag)
		return err
	})
	return d, err
}

func (c *Client) head(ctx context.Context, h *host, class uplink.Class, src catalog.Source, tag string) (digest.Digest, error) {
	what := "manifest " + tag
	ctx, a := c.begin(ctx, h, class, 0)
	defer a.end()
	resp, err := c.get(ctx, a, src, http.MethodHead, what, "/manifests/"+tag, http.Header{"Accept": {accepted}})
	if err != nil {
		return "", err
	}
	switch resp.StatusCode {
	case http.StatusOK:
		d := digest.Digest(resp.Header.Get("Docker-Content-Digest"))
		if d.Validate() != nil {
			d = ""
		}
		return d, resp.Body.Close()
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return "", resp.Body.Close()
	}
	return "", refused(src, what, resp)
}
