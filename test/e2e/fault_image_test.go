package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/airstream-io/airstream/test/rig/checker"
	"github.com/airstream-io/airstream/test/rig/site"
)

// target is an image made for one case: what it holds is in no other, so that
// nothing of it is on a node before.
type target struct {
	name string // of the repository, without a host
	spec checker.Spec
	img  v1.Image // as it is on shore, converted
}

// tag is what a node pulls.
func (tg *target) tag() string { return tg.name + ":lazy" }

// newTarget publishes an image of about size bytes, converted as "lazy" and as
// it was as "plain". The same name and size give the same image.
func newTarget(t *testing.T, id string, size int64) *target {
	t.Helper()
	h := fnv.New64a()
	_, _ = h.Write([]byte(id)) // it never fails
	tg := &target{name: "fault/" + id, spec: checker.Spec{Seed: h.Sum64(), Size: size}}
	shore.mu.Lock()
	defer shore.mu.Unlock()
	start(t)
	plain, err := tg.image(checkerProgram(t))
	must(t, err)
	_, err = shore.reg.Push(t.Context(), tg.name+":plain", plain)
	must(t, err)
	if !shore.converted[tg.name] {
		_, err = site.Convert(t.Context(), shore.binary, shore.reg, tg.name+":plain", tg.tag())
		must(t, err)
		shore.converted[tg.name] = true
	}
	ref, err := name.ParseReference(shore.reg.Host() + "/" + tg.tag())
	must(t, err)
	tg.img, err = remote.Image(ref, remote.WithContext(t.Context()))
	must(t, err)
	return tg
}

// image makes the image: one layer with the checker and what it checks.
func (tg *target) image(program []byte) (v1.Image, error) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	made := map[string]bool{".": true}
	var add func(h tar.Header, content []byte) error
	add = func(h tar.Header, content []byte) error {
		if dir := path.Dir(h.Name); !made[dir] {
			made[dir] = true
			if err := add(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil); err != nil {
				return err
			}
		}
		h.Size, h.ModTime, h.Format = int64(len(content)), time.Unix(1_700_000_000, 0), tar.FormatPAX
		err := w.WriteHeader(&h)
		if err == nil {
			_, err = w.Write(content)
		}
		return err
	}
	// A program of its own: were it the same in all images, a node would have
	// it from the first on.
	own := binary.LittleEndian.AppendUint64(bytes.Clone(program), tg.spec.Seed)
	errs := []error{add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/check", Mode: 0o755}, own)}
	for _, dir := range []string{"dev", "proc", "sys", "etc"} {
		errs = append(errs, add(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil))
	}
	for _, f := range tg.spec.Files() {
		content := make([]byte, f.Size)
		f.Fill(content, 0)
		errs = append(errs, add(tar.Header{Typeflag: tar.TypeReg, Name: f.Path, Mode: 0o644}, content))
	}
	if err := errors.Join(append(errs, w.Close())...); err != nil {
		return nil, fmt.Errorf("image %s: %w", tg.name, err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(archive.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(1))
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.AppendLayers(img, layer); err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	file.Config = v1.Config{Env: []string{"PATH=/bin"}, Entrypoint: []string{"/bin/check"}, Cmd: tg.args()}
	return mutate.ConfigFile(img, file)
}

// args tell the checker what to expect.
func (tg *target) args(more ...string) []string {
	return append([]string{"-seed", strconv.FormatUint(tg.spec.Seed, 10), "-size", strconv.FormatInt(tg.spec.Size, 10)}, more...)
}

// program is the checker, built once.
var program struct {
	once  sync.Once
	bytes []byte
	err   error
}

func checkerProgram(t *testing.T) []byte {
	t.Helper()
	program.once.Do(func() {
		var dir string
		if dir, program.err = os.MkdirTemp("", "airstream-checker-"); program.err != nil { //nolint:usetesting // it is for all tests
			return
		}
		defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
		file := filepath.Join(dir, "check")
		cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w -buildid=", "-o", file,
			"github.com/airstream-io/airstream/test/rig/checker/program")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			program.err = fmt.Errorf("build the checker: %w\n%s", err, out)
			return
		}
		program.bytes, program.err = os.ReadFile(file)
	})
	must(t, program.err)
	return program.bytes
}
