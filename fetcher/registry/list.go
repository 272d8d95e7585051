package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/catalog"
)

// maxPages bounds how many pages of a list of referrers are read.
const maxPages = 16

// Tags is a part of a repository's list of tags.
type Tags struct {
	Names []string
	Next  url.Values // what asks for the next part; nil: there is none
}

// Tags asks a registry for a repository's tags. query is passed on: "n" bounds
// how many, "last" is the one before the first.
func (c *Client) Tags(ctx context.Context, src catalog.Source, query url.Values) (Tags, error) {
	path := "/tags/list"
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	var t Tags
	err := c.each(ctx, src, func(h *host) error {
		header, b, err := c.small(ctx, h, uplink.Demand, src, "tags", path, http.Header{"Accept": {"application/json"}}, MaxManifestSize)
		if err != nil {
			return err
		}
		var list struct {
			Tags []string `json:"tags"`
		}
		if err := json.Unmarshal(b, &list); err != nil {
			return fmt.Errorf("registry: tags of %s/%s: %w: %w", src.Host, src.Repo, ErrContent, err)
		}
		t = Tags{Names: list.Tags}
		if next := nextPage(header); next != nil {
			t.Next = next.Query()
		}
		return nil
	})
	return t, err
}

// nextPage returns where a Link header says that a list goes on, or nil.
func nextPage(h http.Header) *url.URL {
	for _, v := range h.Values("Link") {
		for link := range strings.SplitSeq(v, ",") {
			ref, params, ok := strings.Cut(strings.TrimSpace(link), ">")
			if !ok || !strings.HasPrefix(ref, "<") || !strings.Contains(strings.ReplaceAll(params, `"`, ""), "rel=next") {
				continue
			}
			if u, err := url.Parse(ref[1:]); err == nil {
				return u
			}
		}
	}
	return nil
}

// Referrers asks for the descriptors, in JSON, of all manifests that name d as
// their subject. A registry without that part of the API is asked for the tag
// that clients keep in its place.
func (c *Client) Referrers(ctx context.Context, src catalog.Source, d digest.Digest) ([]json.RawMessage, error) {
	var all []json.RawMessage
	err := c.each(ctx, src, func(h *host) (err error) {
		if all, err = c.referrers(ctx, h, src, d); NotFound(err) {
			all, err = c.referrersTag(ctx, h, src, d)
		}
		return err
	})
	return all, err
}

func (c *Client) referrers(ctx context.Context, h *host, src catalog.Source, d digest.Digest) ([]json.RawMessage, error) {
	var all []json.RawMessage
	path := "/referrers/" + d.String()
	size := 0
	for range maxPages {
		header, b, err := c.small(ctx, h, uplink.Demand, src, "referrers of "+d.String(), path, http.Header{"Accept": {"application/vnd.oci.image.index.v1+json"}}, MaxManifestSize)
		if err != nil {
			return nil, err
		}
		page, err := descriptors(b)
		if err != nil {
			return nil, fmt.Errorf("registry: referrers of %s in %s/%s: %w: %w", d, src.Host, src.Repo, ErrContent, err)
		}
		all = append(all, page...)
		next := nextPage(header)
		if size += len(b); next == nil || size > MaxManifestSize {
			return all, nil
		}
		path = "/referrers/" + d.String() + "?" + next.RawQuery
	}
	return all, nil
}

// referrersTag reads the index that stands under the tag which the digest
// makes. No such tag means that nothing refers to the manifest.
func (c *Client) referrersTag(ctx context.Context, h *host, src catalog.Source, d digest.Digest) ([]json.RawMessage, error) {
	m, err := c.manifest(ctx, h, uplink.Demand, src, ReferrersTag(d))
	if NotFound(err) {
		return []json.RawMessage{}, nil
	}
	if err != nil {
		return nil, err
	}
	all, err := descriptors(m.Body)
	if err != nil {
		return nil, fmt.Errorf("registry: referrers of %s in %s/%s: %w: %w", d, src.Host, src.Repo, ErrContent, err)
	}
	return all, nil
}

// ReferrersTag returns the tag under which clients keep the referrers of a
// manifest where a registry has no API for them.
func ReferrersTag(d digest.Digest) string {
	return fmt.Sprintf("%.32s-%.64s", d.Algorithm(), d.Encoded())
}

func descriptors(index []byte) ([]json.RawMessage, error) {
	var list struct {
		SchemaVersion int               `json:"schemaVersion"`
		Manifests     []json.RawMessage `json:"manifests"`
	}
	if err := json.Unmarshal(index, &list); err != nil {
		return nil, err
	}
	if list.SchemaVersion != 2 {
		return nil, fmt.Errorf("an index of schema version %s", strconv.Itoa(list.SchemaVersion))
	}
	return list.Manifests, nil
}
