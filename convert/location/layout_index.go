package location

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/airstream-io/airstream/convert/internal/rawjson"
)

// referrer is a manifest that refers to another.
type referrer struct{ subject, d v1.Descriptor }

// referrersTag is the tag under which the referrers of a manifest are found where
// nobody can be asked for them; see "referrers tag schema" in OCI's distribution
// spec. Layouts, of which the spec says nothing, are read by the same rule.
func referrersTag(subject v1.Descriptor) string {
	return subject.Digest.Algorithm + "-" + subject.Digest.Hex
}

func isReferrersTag(tag string) bool {
	algorithm, hex, ok := strings.Cut(tag, "-")
	if !ok {
		return false
	}
	_, err := v1.NewHash(algorithm + ":" + hex)
	return err == nil
}

// PutReferrer writes a manifest, and enters it when the image is.
func (l *layout) PutReferrer(ctx context.Context, subject, d v1.Descriptor, raw []byte) error {
	if err := l.PutManifest(ctx, d, raw); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.referrers = append(l.referrers, referrer{subject, d})
	return nil
}

func (l *layout) Commit(ctx context.Context, d v1.Descriptor, raw []byte) error {
	err := l.PutManifest(ctx, d, raw)
	if err == nil {
		err = l.enter(ctx, d)
	}
	if err != nil {
		return fmt.Errorf("location: write %s: %w", l, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.committed = true
	return nil
}

// enter enters the image in index.json, in the place of what had the tag, and
// what refers to it. Other entries, and what other tools wrote, stay as they are.
func (l *layout) enter(ctx context.Context, d v1.Descriptor) error {
	unlock, err := lock(l.path)
	if err != nil {
		return err
	}
	defer unlock()
	path := filepath.Join(l.path, "index.json")
	raw, err := readLimited(path)
	if errors.Is(err, fs.ErrNotExist) {
		raw, err = []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`), nil
	}
	if err != nil {
		return err
	}
	index, err := rawjson.Parse(raw)
	if err != nil {
		return fmt.Errorf("index.json: %w", err)
	}
	list, err := index.Objects("manifests")
	if err != nil {
		return fmt.Errorf("index.json: %w", err)
	}
	l.mu.Lock()
	referrers := slices.Clone(l.referrers)
	l.mu.Unlock()
	for _, r := range referrers {
		tag := referrersTag(r.subject)
		of, err := l.referrersOf(ctx, list, tag, r.d)
		if err != nil {
			return fmt.Errorf("referrers of %s: %w", r.subject.Digest, err)
		}
		if list, err = named(list, tag, of); err != nil {
			return err
		}
	}
	if list, err = named(list, l.tag, d); err != nil {
		return err
	}
	if err := index.Set("manifests", list); err != nil {
		return err
	}
	if raw, err = index.Bytes(); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(l.path, "oci-layout")); errors.Is(err, fs.ErrNotExist) {
		if err := l.writeFile(ctx, filepath.Join(l.path, "oci-layout"), strings.NewReader(layoutFile)); err != nil {
			return err
		}
	}
	return l.writeFile(ctx, path, strings.NewReader(string(raw)))
}

// named returns list with d under a tag, behind all others, in the place of what
// had the tag.
func named(list []*rawjson.Object, tag string, d v1.Descriptor) ([]*rawjson.Object, error) {
	list = slices.DeleteFunc(list, func(o *rawjson.Object) bool { return tagOf(o) == tag })
	entry := &rawjson.Object{}
	members := []struct {
		name  string
		value any
	}{{"mediaType", d.MediaType}, {"digest", d.Digest}, {"size", d.Size}}
	for _, m := range members {
		if err := entry.Set(m.name, m.value); err != nil {
			return nil, err
		}
	}
	if tag != "" {
		if err := entry.Set("annotations", map[string]string{refName: tag}); err != nil {
			return nil, err
		}
	}
	return append(list, entry), nil
}

func tagOf(o *rawjson.Object) string {
	var d v1.Descriptor
	_ = o.Get("annotations", &d.Annotations) // one that can't be read isn't ours
	return d.Annotations[refName]
}

// referrersOf writes the index of what refers to a manifest: what it has been so
// far, and add.
func (l *layout) referrersOf(ctx context.Context, list []*rawjson.Object, tag string, add v1.Descriptor) (v1.Descriptor, error) {
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	for _, o := range list {
		var h v1.Hash
		if tagOf(o) != tag || o.Get("digest", &h) != nil {
			continue
		}
		raw, err := readLimited(l.blobPath(h))
		if err != nil {
			return v1.Descriptor{}, err
		}
		if err := json.Unmarshal(raw, &index); err != nil {
			return v1.Descriptor{}, err
		}
	}
	if !slices.ContainsFunc(index.Manifests, func(d v1.Descriptor) bool { return d.Digest == add.Digest }) {
		index.Manifests = append(index.Manifests, add)
	}
	raw, err := json.Marshal(index)
	if err != nil {
		return v1.Descriptor{}, err
	}
	h, size, err := v1.SHA256(strings.NewReader(string(raw)))
	if err != nil {
		return v1.Descriptor{}, err
	}
	d := v1.Descriptor{MediaType: types.OCIImageIndex, Digest: h, Size: size}
	return d, l.PutManifest(ctx, d, raw)
}

// Referrers returns the manifests whose subject is another, as PutReferrer has
// entered them.
func (l *layout) Referrers(_ context.Context, subject v1.Descriptor) ([]v1.Descriptor, error) {
	raw, err := readLimited(filepath.Join(l.path, "index.json"))
	if err != nil {
		return nil, fmt.Errorf("location: list what refers to %s of %s: %w", subject.Digest, l, notFound(err))
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("location: read %s: %w: index.json: %w", l, ErrNotImage, err)
	}
	for _, d := range index.Manifests {
		if d.Annotations[refName] != referrersTag(subject) {
			continue
		}
		body, err := l.read(d)
		if err != nil {
			return nil, err
		}
		var list v1.IndexManifest
		if err := json.Unmarshal(body, &list); err != nil {
			return nil, fmt.Errorf("location: read %s: %w: what refers to %s: %w", l, ErrNotImage, subject.Digest, err)
		}
		return list.Manifests, nil
	}
	return nil, nil
}
