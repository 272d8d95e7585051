// Package images builds the container images that tests, demo and benchmarks
// run: real ones, made of Debian packages and npm packages, because nothing
// else has their shapes and sizes, and odd ones, made of tar entries that a
// program could get wrong.
//
// A recipe is a list of steps, a step makes a layer. A step of a real image
// runs in an overlay over the layers beneath it, in mount, process and network
// namespaces of its own that take every mount and process along when the step
// ends; the upper directory that remains becomes the layer, so whiteouts and
// opaque directories are those that the kernel wrote. Packages are downloaded
// by the apt and npm of the machine, as it has them configured; what runs in
// the overlay has no network.
//
// Everything is kept in a cache folder and found again by a key over the
// recipe's own inputs:
//
//	steps/<step>-<key>/layer.tar.gz   the layer, gzip
//	                   layer.json     its digests and sizes
//	                   upper/         the same, unpacked, with overlayfs's own whiteouts
//	<image>-<key>/oci                 OCI layout, OCI media types
//	              docker              OCI layout, Docker schema2 media types
//	              image.json          the Image
//	debian/                           apt's lists and downloaded packages
//
// The key covers what is written in the recipe, not what Debian has published
// since: a cached image stays as it is until its folder is removed. Two builds
// of one key at different times are alike but not equal to the byte.
package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/airstream-io/airstream/test/rig/tools"
)

// ErrUnknown reports a name for which there is no recipe.
var ErrUnknown = errors.New("unknown image")

// Image is a built image: two layouts on disk, and what to expect of it.
type Image struct {
	Name         string
	Key          string        // says which inputs it was built from
	Dir          string        // folder that holds both layouts; absolute
	About        string        // what is in it, for people
	Args         []string      // what its config runs
	ReadyLine    string        // regular expression; matches a line of stdout or stderr once it serves
	Layers       int           // at least 1
	Compressed   int64         // bytes, sum of the layers as they cross the link
	Uncompressed int64         // bytes, sum of the layers' tar streams
	Took         time.Duration // what it took to build; kept when it comes from the cache
}

// OCIPath returns the folder of the layout with OCI media types. It has exactly
// one manifest.
func (i *Image) OCIPath() string { return filepath.Join(i.Dir, "oci") }

// DockerPath returns the folder of the layout with Docker schema2 media types.
// It has exactly one manifest, over the same layers.
func (i *Image) DockerPath() string { return filepath.Join(i.Dir, "docker") }

// OCI opens the variant with OCI media types.
func (i *Image) OCI() (v1.Image, error) { return open(i.OCIPath()) }

// Docker opens the variant with Docker schema2 media types.
func (i *Image) Docker() (v1.Image, error) { return open(i.DockerPath()) }

// Ready returns ReadyLine compiled.
func (i *Image) Ready() *regexp.Regexp { return regexp.MustCompile(i.ReadyLine) }

func open(dir string) (v1.Image, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("images: open %s: %w", dir, err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("images: open %s: %w", dir, err)
	}
	if n := len(manifest.Manifests); n != 1 {
		return nil, fmt.Errorf("images: open %s: %d manifests, want 1", dir, n)
	}
	img, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		return nil, fmt.Errorf("images: open %s: %w", dir, err)
	}
	return img, nil
}

// Names returns the images that tests need, real ones first. Others can be built
// by name; see Workloads.
func Names() []string {
	var names []string
	for _, r := range recipes {
		names = append(names, r.name)
	}
	return names
}

// Build returns the named image, from the default cache folder if it is there.
// See Builder.
func Build(ctx context.Context, name string) (*Image, error) {
	dir, err := tools.CacheDir("images")
	if err != nil {
		return nil, err
	}
	return (&Builder{Dir: dir}).Build(ctx, name)
}

