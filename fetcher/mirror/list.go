package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/fetcher/registry"
)

// serveTags answers with a repository's tags: the registry's list, or, if it
// does not answer, the tags that are known here.
func (m *Mirror) serveTags(w http.ResponseWriter, r *http.Request, q request) {
	n := -1
	if s := q.query.Get("n"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil || n < 0 {
			m.refuse(w, r, http.StatusBadRequest, codeUnsupported, errors.New("n is not a number"))
			return
		}
	}
	known, err := m.knownTags(q)
	if err != nil {
		m.fail(w, r, q, codeNameUnknown, err)
		return
	}
	limit := m.limit()
	if len(known) > 0 {
		limit = m.patience(q)
	}
	var list registry.Tags
	if m.locked(q) && !m.reg.Dark() {
		err = errLocked
	} else {
		list, err = question(m, q, "tags "+q.query.Encode(), len(known) == 0, func(ctx context.Context) (registry.Tags, error) {
			return m.reg.Tags(ctx, q.from, q.query)
		}).wait(r.Context(), limit)
	}
	if len(known) > 0 && (errors.Is(err, errLate) || registry.Temporary(err)) {
		list, err = page(known, n, q.query.Get("last")), nil
	}
	if err != nil {
		m.fail(w, r, q, codeNameUnknown, err)
		return
	}
	if list.Next != nil {
		if q.ns {
			list.Next.Set("ns", q.src.Host)
		}
		w.Header().Set("Link", "</v2/"+q.path+"/tags/list?"+list.Next.Encode()+`>; rel="next"`)
	}
	if list.Names == nil {
		list.Names = []string{}
	}
	m.writeJSON(w, r, "application/json", struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{q.path, list.Names})
}

// knownTags returns the tags of q's repository that were resolved here, sorted.
func (m *Mirror) knownTags(q request) ([]string, error) {
	all, err := m.catalog.Tags()
	var known []string
	for _, t := range all {
		if tag, ok := strings.CutPrefix(t.Name, q.src.Host+"/"+q.src.Repo+":"); ok {
			known = append(known, tag)
		}
	}
	slices.Sort(known)
	return known, err
}

// page returns at most n of the tags, sorted, that follow last; n < 0: all.
func page(tags []string, n int, last string) registry.Tags {
	if last != "" {
		i, found := slices.BinarySearch(tags, last)
		if found {
			i++
		}
		tags = tags[i:]
	}
	if n < 0 || len(tags) <= n {
		return registry.Tags{Names: tags}
	}
	out := registry.Tags{Names: tags[:n]}
	if n > 0 {
		out.Next = url.Values{"n": {strconv.Itoa(n)}, "last": {tags[n-1]}}
	}
	return out
}

// serveReferrers answers with the manifests that name another as their subject,
// of one type of artifact if the client says so. What the registry said is kept
// for the dark.
func (m *Mirror) serveReferrers(w http.ResponseWriter, r *http.Request, q request) {
	all, err := m.referrers(r.Context(), q)
	if err != nil {
		m.fail(w, r, q, codeManifestUnknown, err)
		return
	}
	if want := q.query["artifactType"]; len(want) > 0 {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
		all = slices.DeleteFunc(slices.Clone(all), func(raw json.RawMessage) bool {
			var d ocispec.Descriptor
			return json.Unmarshal(raw, &d) != nil || !slices.Contains(want, d.ArtifactType)
		})
	}
	m.writeJSON(w, r, ocispec.MediaTypeImageIndex, indexOf(all))
}

type rawIndex struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Manifests     []json.RawMessage `json:"manifests"`
}

func indexOf(all []json.RawMessage) rawIndex {
	if all == nil {
		all = []json.RawMessage{}
	}
	return rawIndex{2, ocispec.MediaTypeImageIndex, all}
}

// referrers returns the descriptors of a manifest's referrers.
func (m *Mirror) referrers(ctx context.Context, q request) ([]json.RawMessage, error) {
	subject := digest.Digest(q.ref)
	old, oldErr := m.catalog.Referrers(q.src, subject)
	if oldErr != nil && !errors.Is(oldErr, fs.ErrNotExist) {
		return nil, oldErr
	}
	if !m.opts.Referrers {
		return manifestsOf(old.Index), nil
	}
	if m.locked(q) && (oldErr != nil || !m.reg.Dark()) {
		return nil, errLocked
	}
	limit := m.limit()
	if oldErr == nil {
		limit = m.patience(q)
	}
	all, err := question(m, q, "referrers "+q.ref, oldErr != nil, func(ctx context.Context) ([]json.RawMessage, error) {
		all, err := m.reg.Referrers(ctx, q.from, subject)
		if err != nil {
			return nil, err
		}
		index, err := json.Marshal(indexOf(all))
		if err != nil {
			return nil, err
		}
		return all, m.catalog.SetReferrers(q.src, subject, index, time.Now())
	}).wait(ctx, limit)
	if oldErr == nil && (errors.Is(err, errLate) || registry.Temporary(err)) {
		return manifestsOf(old.Index), nil
	}
	return all, err
}

// manifestsOf returns the descriptors in an index that is kept here.
func manifestsOf(index []byte) []json.RawMessage {
	var idx rawIndex
	if json.Unmarshal(index, &idx) != nil {
		return nil
	}
	return idx.Manifests
}

func (m *Mirror) writeJSON(w http.ResponseWriter, r *http.Request, mediaType string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		m.refuse(w, r, http.StatusInternalServerError, codeUnknown, err)
		return
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	m.write(w, r, b)
}
