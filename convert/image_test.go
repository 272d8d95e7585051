package convert_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/airstream-io/airstream/convert"
	"github.com/airstream-io/airstream/convert/location"
)

// memory is a place for images that forgets them: Source and Destination.
type memory struct {
	mu    sync.Mutex
	blobs map[v1.Hash][]byte
	root  *v1.Descriptor
	puts  int // blobs that were sent
	opens int // blobs that were read
}

func newMemory() *memory { return &memory{blobs: map[v1.Hash][]byte{}} }

func (m *memory) add(mt types.MediaType, raw []byte) v1.Descriptor {
	h, size, _ := v1.SHA256(bytes.NewReader(raw)) // can't fail in memory
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blobs[h] = raw
	return v1.Descriptor{MediaType: mt, Digest: h, Size: size}
}

func (m *memory) get(h v1.Hash) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.blobs[h]
	if !ok {
		return nil, fmt.Errorf("%s: %w", h, location.ErrNotFound)
	}
	return b, nil
}

func (m *memory) Root(context.Context) (v1.Descriptor, []byte, error) {
	if m.root == nil {
		return v1.Descriptor{}, nil, location.ErrNotFound
	}
	b, err := m.get(m.root.Digest)
	return *m.root, b, err
}

func (m *memory) Manifest(_ context.Context, d v1.Descriptor) ([]byte, error) { return m.get(d.Digest) }

func (m *memory) Blob(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	b, err := m.get(d.Digest)
	m.mu.Lock()
	m.opens++
	m.mu.Unlock()
	return io.NopCloser(bytes.NewReader(b)), err
}

func (m *memory) Check(context.Context) error { return nil }

func (m *memory) HasBlob(_ context.Context, d v1.Descriptor) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.blobs[d.Digest]
	return ok, nil
}

func (m *memory) PutBlob(ctx context.Context, d v1.Descriptor, open func() (io.ReadCloser, error)) error {
	if ok, _ := m.HasBlob(ctx, d); ok {
		return nil
	}
	rc, err := open()
	if err != nil {
		return err
	}
	b, err := io.ReadAll(rc)
	if err != nil {
		return err
	}
	if got := m.add("", b); got.Digest != d.Digest || got.Size != d.Size {
		return fmt.Errorf("put %s: got %s", d.Digest, got.Digest)
	}
	m.mu.Lock()
	m.puts++
	m.mu.Unlock()
	return nil
}

func (m *memory) PutManifest(_ context.Context, d v1.Descriptor, raw []byte) error {
	if got := m.add("", raw); got.Digest != d.Digest || got.Size != d.Size {
		return fmt.Errorf("put %s: got %s", d.Digest, got.Digest)
	}
	return nil
}

func (m *memory) PutReferrer(ctx context.Context, subject, d v1.Descriptor, raw []byte) error {
	if ok, _ := m.HasBlob(ctx, subject); !ok {
		return fmt.Errorf("put referrer %s: its subject %s isn't there", d.Digest, subject.Digest)
	}
	return m.PutManifest(ctx, d, raw)
}

func (m *memory) Commit(ctx context.Context, d v1.Descriptor, raw []byte) error {
	m.root = &d
	return m.PutManifest(ctx, d, raw)
}

