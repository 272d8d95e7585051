package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/airstream-io/airstream/internal/bundle"
)

func newBundleExportCommand(std streams) *cobra.Command {
	var dir string
	var f readerFlags
	cmd := &cobra.Command{
		Use:   "export --oci DIR FILE",
		Short: "Write a bundle's images as an OCI image layout, for skopeo and others",
		Long: `Write a bundle's images as an OCI image layout. Images that were converted need a
bundle that was made with --blobs: from files alone, a layer's bytes can't be made again.

Exit codes: 0 done; 1 failed, or the bundle has not all bytes of an image; 2 wrong usage;
3 it breaks off; 5 it is damaged.`,
		Example: `  airstream bundle export --oci layout ship.bundle && skopeo copy --all oci:layout:registry.example/app:1.0 docker://…`,
		Args:    cobra.ExactArgs(1),
	}
	v := newVerb(std, cmd)
	cmd.Flags().StringVar(&dir, "oci", "", "`DIR` of the layout, new or empty")
	f.register(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if dir == "" {
			return exitWith(exitUsage, errors.New("say where to write it with --oci DIR"))
		}
		if list, err := os.ReadDir(dir); err == nil && len(list) > 0 {
			return exitWith(exitUsage, fmt.Errorf("%s is not empty", dir))
		}
		b, err := openBundle(args[0], std.in, &f)
		if err != nil {
			return bundleError(err)
		}
		defer b.Close() //nolint:errcheck // a reader
		if err := exportLayout(b, dir); err != nil {
			return bundleError(err)
		}
		return runtimeError(v.say("%s in %s", count(len(b.contents.Images), "image"), dir))
	}
	return cmd
}

// exportLayout writes what an OCI image layout of the bundle's images has.
func exportLayout(b *bundleFile, dir string) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil { //nolint:gosec // as layouts are
		return err
	}
	err := eachBlob(b, func(d digest.Digest) (string, bool) { return filepath.Join(blobs, d.Encoded()), true }, func(d digest.Digest, body []byte) error {
		return os.WriteFile(filepath.Join(blobs, d.Encoded()), body, 0o644) //nolint:gosec // as layouts are
	})
	if err != nil {
		return err
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for i := range b.contents.Images {
		img := &b.contents.Images[i]
		for _, m := range img.Parts {
			if err := wholeIn(blobs, img.Name, m.Digest); err != nil {
				return err
			}
		}
		d := ocispec.Descriptor{MediaType: img.MediaType, Digest: img.Digest, Size: img.Size}
		if !strings.Contains(img.Name, "@") {
			d.Annotations = map[string]string{ocispec.AnnotationRefName: img.Name, "io.containerd.image.name": img.Name}
		}
		index.Manifests = append(index.Manifests, d)
	}
	text, err := json.Marshal(index)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, ocispec.ImageIndexFile), text, 0o644) //nolint:gosec // as layouts are
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, ocispec.ImageLayoutFile), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644) //nolint:gosec // as layouts are
	}
	return err
}

// wholeIn returns an error unless all that a manifest names is among the blobs.
func wholeIn(blobs, name string, manifest digest.Digest) error {
	body, err := os.ReadFile(filepath.Join(blobs, manifest.Encoded()))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, d := range append(m.Layers, m.Config) {
		if _, err := os.Stat(filepath.Join(blobs, d.Digest.Encoded())); err != nil {
			return exitWith(exitFailure, nextStep(fmt.Errorf("%s: the bundle doesn't hold the bytes of %s", name, d.Digest), "Make it with airstream bundle create --blobs, and without --to-inventory."))
		}
	}
	return nil
}

// eachBlob writes the blobs of a bundle to the files that place says, and hands
// documents on. Each is verified.
func eachBlob(b *bundleFile, place func(digest.Digest) (file string, wanted bool), document func(digest.Digest, []byte) error) (err error) {
	open := map[digest.Digest]*os.File{}
	defer func() {
		for d, f := range open {
			err = errors.Join(err, f.Close())
			if h, herr := fileDigest(f.Name()); err == nil && h != d {
				err = errors.Join(fmt.Errorf("%w: %s is not whole in it", bundle.ErrDamaged, d), herr)
			}
		}
	}()
	for {
		rec, err := b.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		switch rec.Kind {
		case bundle.KindDocument:
			doc, err := bundle.ParseDocument(rec.Payload)
			if err != nil {
				return err
			}
			if err := document(digest.FromBytes(doc.Body), doc.Body); err != nil {
				return err
			}
		case bundle.KindBlob:
			part, err := bundle.ParsePart(rec.Kind, rec.Payload)
			if err != nil {
				return err
			}
			d := bundle.DigestOf(part.Sum)
			file, wanted := place(d)
			if !wanted {
				continue
			}
			if open[d] == nil {
				if open[d], err = os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o644); err != nil { //nolint:gosec // as layouts are
					return err
				}
			}
			if _, err := open[d].WriteAt(part.Data, part.Offset); err != nil {
				return err
			}
			if part.Offset+int64(len(part.Data)) < part.Size {
				continue
			}
			f := open[d]
			delete(open, d)
			h, err := fileDigest(f.Name())
			if err = errors.Join(err, f.Close()); err == nil && h != d {
				err = fmt.Errorf("%w: %s is not whole in it", bundle.ErrDamaged, d)
			}
			if err != nil {
				return err
			}
		case bundle.KindManifest, bundle.KindTable, bundle.KindChunks, bundle.KindDelta:
		}
	}
	if len(b.Damage()) > 0 {
		return fmt.Errorf("%w in %d places", bundle.ErrDamaged, len(b.Damage()))
	}
	return nil
}

