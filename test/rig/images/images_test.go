package images

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/archive"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/klauspost/compress/gzip"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// odd returns an odd image in a cache of the test's own: these are made in
// seconds, without root and without network.
func odd(t *testing.T, name string) *Image {
	t.Helper()
	img, err := (&Builder{Dir: t.TempDir()}).Build(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func layers(t *testing.T, img v1.Image) []v1.Layer {
	t.Helper()
	list, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// unpack applies the layers one over the other into a folder, with containerd's
// own code: whiteouts have been carried out. See oddAgain for the two things in
// which the result differs from overlayfs. With each entry it calls see.
func unpack(t *testing.T, img v1.Image, see func(*tar.Header)) string {
	t.Helper()
	root := t.TempDir()
	for _, layer := range layers(t, img) {
		filter := archive.WithFilter(func(h *tar.Header) (bool, error) {
			see(h)
			return true, nil
		})
		if _, err := archive.Apply(t.Context(), root, uncompressed(t, layer), filter); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func uncompressed(t *testing.T, layer v1.Layer) io.Reader {
	t.Helper()
	file, err := layer.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	stream, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func TestBothVariantsAreValidAndShareLayers(t *testing.T) {
	img := odd(t, "oddities")
	oci, err := img.OCI()
	if err != nil {
		t.Fatal(err)
	}
	docker, err := img.Docker()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		image                   v1.Image
		manifest, config, layer types.MediaType
	}{
		{oci, types.OCIManifestSchema1, types.OCIConfigJSON, types.OCILayer},
		{docker, types.DockerManifestSchema2, types.DockerConfigJSON, types.DockerLayer},
	} {
		if err := validate.Image(tt.image); err != nil {
			t.Errorf("%s: %v", tt.manifest, err)
		}
		manifest, err := tt.image.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		if manifest.MediaType != tt.manifest || manifest.Config.MediaType != tt.config {
			t.Errorf("media types %s and %s, want %s and %s", manifest.MediaType, manifest.Config.MediaType, tt.manifest, tt.config)
		}
		for _, l := range manifest.Layers {
			if l.MediaType != tt.layer {
				t.Errorf("layer has media type %s, want %s", l.MediaType, tt.layer)
			}
		}
		config, err := tt.image.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if len(config.History) != 3 || config.Architecture != runtime.GOARCH || config.OS != "linux" || !slices.Equal(config.Config.Cmd, img.Args) {
			t.Errorf("config = %+v", config)
		}
	}
	a, b := layers(t, oci), layers(t, docker)
	if len(a) != img.Layers || len(b) != img.Layers {
		t.Fatalf("%d and %d layers, want %d", len(a), len(b), img.Layers)
	}
	for i := range a {
		da, _ := a[i].Digest()
		db, _ := b[i].Digest()
		if da != db {
			t.Errorf("layer %d: %s as OCI, %s as Docker", i, da, db)
		}
	}
}

// The second build comes from the cache, and an image built twice is the same.
func TestBuildIsCachedAndReproducible(t *testing.T) {
	var log strings.Builder
	b := &Builder{Dir: t.TempDir(), Log: &log}
	first, err := b.Build(t.Context(), "odd-duplicates")
	if err != nil {
		t.Fatal(err)
	}
	log.Reset()
	again, err := b.Build(t.Context(), "odd-duplicates")
	if err != nil || *again.key() != *first.key() || log.Len() > 0 {
		t.Errorf("second Build = %+v, %v, said %q; want %+v in silence", again, err, log.String(), first)
	}
	// Its lower layer is shared with the other odd images.
	if _, err := b.Build(t.Context(), "odd-implied"); err != nil || strings.Contains(log.String(), "odd-plain") {
		t.Errorf("Build of another image with the same layer: %v, said %q", err, log.String())
	}
	if digest(t, first) != digest(t, odd(t, "odd-duplicates")) {
		t.Error("two builds differ")
	}
	for _, pattern := range []string{"*.tmp", "steps/*.tmp"} {
		if left, _ := filepath.Glob(filepath.Join(b.Dir, pattern)); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

func (i *Image) key() *[2]string { return &[2]string{i.Dir, i.Key} }

func digest(t *testing.T, img *Image) v1.Hash {
	t.Helper()
	oci, err := img.OCI()
	if err != nil {
		t.Fatal(err)
	}
	d, err := oci.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestStoppedBuildLeavesNothingInTheWay(t *testing.T) {
	b := &Builder{Dir: t.TempDir()}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Build(ctx, "odd-implied"); !errors.Is(err, context.Canceled) {
		t.Errorf("Build = %v, want canceled", err)
	}
	// What a killed build leaves.
	r, err := find("odd-implied")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(b.Dir, "steps", r.stepDir(1)+".tmp", "upper"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Build(t.Context(), "odd-implied"); err != nil {
		t.Errorf("Build after a stopped one: %v", err)
	}
}

func TestUnknownImage(t *testing.T) {
	if _, err := Build(t.Context(), "windows"); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "redis") {
		t.Errorf("Build = %v, want ErrUnknown and the known names", err)
	}
}

// Whatever changes in any step, the image is another one; and a step keeps its
// layer as long as nothing beneath it changes.
func TestKeyCoversEveryStep(t *testing.T) {
	for _, r := range recipes {
		for i := range r.steps {
			changed := r
			changed.steps = slices.Clone(r.steps)
			if s := &changed.steps[i]; s.entries != nil {
				entries := s.entries
				s.entries = func(w *oddTar) error {
					w.file("one-more", "")
					return entries(w)
				}
			} else {
				s.script += " "
			}
			if changed.key() == r.key() {
				t.Errorf("%s: a change of step %s keeps the key", r.name, r.steps[i].name)
			}
			for below := range i {
				if changed.stepDir(below) != r.stepDir(below) {
					t.Errorf("%s: a change of step %s changes %s beneath it", r.name, r.steps[i].name, r.steps[below].name)
				}
			}
		}
	}
}

func TestRecipesAreComplete(t *testing.T) {
	for _, r := range recipes {
		if r.about == "" || r.ready == "" || len(r.run.Cmd) == 0 || len(r.steps) < 2 {
			t.Errorf("%s: incomplete recipe", r.name)
		}
		if first, second := r.key(), r.key(); first != second {
			t.Errorf("%s: key changes: %s, %s", r.name, first, second)
		}
	}
	for _, name := range []string{"redis", "nginx", "python", "node"} {
		r, err := find(name)
		if err != nil {
			t.Fatal(err)
		}
		other, err := find("redis")
		if err != nil {
			t.Fatal(err)
		}
		if r.stepDir(0) != other.stepDir(0) {
			t.Errorf("%s has a base of its own", name)
		}
	}
}

// What a layout's reader sees is one image, for this platform.
func TestLayoutNamesThePlatform(t *testing.T) {
	index, err := layout.ImageIndexFromPath(odd(t, "odd-crosslink").OCIPath())
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 1 || manifest.Manifests[0].Platform == nil || manifest.Manifests[0].Platform.Architecture != runtime.GOARCH {
		t.Errorf("manifests = %+v", manifest.Manifests)
	}
}
