package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// pauseRef is the image that holds a pod's namespaces open. Nobody serves it:
// it is imported.
const pauseRef = "airstream.invalid/pause:1"

// pausePackage is its program.
const pausePackage = "github.com/airstream-io/airstream/test/rig/node/pause"

// importPause builds the pause image and imports it for CRI.
func (n *Node) importPause(ctx context.Context) error {
	binary, archive := n.path("pause"), n.path("pause.tar")
	if err := buildStatic(ctx, pausePackage, binary); err != nil {
		return err
	}
	img, err := StaticImage(binary, v1.Config{Entrypoint: []string{"/pause"}})
	if err != nil {
		return err
	}
	tag, err := name.NewTag(pauseRef)
	if err != nil {
		return fmt.Errorf("node: pause image: %w", err)
	}
	if err := tarball.WriteToFile(archive, tag, img); err != nil {
		return fmt.Errorf("node: pause image: %w", err)
	}
	// Not unpacked here: CRI does that with the snapshotter it is to use.
	if _, err := n.Ctr(ctx, "--namespace", CRINamespace, "images", "import", "--no-unpack", archive); err != nil {
		return fmt.Errorf("node: pause image: %w", err)
	}
	return n.waitImage(ctx, pauseRef)
}

// buildStatic builds a Go program of this module without cgo.
func buildStatic(ctx context.Context, pkg, path string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("node: build %s: %w\n%s", filepath.Base(pkg), err, out)
	}
	return nil
}
