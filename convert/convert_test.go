package convert_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	digest "github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/airstream-io/airstream/convert"
	"github.com/airstream-io/airstream/convert/layer"
	"github.com/airstream-io/airstream/convert/location"
	"github.com/airstream-io/airstream/internal/annotation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func manifestOf(t *testing.T, m *memory, h v1.Hash) (v1.Manifest, v1.ConfigFile) {
	t.Helper()
	var mf v1.Manifest
	var c v1.ConfigFile
	for _, step := range []struct {
		h func() v1.Hash
		v any
	}{{func() v1.Hash { return h }, &mf}, {func() v1.Hash { return mf.Config.Digest }, &c}} {
		raw, err := m.get(step.h())
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(raw, step.v); err != nil {
			t.Fatal(err)
		}
	}
	return mf, c
}

// checkImage checks that an image in m is complete and lazy: every layer is an
// eStargz blob that its annotations describe and the config knows.
func checkImage(t *testing.T, m *memory, h v1.Hash) {
	t.Helper()
	mf, c := manifestOf(t, m, h)
	if mf.MediaType != types.OCIManifestSchema1 || mf.Config.MediaType != types.OCIConfigJSON {
		t.Errorf("media types %s, %s", mf.MediaType, mf.Config.MediaType)
	}
	for i, l := range mf.Layers {
		blob, err := m.get(l.Digest)
		if err != nil {
			t.Fatalf("layer %d: %v", i, err)
		}
		if l.MediaType != types.OCILayer || int64(len(blob)) != l.Size {
			t.Errorf("layer %d: %s, %d bytes; want %d", i, l.MediaType, len(blob), l.Size)
		}
		if l.Annotations["layer"] != "" && l.Annotations["layer"] != string(rune('0'+i)) {
			t.Errorf("layer %d lost its annotation: %v", i, l.Annotations)
		}
		r, err := estargz.Open(io.NewSectionReader(bytes.NewReader(blob), 0, l.Size))
		if err != nil {
			t.Fatalf("layer %d: %v", i, err)
		}
		if _, err := r.VerifyTOC(digest.Digest(l.Annotations[annotation.TOCDigest])); err != nil {
			t.Errorf("layer %d: %v", i, err)
		}
		z, err := gzip.NewReader(bytes.NewReader(blob))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		if got := hashOf(raw); got != c.RootFS.DiffIDs[i] {
			t.Errorf("layer %d has diff ID %s, config says %s", i, got, c.RootFS.DiffIDs[i])
		}
	}
}

func TestIndex(t *testing.T) {
	src, dst := newMemory(), newMemory()
	addIndex(t, src)
	r := run(t, src, dst, convert.Options{})
	raw, err := dst.get(r.New)
	if err != nil {
		t.Fatal(err)
	}
	var old, index v1.IndexManifest
	if err := json.Unmarshal(raw, &index); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(src.blobs[src.root.Digest], &old); err != nil {
		t.Fatal(err)
	}
	if index.MediaType != types.OCIImageIndex || index.Annotations["index"] != "kept" || len(index.Manifests) != 4 {
		t.Errorf("index became %s", raw)
	}
	for i, d := range index.Manifests {
		if diff := cmp.Diff(old.Manifests[i].Platform, d.Platform); diff != "" {
			t.Errorf("platform %d: %s", i, diff)
		}
		if diff := cmp.Diff(old.Manifests[i].Annotations, d.Annotations); diff != "" {
			t.Errorf("annotations %d: %s", i, diff)
		}
		if b, err := dst.get(d.Digest); err != nil || int64(len(b)) != d.Size {
			t.Errorf("manifest %d: %d bytes, %v; want %d", i, len(b), err, d.Size)
		}
		if i < 2 {
			checkImage(t, dst, d.Digest)
			continue
		}
		if d.Digest != old.Manifests[i].Digest || !r.Manifests[i].Unchanged {
			t.Errorf("manifest %d changed", i)
		}
		mf, _ := manifestOf(t, dst, d.Digest)
		for _, l := range mf.Layers {
			if _, err := dst.get(l.Digest); err != nil {
				t.Errorf("manifest %d: %v", i, err)
			}
		}
	}
	armRaw := dst.blobs[index.Manifests[1].Digest]
	if !bytes.Contains(armRaw, []byte(`"annotations":{"by":"us",`)) || !bytes.Contains(armRaw, []byte(`"x-unknown":"kept"`)) {
		t.Errorf("manifest lost something: %s", armRaw)
	}
	mf, _ := manifestOf(t, dst, index.Manifests[1].Digest)
	config := string(dst.blobs[mf.Config.Digest])
	for _, part := range []string{`{"n": 1.0, "big": 12345678901234567890}`, `["A=<b>"]`, `[{"created_by": "RUN a && b", "empty_layer": true}]`, `"x":null`} {
		if !strings.Contains(config, part) {
			t.Errorf("config lost %s: %s", part, config)
		}
	}
	// amd64's second layer is arm64's first one in another compression.
	if a, b := r.Manifests[0].Layers[1], r.Manifests[1].Layers[0]; a.New != b.New || a.Old == b.Old {
		t.Errorf("equal tars became %s and %s", a.New, b.New)
	}
}

