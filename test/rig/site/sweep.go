package site

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/test/rig/netns"
	"github.com/airstream-io/airstream/test/rig/node"
)

// label ends the name of a site's directory.
const label = "site"

// makeDir makes the directory of a new site. Its name says whose it is.
func makeDir() (string, error) {
	name, err := netns.OwnName(label)
	if err != nil {
		return "", fmt.Errorf("site: %w", err)
	}
	dir := filepath.Join(os.TempDir(), name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("site: %w", err)
	}
	return dir, nil
}

// sweep takes away the sites whose owner is dead. Link and node have sweeps of
// their own, but a node's containers lie over the mount of its site's daemon.
func sweep(ctx context.Context) error {
	if err := node.Sweep(ctx); err != nil {
		return err
	}
	entries, err := os.ReadDir(os.TempDir())
	if err != nil {
		return fmt.Errorf("site: sweep: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		owner, ok := netns.OwnerOf(entry.Name())
		if !ok || !strings.HasSuffix(entry.Name(), "."+label) || netns.Alive(owner) {
			continue
		}
		if err := takeAway(filepath.Join(os.TempDir(), entry.Name())); err != nil {
			errs = append(errs, fmt.Errorf("site: sweep: %w", err))
		}
	}
	return errors.Join(errs...)
}

// takeAway removes a site's directory. A daemon that was killed has left its
// file system mounted, perhaps on a disk of its own.
func takeAway(dir string) error {
	root := filepath.Join(dir, "a")
	for _, point := range []string{filepath.Join(root, "tree"), root} {
		if err := unmount(point, unix.MNT_DETACH); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}
