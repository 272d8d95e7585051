package receive_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/convert/location"
	"github.com/airstream-io/airstream/internal/bundle"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
	"github.com/airstream-io/airstream/pack"
	"github.com/airstream-io/airstream/receive"
)

// A crash between what came and the note that it came costs nothing but the note.
func TestACrashBeforeTheNote(t *testing.T) {
	img, _ := versions(t)
	src, is := source(t, img, true)
	raw := write(t, pack.Order{Images: []pack.Image{{Name: name, Source: src}}})
	for _, spoil := range []func(file string) error{os.Remove, func(file string) error { return os.Truncate(file, 1) }, func(file string) error { return os.WriteFile(file, []byte("nonsense"), 0o600) }} {
		for _, file := range []string{"received", "contents.json"} {
			n := newNode(t)
			res := n.apply(t, raw[:len(raw)/2], activate, receive.ErrIncomplete)
			must(t, spoil(filepath.Join(n.dir, "bundles", res.Bundle, file)))
			n.restart(t)
			if n.apply(t, raw, activate, nil); n.means(t, name) != is {
				t.Errorf("%s: it means %s", file, n.means(t, name))
			}
		}
	}
}

// An image for several platforms crosses with its index, and those that are wanted.
func TestPlatforms(t *testing.T) {
	one, two := versions(t)
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for arch, img := range map[string]v1.Image{"amd64": one, "arm64": two} {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	dir := t.TempDir()
	l, err := layout.Write(dir, empty.Index)
	must(t, err)
	must(t, l.AppendIndex(index))
	at, err := location.Parse("oci:"+dir, location.Options{})
	must(t, err)
	src, err := at.OpenSource(t.Context(), location.Options{}, dir)
	must(t, err)
	order := pack.Order{Images: []pack.Image{{Name: name, Source: src.(pack.Source)}}} //nolint:errcheck // a layout is one
	both := write(t, order)
	order.Platforms = []string{"linux/arm64"}
	arm := write(t, order)
	if len(arm) > len(both)*2/3 {
		t.Errorf("%d bytes for one platform, %d for two", len(arm), len(both))
	}
	is, err := index.Digest()
	must(t, err)
	n := newNode(t)
	if n.apply(t, arm, activate, nil); n.means(t, name) != is.String() {
		t.Errorf("it means %s", n.means(t, name))
	}
	images, err := n.catalog.Images()
	must(t, err)
	if len(images) != 1 || images[0].Names[0] != name {
		t.Errorf("%+v", images)
	}
	order.Platforms = []string{"linux/riscv64"}
	order.WorkDir = t.TempDir()
	if _, err := pack.Write(t.Context(), order, &bytes.Buffer{}); err == nil {
		t.Error("a platform that isn't there is packed")
	}
}

// signed is a source that knows of a signature.
type signed struct {
	pack.Source
	d    v1.Descriptor
	body []byte
}

func (s *signed) Referrers(context.Context, v1.Descriptor) ([]v1.Descriptor, error) {
	return []v1.Descriptor{s.d}, nil
}

func (s *signed) Manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	if d.Digest == s.d.Digest {
		return s.body, nil
	}
	return s.Source.Manifest(ctx, d)
}

// Signatures come along, and the node's mirror lists them.
func TestSignaturesComeAlong(t *testing.T) {
	img, _ := versions(t)
	src, is := source(t, img, true)
	sig := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), "application/vnd.example.signature")
	other, _ := source(t, sig, false)
	d, body, err := other.Root(t.Context())
	must(t, err)
	d.ArtifactType = "application/vnd.example.signature"
	s := &signedOver{signed: signed{Source: src, d: d, body: body}, other: other}
	raw := write(t, pack.Order{Images: []pack.Image{{Name: name, Source: s}}, Referrers: true})
	n := newNode(t)
	n.apply(t, raw, activate, nil)
	r, err := n.catalog.Referrers(catalog.Source{Host: "registry.example", Repo: "app"}, digest.Digest(is))
	must(t, err)
	var index v1.IndexManifest
	must(t, json.Unmarshal(r.Index, &index))
	if len(index.Manifests) != 1 || index.Manifests[0].Digest != d.Digest || index.Manifests[0].ArtifactType != d.ArtifactType {
		t.Errorf("%s", r.Index)
	}
	if res := n.apply(t, raw, activate, nil); res.New != 0 {
		t.Errorf("again: %+v", res)
	}
}

// signedOver reads the signature's config where that is.
type signedOver struct {
	signed
	other pack.Source
}

func (s *signedOver) Blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	if rc, err := s.Source.Blob(ctx, d); err == nil {
		return rc, nil
	}
	return s.other.Blob(ctx, d)
}

// What a start reads comes first, in its order: a bundle that breaks off behind it
// has brought it.
func TestWhatAStartReadsComesFirst(t *testing.T) {
	img, _ := versions(t)
	reads := []trace.Read{
		{Path: "usr/lib/file-4", Size: 140_000}, {Path: "usr/lib/file-1", Offset: 65536, Size: 65536}, {Path: "usr/lib/file-2", Size: 140_000},
	}
	src, _ := source(t, img, true, &trace.Trace{Version: trace.Version, Image: name, Layers: 1, Reads: reads})
	raw := write(t, pack.Order{Images: []pack.Image{{Name: name, Source: src}}})
	rd, err := bundle.NewReader(bytes.NewReader(raw))
	must(t, err)
	defer rd.Close()
	c, err := rd.Begin()
	must(t, err)
	end := 0
	for i, e := range c.Records {
		if e.Priority == bundle.PriorityHot {
			end = int(rd.Offset(uint32(i+1)) + e.Len())
		}
	}
	if end == 0 || end > len(raw)*2/3 {
		t.Fatalf("what a start reads ends at byte %d of %d", end, len(raw))
	}
	n := newNode(t)
	n.apply(t, raw[:end], activate, receive.ErrIncomplete)
	images, err := n.catalog.Images()
	must(t, err)
	l, err := n.catalog.Layer(images[0].Layers[0].Slot)
	must(t, err)
	tree, err := n.store.Tree(l.TOC)
	must(t, err)
	for e := range uint32(tree.Len()) {
		first, last := tree.Chunks(e)
		if last-first < 2 {
			continue
		}
		o, err := n.store.Object(tree.ObjectID(e), tree.Attr(e).Size, last-first)
		must(t, err)
		missing := last - first
		for k := first; k < last; k++ {
			if o.Has(k - first) {
				missing--
			}
		}
		must(t, o.Close())
		want := uint32(3)
		switch nameOf(tree, e) {
		case "file-4", "file-2":
			want = 0
		case "file-1":
			want = 2
		}
		if missing != want {
			t.Errorf("%s: %d chunks are missing, want %d", nameOf(tree, e), missing, want)
		}
	}
}

// nameOf returns the name of a file in usr/lib.
func nameOf(t *toc.Tree, entry uint32) string {
	usr, _ := t.Lookup(toc.Root, "usr")
	lib, _ := t.Lookup(usr, "lib")
	for k := range t.NumChildren(lib) {
		if name, e := t.Child(lib, k); e == entry {
			return name
		}
	}
	return ""
}