func TestPlatform(t *testing.T) {
	src := newMemory()
	addIndex(t, src)
	arm := v1.Platform{OS: "linux", Architecture: "arm64"}
	amd := v1.Platform{OS: "linux", Architecture: "amd64"}
	r := run(t, src, newMemory(), convert.Options{Platforms: []v1.Platform{arm}})
	if r.MediaType != string(types.OCIManifestSchema1) || len(r.Manifests) != 1 || r.Manifests[0].Platform != "linux/arm64" {
		t.Errorf("got %+v", r)
	}
	r = run(t, src, newMemory(), convert.Options{Platforms: []v1.Platform{arm, amd}})
	if r.MediaType != string(types.OCIImageIndex) || len(r.Manifests) != 2 {
		t.Errorf("got %+v", r)
	}
	other := convert.Options{Platforms: []v1.Platform{{OS: "linux", Architecture: "s390x"}}}
	if _, err := convert.Run(t.Context(), src, newMemory(), nil, other); !errors.Is(err, location.ErrNotFound) || !strings.Contains(err.Error(), "linux/arm64") {
		t.Errorf("got %v, want ErrNotFound that names the platforms there are", err)
	}
	plain := newMemory()
	addPlain(t, plain)
	if _, err := convert.Run(t.Context(), plain, newMemory(), nil, other); !errors.Is(err, location.ErrNotFound) || !strings.Contains(err.Error(), "linux/amd64") {
		t.Errorf("got %v, want ErrNotFound that names the platform", err)
	}
}

func TestSameDigestsAgain(t *testing.T) {
	src := newMemory()
	addIndex(t, src)
	want := run(t, src, newMemory(), convert.Options{Jobs: 1})
	if got := run(t, src, newMemory(), convert.Options{Jobs: 8}); got.New != want.New {
		t.Errorf("second conversion gave %s, first %s", got.New, want.New)
	}
}

func TestConvertedLayersAreNotBuiltAgain(t *testing.T) {
	src := newMemory()
	addIndex(t, src)
	how := func(r *convert.Result) string {
		var s []string
		for _, m := range r.Manifests {
			for _, l := range m.Layers {
				s = append(s, l.How)
			}
		}
		return strings.Join(s, " ")
	}
	records := t.TempDir()
	dst := newMemory()
	first := run(t, src, dst, convert.Options{Records: records})
	if how(first) != "built built built built built" {
		t.Errorf("first: %s", how(first))
	}
	for name, o := range map[string]convert.Options{"records": {Records: records}, "destination": {}} {
		dst.puts = 0
		if r := run(t, src, dst, o); how(r) != "known known known known known" || r.New != first.New || dst.puts != 0 {
			t.Errorf("%s: %s, %s; want %s; %d blobs sent", name, how(r), r.New, first.New, dst.puts)
		}
	}
	if r := run(t, src, dst, convert.Options{Records: records, Rebuild: true}); how(r) != how(first) || r.New != first.New {
		t.Errorf("rebuild: %s, %s; want %s", how(r), r.New, first.New)
	}
	if r := run(t, src, dst, convert.Options{Layer: layer.Options{ChunkSize: 8192}, Records: records}); how(r) != how(first) || r.New == first.New {
		t.Errorf("other chunk size: %s, %s", how(r), r.New)
	}
	// A record of a blob that isn't at this destination is of no use.
	if r := run(t, src, newMemory(), convert.Options{Records: records}); how(r) != how(first) || r.New != first.New {
		t.Errorf("new destination: %s, %s; want %s", how(r), r.New, first.New)
	}
	// What was converted is left alone.
	if r := run(t, dst.clone(), newMemory(), convert.Options{Layer: layer.Options{ChunkSize: 8192}}); how(r) != "kept kept kept kept kept" || r.New != r.Old {
		t.Errorf("converted twice: %s, %s; want %s", how(r), r.New, r.Old)
	}
}