// Needs returns what tools.Check must find before the named image can be built.
// An image that is in the cache needs nothing.
func Needs(name string) []string {
	r, err := find(name)
	switch {
	case err != nil || !r.real():
		return nil
	case slices.ContainsFunc(r.steps, func(s step) bool { return s.npm != "" }):
		return []string{tools.Root, tools.Overlay, tools.NetNS, "mount", "debootstrap", "npm"}
	default:
		return []string{tools.Root, tools.Overlay, tools.NetNS, "mount", "debootstrap"}
	}
}

// Builder builds images in a cache folder. Several processes may share one: a
// lock lets them build one after another.
type Builder struct {
	Dir string    // cache folder, made if need be
	Log io.Writer // a line for each step that takes time; nil for none
}

// Build returns the named image, and builds what the cache doesn't have of it.
// Stopped half way it leaves no mount and no process, and the steps that were
// complete; the rest is cleared away by the next build.
func (b *Builder) Build(ctx context.Context, name string) (*Image, error) {
	r, err := find(name)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(b.Dir, name+"-"+r.key())
	if img, err := load(dir); err == nil {
		return img, nil
	}
	if needs := Needs(name); len(needs) > 0 {
		if gaps := tools.Check(ctx, needs...); len(gaps) > 0 {
			return nil, fmt.Errorf("images: build %s: %w", name, gaps[0])
		}
	}
	if err := os.MkdirAll(filepath.Join(b.Dir, "steps"), 0o755); err != nil {
		return nil, fmt.Errorf("images: make cache folder: %w", err)
	}
	unlock, err := tools.Lock(ctx, filepath.Join(b.Dir, ".lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if img, err := load(dir); err == nil { // another process built it meanwhile
		return img, nil
	}
	if err := b.sweep(); err != nil {
		return nil, err
	}

	begin := time.Now()
	var layers []*layerFile
	for i := range r.steps {
		layer, err := b.layer(ctx, r, i)
		if err != nil {
			return nil, fmt.Errorf("images: build %s: layer %s: %w", name, r.steps[i].name, err)
		}
		layers = append(layers, layer)
	}
	img := r.image(dir, layers)
	img.Took = time.Since(begin).Round(time.Millisecond)
	if err := b.assemble(r, layers, img); err != nil {
		return nil, fmt.Errorf("images: build %s: %w", name, err)
	}
	b.logf("images: %s: built in %.1f s", name, img.Took.Seconds())
	return img, nil
}

// sweep removes what a stopped build left. The caller has the lock, so no other
// build can be at work in these folders; mounts went with the namespaces.
func (b *Builder) sweep() error {
	for _, pattern := range []string{"*.tmp", "steps/*.tmp"} {
		stale, err := filepath.Glob(filepath.Join(b.Dir, pattern))
		if err != nil {
			return err
		}
		for _, dir := range stale {
			if err := os.RemoveAll(dir); err != nil {
				return fmt.Errorf("images: clear %s: %w", dir, err)
			}
		}
	}
	return nil
}

func (b *Builder) logf(format string, args ...any) {
	if b.Log != nil {
		_, _ = fmt.Fprintf(b.Log, format+"\n", args...) // nobody to tell
	}
}

// load reads an image that was built before.
func load(dir string) (*Image, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "image.json"))
	if err != nil {
		return nil, err
	}
	var img Image
	if err := json.Unmarshal(raw, &img); err != nil {
		return nil, fmt.Errorf("images: read %s: %w", dir, err)
	}
	img.Dir = dir
	return &img, nil
}

func find(name string) (*recipe, error) {
	for _, list := range [][]recipe{recipes, workloadRecipes} {
		if i := slices.IndexFunc(list, func(r recipe) bool { return r.name == name }); i >= 0 {
			return &list[i], nil
		}
	}
	return nil, fmt.Errorf("images: %w: %q (known: %s)", ErrUnknown, name, strings.Join(Names(), ", "))
}

// About says what is in the named image.
func About(name string) (string, error) {
	r, err := find(name)
	if err != nil {
		return "", err
	}
	return r.about, nil
}
