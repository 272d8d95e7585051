package site

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/airstream-io/airstream/test/rig/netns"
	"github.com/airstream-io/airstream/test/rig/registry"
	"github.com/airstream-io/airstream/test/rig/tools"
)

// Build builds the airstream binary of this module into the user's cache, as
// it is released: static, without cgo. The go command makes it quick when
// nothing has changed. The working directory must be within the module.
func Build(ctx context.Context) (path string, err error) {
	dir, err := tools.CacheDir("build")
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("site: %w", err)
	}
	unlock, err := tools.Lock(ctx, filepath.Join(dir, ".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	path = filepath.Join(dir, "airstream")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, "github.com/airstream-io/airstream/cmd/airstream")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("site: build airstream: %w\n%s", err, out)
	}
	return path, nil
}

// output runs a program in a namespace, or in the caller's own if ns is nil,
// and returns its standard output.
func output(ctx context.Context, ns *netns.NS, program string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := ns.Run(cmd); err != nil {
		return stdout.String(), fmt.Errorf("site: airstream %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// Convert runs "airstream convert" on shore, beside a registry. Names without
// a scheme ("app:1") are the registry's.
func Convert(ctx context.Context, airstream string, reg *registry.Registry, src, dst string, flags ...string) (string, error) {
	place := func(s string) string {
		if strings.HasPrefix(s, "oci:") || strings.HasPrefix(s, "docker-archive:") {
			return s
		}
		return reg.Host() + "/" + s
	}
	args := append([]string{"convert", "--plain-http", "--no-progress", place(src), place(dst)}, flags...)
	return output(ctx, nil, airstream, args...)
}