func fileDigest(name string) (digest.Digest, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // a reader
	return digest.FromReader(f)
}

func newBundleExtractCommand(std streams) *cobra.Command {
	var dir string
	var f readerFlags
	cmd := &cobra.Command{
		Use:   "extract -C DIR FILE",
		Short: "Write a bundle's plain files",
		Args:  cobra.ExactArgs(1),
	}
	v := newVerb(std, cmd)
	cmd.Flags().StringVarP(&dir, "directory", "C", "", "`DIR` to write them below")
	f.register(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if dir == "" {
			return exitWith(exitUsage, errors.New("say where to write them with -C DIR"))
		}
		b, err := openBundle(args[0], std.in, &f)
		if err != nil {
			return bundleError(err)
		}
		defer b.Close() //nolint:errcheck // a reader
		if err := extractFiles(b, dir); err != nil {
			return bundleError(err)
		}
		return runtimeError(v.say("%s in %s", count(len(b.contents.Files), "file"), dir))
	}
	return cmd
}

// extractFiles writes the plain files below dir, and nowhere else.
func extractFiles(b *bundleFile, dir string) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // the umask says more
		return err
	}
	work, err := os.MkdirTemp(dir, ".airstream-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	wanted := map[digest.Digest]bool{}
	for _, f := range b.contents.Files {
		wanted[f.Digest] = true
	}
	place := func(d digest.Digest) (string, bool) { return filepath.Join(work, d.Encoded()), wanted[d] }
	if err := eachBlob(b, place, func(digest.Digest, []byte) error { return nil }); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	for _, f := range b.contents.Files {
		if err := extractFile(root, filepath.Join(work, f.Digest.Encoded()), &f); err != nil {
			return err
		}
	}
	return nil
}

// extractFile writes one file.
func extractFile(root *os.Root, from string, f *bundle.File) error {
	name := filepath.FromSlash(f.Path)
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close() //nolint:errcheck // a reader
	dst, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, os.FileMode(f.Mode&0o777))
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Sync(), dst.Close())
}

func newBundleImportCommand(std streams) *cobra.Command {
	var f createFlags
	var dir, repo string
	cmd := &cobra.Command{
		Use:   "import --oci DIR -o FILE",
		Short: "Write the images of an OCI image layout into a bundle",
		Long: `Write the images of an OCI image layout, as skopeo makes them, into a bundle. An image
that the layout gives a whole name keeps it; one that has a tag alone is called by it
in --repository.`,
		Example: `  skopeo copy --all docker://registry.example/app:1.0 oci:layout:1.0
  airstream bundle import --oci layout --repository registry.example/app -o app.bundle`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return bundleError(runBundleImport(c.Context(), std, f, dir, repo))
		},
	}
	cmd.Flags().StringVar(&dir, "oci", "", "`DIR` of the layout")
	cmd.Flags().StringVar(&repo, "repository", "", "`HOST/REPOSITORY` of images that have a tag alone")
	f.register(cmd)
	return cmd
}

func runBundleImport(ctx context.Context, std streams, f createFlags, dir, repo string) error {
	if dir == "" {
		return exitWith(exitUsage, errors.New("say which layout with --oci DIR"))
	}
	text, err := os.ReadFile(filepath.Join(dir, ocispec.ImageIndexFile))
	if err != nil {
		return exitWith(exitUsage, fmt.Errorf("%w; %s is no OCI image layout", err, dir))
	}
	var index ocispec.Index
	if err := json.Unmarshal(text, &index); err != nil {
		return exitWith(exitVerify, fmt.Errorf("%s: index.json: %w", dir, err))
	}
	c := creation{std: std, flags: f}
	defer c.close()
	for _, d := range index.Manifests {
		called := d.Annotations[ocispec.AnnotationRefName]
		if full := d.Annotations["io.containerd.image.name"]; full != "" {
			called = full
		}
		if !strings.Contains(called, "/") {
			switch {
			case repo == "":
				return exitWith(exitUsage, fmt.Errorf("%s calls an image %q: say of which repository with --repository registry.example/app", dir, called))
			case called == "":
				called = repo + "@" + d.Digest.String()
			default:
				called = repo + ":" + called
			}
		}
		if err := c.image(ctx, called+"=oci:"+dir+"@"+d.Digest.String()); err != nil {
			return err
		}
	}
	if len(c.order.Images) == 0 {
		return exitWith(exitUsage, fmt.Errorf("%s lists no images", dir))
	}
	return c.run(ctx)
}