func TestRefused(t *testing.T) {
	broken := func(change func(m *memory, mf *v1.Manifest)) func(*memory) {
		return func(m *memory) {
			mf, _ := manifestOf(t, m, m.root.Digest)
			change(m, &mf)
			d := m.add(types.OCIManifestSchema1, marshal(t, mf))
			m.root = &d
		}
	}
	for name, test := range map[string]struct {
		change func(m *memory)
		want   error
		say    string
	}{
		"flipped bit": {func(m *memory) {
			mf, _ := manifestOf(t, m, m.root.Digest)
			b := bytes.Clone(m.blobs[mf.Layers[1].Digest])
			b[len(b)/2] ^= 1
			m.blobs[mf.Layers[1].Digest] = b
		}, convert.ErrVerify, "have the digest"},
		"truncated": {func(m *memory) {
			mf, _ := manifestOf(t, m, m.root.Digest)
			b := m.blobs[mf.Layers[1].Digest]
			m.blobs[mf.Layers[1].Digest] = b[:len(b)/2]
		}, convert.ErrVerify, "it ends after"},
		"longer": {func(m *memory) {
			mf, _ := manifestOf(t, m, m.root.Digest)
			m.blobs[mf.Layers[1].Digest] = append(bytes.Clone(m.blobs[mf.Layers[1].Digest]), 0)
		}, convert.ErrVerify, "more than"},
		"missing": {func(m *memory) {
			mf, _ := manifestOf(t, m, m.root.Digest)
			delete(m.blobs, mf.Layers[1].Digest)
		}, convert.ErrIncomplete, ""},
		"honest garbage": {broken(func(m *memory, mf *v1.Manifest) {
			mf.Layers[0] = m.add(types.OCILayer, []byte(strings.Repeat("not a tar ", 100)))
		}), convert.ErrVerify, "unpacks to"},
		"gzip that breaks": {broken(func(m *memory, mf *v1.Manifest) {
			b := bytes.Clone(m.blobs[mf.Layers[0].Digest])
			b[len(b)/2] ^= 0xff
			mf.Layers[0] = m.add(types.OCILayer, b)
		}), layer.ErrInvalid, ""},
		"other diff ID": {broken(func(_ *memory, mf *v1.Manifest) {
			mf.Layers[0], mf.Layers[1] = mf.Layers[1], mf.Layers[0]
		}), convert.ErrVerify, "the config says"},
		"layer too many": {broken(func(_ *memory, mf *v1.Manifest) {
			mf.Layers = append(mf.Layers, mf.Layers[0])
		}), location.ErrNotImage, "knows 2 layers"},
		"encrypted": {broken(func(_ *memory, mf *v1.Manifest) {
			mf.Layers[1].MediaType += "+encrypted"
		}), convert.ErrUnsupported, "layer 2 of 2"},
		"unknown type": {broken(func(_ *memory, mf *v1.Manifest) {
			mf.Layers[1].MediaType = "application/wasm"
		}), convert.ErrUnsupported, "application/wasm"},
		"foreign": {broken(func(_ *memory, mf *v1.Manifest) {
			mf.Layers[1].MediaType = types.DockerForeignLayer
		}), convert.ErrUnsupported, "may not be distributed"},
		"artifact": {broken(func(_ *memory, mf *v1.Manifest) {
			mf.Config.MediaType = "application/vnd.cncf.helm.config.v1+json"
		}), location.ErrNotImage, "helm"},
		"schema 1": {func(m *memory) {
			d := m.add(types.DockerManifestSchema1, []byte(`{"schemaVersion":1,"fsLayers":[]}`))
			m.root = &d
		}, convert.ErrUnsupported, "schema 1"},
		"not JSON": {func(m *memory) {
			d := m.add(types.OCIManifestSchema1, []byte(`<html>`))
			m.root = &d
		}, location.ErrNotImage, ""},
		"nothing": {func(m *memory) { m.root = nil }, location.ErrNotFound, ""},
	} {
		t.Run(name, func(t *testing.T) {
			src, dst, work := newMemory(), newMemory(), t.TempDir()
			addPlain(t, src)
			test.change(src)
			_, err := convert.Run(t.Context(), src, dst, nil, convert.Options{WorkDir: work})
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.say) {
				t.Errorf("got %v, want %v that says %q", err, test.want, test.say)
			}
			if dst.root != nil {
				t.Error("the destination got a name")
			}
			if left, err := os.ReadDir(work); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// flaky breaks the connection on the first read of each blob.
type flaky struct {
	*memory
	broken map[v1.Hash]bool
}

func (f *flaky) Blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	rc, err := f.memory.Blob(ctx, d)
	if f.broken[d.Digest] || d.MediaType.IsConfig() {
		return rc, err
	}
	f.broken[d.Digest] = true
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(rc, 1000), failing{}), rc}, err
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, location.ErrUnreachable }

func TestConnectionBreaks(t *testing.T) {
	src, dst := newMemory(), newMemory()
	addPlain(t, src)
	r, err := convert.Run(t.Context(), &flaky{src, map[v1.Hash]bool{}}, dst, nil, convert.Options{WorkDir: t.TempDir(), Jobs: 1})
	if err != nil {
		t.Fatal(err)
	}
	checkImage(t, dst, r.New)
}

func TestInterrupted(t *testing.T) {
	src, dst, work := newMemory(), newMemory(), t.TempDir()
	addIndex(t, src)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := convert.Run(ctx, src, dst, nil, convert.Options{WorkDir: work, Progress: onPhase(func(name string) {
		if name == "convert" {
			cancel()
		}
	})})
	if !errors.Is(err, context.Canceled) || dst.root != nil {
		t.Errorf("got %v, root %v", err, dst.root)
	}
	if left, err := os.ReadDir(work); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

type onPhase func(name string)

func (f onPhase) Layer(v1.Hash, int64) convert.Task { return f }
func (f onPhase) Phase(name string, _ int64)        { f(name) }
func (f onPhase) Advance(int64)                     {}
func (f onPhase) Done(string)                       {}
