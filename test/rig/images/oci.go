package images

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// created is the time in every config: an image of the same layers has the same
// digest whenever it was put together.
var created = time.Date(2026, time.January, 2, 3, 4, 5, 0, time.UTC)

// image describes what the recipe makes of the layers.
func (r *recipe) image(dir string, layers []*layerFile) *Image {
	img := &Image{
		Name:      r.name,
		Key:       r.key(),
		Dir:       dir,
		About:     r.about,
		Args:      r.run.Cmd,
		ReadyLine: r.ready,
		Layers:    len(layers),
	}
	for _, l := range layers {
		img.Compressed += l.Size
		img.Uncompressed += l.Uncompressed
	}
	return img
}

// assemble writes both layouts and the description, and then gives the folder
// its name: it is there as a whole or not at all.
func (b *Builder) assemble(r *recipe, layers []*layerFile, img *Image) error {
	tmp := img.Dir + ".tmp"
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return err
	}
	for _, variant := range []struct {
		dir    string
		docker bool
	}{{"oci", false}, {"docker", true}} {
		made, err := r.manifest(layers, variant.docker)
		if err != nil {
			return err
		}
		if err := writeLayout(filepath.Join(tmp, variant.dir), made, layers); err != nil {
			return err
		}
	}
	raw, err := json.MarshalIndent(img, "", "\t")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, "image.json"), raw, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, img.Dir)
}

// manifest makes an image of the layers, in one of both sets of media types.
func (r *recipe) manifest(layers []*layerFile, docker bool) (v1.Image, error) {
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	if docker {
		img = mutate.MediaType(empty.Image, types.DockerManifestSchema2)
		img = mutate.ConfigMediaType(img, types.DockerConfigJSON)
	}
	img, err := mutate.ConfigFile(img, &v1.ConfigFile{
		Architecture: runtime.GOARCH,
		OS:           "linux",
		Created:      v1.Time{Time: created},
		Config:       r.run,
		RootFS:       v1.RootFS{Type: "layers"},
	})
	if err != nil {
		return nil, err
	}
	for i, l := range layers {
		variant := *l
		variant.docker = docker
		layer := &blob{&variant}
		mediaType, err := layer.MediaType()
		if err != nil {
			return nil, err
		}
		img, err = mutate.Append(img, mutate.Addendum{
			Layer:     layer,
			MediaType: mediaType,
			History:   v1.History{Created: v1.Time{Time: created}, CreatedBy: r.steps[i].describe(), Comment: r.steps[i].name},
		})
		if err != nil {
			return nil, err
		}
	}
	if docker {
		return img, nil // schema2 knows no annotations
	}
	annotated, ok := mutate.Annotations(img, map[string]string{
		"org.opencontainers.image.title":       r.name,
		"org.opencontainers.image.description": r.about,
	}).(v1.Image)
	if !ok {
		return nil, fmt.Errorf("annotate: not an image")
	}
	return annotated, nil
}

// writeLayout writes img as the only image of a layout. The layers are the
// files of the steps under another name, so they take no more space.
func writeLayout(dir string, img v1.Image, layers []*layerFile) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	for _, l := range layers {
		if err := os.Link(l.path, filepath.Join(blobs, l.Digest.Hex)); err != nil && !os.IsExist(err) {
			return err
		}
	}
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	return path.AppendImage(img, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}))
}
