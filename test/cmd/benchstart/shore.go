package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/trace"
	"github.com/airstream-io/airstream/test/rig/images"
	"github.com/airstream-io/airstream/test/rig/registry"
	"github.com/airstream-io/airstream/test/rig/site"
	"github.com/airstream-io/airstream/test/rig/tools"
)

// Tags of what each contender pulls, of every image.
const (
	plainTag  = "plain"  // as it was built
	tracedTag = "traced" // converted, with a plan of what its start reads
	stargzTag = "stargz" // eStargz, with the files that its start reads first
)

// bench is what measuring takes.
type bench struct {
	shore    *shore
	limit    time.Duration
	patience time.Duration
	words    io.Writer
	dir      string
}

func openBench(ctx context.Context, o options, words io.Writer) (_ *bench, err error) {
	b := &bench{limit: o.limit, patience: o.patience, words: words}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.dir, err = os.MkdirTemp("", "airbench-"); err != nil {
		return nil, err
	}
	built, err := site.Build(ctx)
	if err != nil {
		return nil, err
	}
	// What is measured must stay what it is while others build.
	binary := filepath.Join(b.dir, "airstream")
	program, err := os.ReadFile(built)
	if err == nil {
		err = os.WriteFile(binary, program, 0o755) //nolint:gosec // a program
	}
	if err != nil {
		return nil, err
	}
	cache, err := tools.CacheDir("registry")
	if err != nil {
		return nil, err
	}
	reg, err := registry.Start(ctx, registry.Options{Dir: cache})
	if err != nil {
		return nil, err
	}
	b.shore = &shore{reg: reg, binary: binary, traces: filepath.Join(o.dir, "traces"), words: words, done: map[string]*images.Image{}}
	return b, os.MkdirAll(b.shore.traces, 0o755) //nolint:gosec // no secrets
}

func (b *bench) close() error {
	var errs []error
	if b.shore != nil {
		errs = append(errs, b.shore.reg.Close())
	}
	if b.dir != "" {
		errs = append(errs, os.RemoveAll(b.dir))
	}
	return errors.Join(errs...)
}

// shore is a registry with what is pulled.
type shore struct {
	reg    *registry.Registry
	binary string
	traces string // folder
	words  io.Writer
	done   map[string]*images.Image // by name and tag: what was published by this process
}

// publish builds an image and puts it into the registry, as a tag says.
func (s *shore) publish(ctx context.Context, image, tag string) (*images.Image, error) {
	key := image + ":" + tag
	if img := s.done[key]; img != nil {
		return img, nil
	}
	dir, err := tools.CacheDir("images")
	if err != nil {
		return nil, err
	}
	img, err := (&images.Builder{Dir: dir, Log: s.words}).Build(ctx, image)
	if err != nil {
		return nil, err
	}
	switch tag {
	case plainTag:
		var oci v1.Image
		if oci, err = img.OCI(); err == nil {
			_, err = s.reg.Push(ctx, key, oci)
		}
	case tracedTag:
		var file string
		if file, err = s.trace(ctx, img); err == nil {
			_, err = site.Convert(ctx, s.binary, s.reg, image+":"+plainTag, key, "--trace", file)
		}
	case stargzTag:
		err = s.optimise(ctx, img, key)
	}
	if err == nil {
		s.done[key] = img
	}
	return img, err
}

// trace returns a file with what a start of an image reads. It is recorded once,
// so that all starts that are measured, today and after an interruption, are
// those of one image.
func (s *shore) trace(ctx context.Context, img *images.Image) (string, error) {
	if _, err := s.publish(ctx, img.Name, plainTag); err != nil {
		return "", err
	}
	file := filepath.Join(s.traces, img.Name+"-"+img.Key+".trace")
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	fmt.Fprintf(s.words, "recording a start of %s\n", img.Name) //nolint:errcheck // progress only
	_, err := site.Convert(ctx, s.binary, s.reg, img.Name+":"+plainTag, img.Name+":recorded", "--record", "", "--ready", img.ReadyLine, "--save-trace", file)
	return file, err
}

// optimise publishes what "ctr-remote image optimize" would make of an image and
// its trace: the package that stargz-snapshotter has for that, with its defaults.
func (s *shore) optimise(ctx context.Context, img *images.Image, key string) error {
	file, err := s.trace(ctx, img)
	if err != nil {
		return err
	}
	f, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	tr, err := trace.Decode(bytes.NewReader(f))
	if err != nil {
		return err
	}
	src, err := img.OCI()
	if err != nil {
		return err
	}
	dst, err := optimised(src, tr)
	if err != nil {
		return err
	}
	_, err = s.reg.Push(ctx, key, dst)
	return err
}

func optimised(src v1.Image, tr *trace.Trace) (v1.Image, error) {
	config, err := src.ConfigFile()
	if err != nil {
		return nil, err
	}
	layers, err := src.Layers()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.RootFS.DiffIDs, config.History = nil, nil // Append adds them
	dst, err := mutate.ConfigFile(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), config)
	if err != nil {
		return nil, err
	}
	for i, l := range layers {
		layer, notes, err := optimisedLayer(l, trace.Files(i, len(layers), tr))
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		if dst, err = mutate.Append(dst, mutate.Addendum{Layer: layer, Annotations: notes, MediaType: types.OCILayer}); err != nil {
			return nil, err
		}
	}
	return dst, nil
}

func optimisedLayer(l v1.Layer, files []string) (v1.Layer, map[string]string, error) {
	zipped, err := l.Compressed()
	if err != nil {
		return nil, nil, err
	}
	raw, err := io.ReadAll(zipped)
	if err = errors.Join(err, zipped.Close()); err != nil {
		return nil, nil, err
	}
	var missed []string // of layers that others hide
	blob, err := estargz.Build(io.NewSectionReader(bytes.NewReader(raw), 0, int64(len(raw))),
		estargz.WithPrioritizedFiles(files), estargz.WithAllowPrioritizeNotFound(&missed))
	if err != nil {
		return nil, nil, err
	}
	out, err := io.ReadAll(blob)
	if err = errors.Join(err, blob.Close()); err != nil {
		return nil, nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(out)), nil }, tarball.WithMediaType(types.OCILayer))
	return layer, map[string]string{annotation.TOCDigest: blob.TOCDigest().String()}, err
}

// published opens an image of the registry.
func (s *shore) published(ctx context.Context, image, tag string) (v1.Image, error) {
	ref, err := name.ParseReference(s.reg.Host() + "/" + image + ":" + tag)
	if err != nil {
		return nil, err
	}
	return remote.Image(ref, remote.WithContext(ctx))
}