// layerTar is a small layer with n files that depend on seed.
func layerTar(t *testing.T, seed uint64, n int) []byte {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 0))
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := range n {
		content := bytes.Repeat(fmt.Appendf(nil, "%d.%d ", seed, i), 1+r.IntN(2000))
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("dir%d/file%d", i%3, i), Mode: 0o644, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func compress(t *testing.T, mt types.MediaType, raw []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	switch mt {
	case types.OCILayerZStd:
		z, err := zstd.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		w = z
	case types.OCIUncompressedLayer, types.DockerUncompressedLayer:
		return raw
	default:
		w = gzip.NewWriter(&b)
	}
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func hashOf(b []byte) v1.Hash {
	h, _, _ := v1.SHA256(bytes.NewReader(b)) // can't fail in memory
	return h
}

// imageSpec is an image to be made.
type imageSpec struct {
	manifestType, configType types.MediaType
	layers                   []types.MediaType
	seed                     uint64
	os, arch                 string
	annotations              map[string]string
}

func addImage(t *testing.T, m *memory, s imageSpec) v1.Descriptor {
	t.Helper()
	var layers []v1.Descriptor
	var diffIDs []v1.Hash
	for i, mt := range s.layers {
		raw := layerTar(t, s.seed+uint64(i), 10)
		diffIDs = append(diffIDs, hashOf(raw))
		d := m.add(mt, compress(t, mt, raw))
		d.MediaType = mt
		d.Annotations = map[string]string{"layer": fmt.Sprint(i)}
		layers = append(layers, d)
	}
	config := fmt.Sprintf(`{"os": %q, "architecture": %q, "x-unknown": {"n": 1.0, "big": 12345678901234567890}, "config": {"Env": ["A=<b>"]},
 "rootfs": {"type": "layers", "diff_ids": %s, "x": null}, "history": [{"created_by": "RUN a && b", "empty_layer": true}]}`, s.os, s.arch, marshal(t, diffIDs))
	configD := m.add(s.configType, []byte(config))
	return m.add(s.manifestType, marshal(t, struct {
		v1.Manifest
		Unknown string `json:"x-unknown"`
	}{v1.Manifest{SchemaVersion: 2, MediaType: s.manifestType, Config: configD, Layers: layers, Annotations: s.annotations}, "kept"}))
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// addIndex makes an index of two platforms, a Windows image, and an
// attestation, with docker's media types as buildx writes them.
func addIndex(t *testing.T, m *memory) {
	t.Helper()
	manifest := func(d v1.Descriptor, p *v1.Platform, a map[string]string) v1.Descriptor {
		d.Platform, d.Annotations = p, a
		return d
	}
	amd := addImage(t, m, imageSpec{types.DockerManifestSchema2, types.DockerConfigJSON, []types.MediaType{types.DockerLayer, types.DockerLayer}, 1, "linux", "amd64", nil})
	arm := addImage(t, m, imageSpec{types.OCIManifestSchema1, types.OCIConfigJSON, []types.MediaType{types.OCILayerZStd, types.OCIUncompressedLayer, types.OCILayer}, 2, "linux", "arm64", map[string]string{"by": "us"}})
	win := addImage(t, m, imageSpec{types.OCIManifestSchema1, types.OCIConfigJSON, []types.MediaType{types.OCILayer}, 9, "windows", "amd64", nil})
	statement := m.add("application/vnd.in-toto+json", []byte(`{"_type":"https://in-toto.io/Statement/v0.1"}`))
	attConfig := m.add(types.OCIConfigJSON, []byte(`{"architecture":"unknown","os":"unknown","rootfs":{"type":"layers","diff_ids":["`+statement.Digest.String()+`"]}}`))
	att := m.add(types.OCIManifestSchema1, marshal(t, v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: attConfig, Layers: []v1.Descriptor{statement}}))
	index := m.add(types.DockerManifestList, marshal(t, v1.IndexManifest{
		SchemaVersion: 2, MediaType: types.DockerManifestList, Annotations: map[string]string{"index": "kept"},
		Manifests: []v1.Descriptor{
			manifest(amd, &v1.Platform{OS: "linux", Architecture: "amd64"}, map[string]string{"m": "1"}),
			manifest(arm, &v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}, nil),
			manifest(win, &v1.Platform{OS: "windows", Architecture: "amd64", OSVersion: "10.0"}, nil),
			manifest(att, &v1.Platform{OS: "unknown", Architecture: "unknown"}, map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": amd.Digest.String()}),
		},
	}))
	m.root = &index
}

func addPlain(t *testing.T, m *memory) {
	t.Helper()
	d := addImage(t, m, imageSpec{types.OCIManifestSchema1, types.OCIConfigJSON, []types.MediaType{types.OCILayer, types.OCILayer}, 5, "linux", "amd64", nil})
	m.root = &d
}

func (m *memory) clone() *memory {
	return &memory{blobs: maps.Clone(m.blobs), root: m.root}
}

func run(t *testing.T, src, dst *memory, o convert.Options) *convert.Result {
	t.Helper()
	o.WorkDir = t.TempDir()
	r, err := convert.Run(t.Context(), src, dst, dst.clone(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
