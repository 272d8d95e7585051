package snapshotter

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// StackLabel is the label of an active snapshot or a view that names the directories
// below the FUSE mount that are mounted beneath it, where those aren't the ones of its
// parents: the highest first, with commas between. They are chosen once, so that a
// container finds the same files under the same inode numbers whenever it is started
// again. Only this package sets it, as DirLabel.
const StackLabel = "airstream.io/stack"

// stackOf returns the directories that a snapshot's label names.
func stackOf(info snapshots.Info) []string {
	if v := info.Labels[StackLabel]; v != "" {
		return strings.Split(v, ",")
	}
	return nil
}

// choose decides which directories a new snapshot on top of some layers mounts, and
// returns the layers with those and the label that says so; "": they are the layers'.
func (s *Snapshotter) choose(ctx context.Context, below []layer) (chosen []layer, label string, err error) {
	if len(below) == 0 || below[0].chain == "" {
		return below, "", nil
	}
	dirs := make([]string, 0, len(below))
	for _, l := range below {
		if l.dir == "" {
			return below, "", nil
		}
		dirs = append(dirs, l.dir)
	}
	own, err := s.layers.Stack(ctx, below[0].chain, dirs)
	if err != nil {
		return nil, "", unavailable(err)
	}
	label = strings.Join(own, ",")
	if label == strings.Join(dirs, ",") {
		return below, "", nil
	}
	for _, dir := range own {
		if dir == "" || dir == "." || dir == ".." || strings.ContainsAny(dir, `/:,\`) {
			return nil, "", fmt.Errorf("directory name %q: %w", dir, errdefs.ErrInvalidArgument)
		}
	}
	chosen, err = restack(below, own)
	return chosen, label, err
}

// restack returns layers with other directories; no dirs: with those that they have.
func restack(below []layer, dirs []string) ([]layer, error) {
	if len(dirs) == 0 {
		return below, nil
	}
	if len(dirs) != len(below) {
		return nil, fmt.Errorf("%d directories for %d layers: %w", len(dirs), len(below), errdefs.ErrInternal)
	}
	out := make([]layer, 0, len(below))
	for i, l := range below {
		l.dir = dirs[i]
		out = append(out, l)
	}
	return out, nil
}
