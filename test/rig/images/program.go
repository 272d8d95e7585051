package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// installProgram builds a Go program ("module@version") as its authors do for a
// container, static and without debug information, and puts it into /usr/bin of
// the step in dir.
func installProgram(ctx context.Context, dir, program string) error {
	bin := filepath.Join(dir, "upper", "usr", "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	build := filepath.Join(dir, "build")
	if err := os.Mkdir(build, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(build) //nolint:errcheck // what stays is not part of the layer
	cmd := exec.CommandContext(ctx, "go", "install", "-trimpath", "-ldflags=-s -w -buildid=", program)
	cmd.Dir = build
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOWORK=off", "GOFLAGS=", "GOBIN="+build)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go install %s: %w: %s", program, err, out)
	}
	name := programName(program)
	file := filepath.Join(bin, name)
	return errors.Join(
		os.Rename(filepath.Join(build, name), file),
		os.Chmod(file, 0o755), os.Chtimes(file, created, created),
		os.Chtimes(bin, created, created), os.Chtimes(filepath.Dir(bin), created, created))
}

// majorVersion is the end of a module's path that its programs don't have.
var majorVersion = regexp.MustCompile(`/v[0-9]+$`)

func programName(program string) string {
	module, _, _ := strings.Cut(program, "@")
	return path.Base(majorVersion.ReplaceAllString(module, ""))
}
