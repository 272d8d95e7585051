package snapshotter

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
)

// layer is a committed snapshot as a mount needs it.
type layer struct {
	id    string // of the MetaStore, a name below <root>/snapshots
	dir   string // below the FUSE mount; empty for a plain layer
	chain string // chain ID, if containerd has told it
}

// parents returns the committed snapshot with this name and all below it, the
// highest first. It needs a transaction.
func parents(ctx context.Context, name string) ([]layer, error) {
	var below []layer
	for name != "" {
		id, info, _, err := storage.GetInfo(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("parent %s: %w", name, err)
		}
		below = append(below, layer{id: id, dir: info.Labels[DirLabel], chain: info.Labels[snapshots.LabelSnapshotRef]})
		name = info.Parent
	}
	return below, nil
}

// Mounts returns the mounts of an active snapshot or a view.
//
// Before a container's first mount on a lazy layer it waits, until ctx ends,
// for the layer's TOC, which says who owns the root directory: the mount would
// wait for it anyway, in a system call that nobody can cancel. containerd
// holds no lock around this call.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	var (
		snap  storage.Snapshot
		info  snapshots.Info
		below []layer
	)
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		if snap, err = storage.GetSnapshot(ctx, key); err != nil {
			return err
		}
		if _, info, _, err = storage.GetInfo(ctx, key); err != nil {
			return err
		}
		below, err = parents(ctx, info.Parent)
		return err
	})
	if err == nil {
		below, err = restack(below, stackOf(info))
	}
	if err != nil {
		return nil, fmt.Errorf("snapshotter: mounts of %s: %w", key, err)
	}
	if snap.Kind == snapshots.KindActive && len(below) > 0 && below[0].dir != "" {
		if err := s.settleOwner(ctx, snap.ID, below[0].dir); err != nil {
			return nil, fmt.Errorf("snapshotter: mounts of %s: %w", key, err)
		}
	}
	return s.mounts(snap.Kind, snap.ID, below), nil
}

// settleOwner gives / of a container that was never mounted the owner that the
// lazy layer below it has. Prepare could not, if the TOC had not crossed.
func (s *Snapshotter) settleOwner(ctx context.Context, id, dir string) error {
	// overlayfs makes a directory in the work directory at the first mount.
	// From then on the owner of / is the container's business.
	if used, err := os.ReadDir(filepath.Join(s.root, "snapshots", id, "work")); err != nil || len(used) > 0 {
		return err
	}
	uid, gid, err := s.layers.Owner(ctx, dir)
	if err != nil {
		return unavailable(fmt.Errorf("owner of layer %s: %w", dir, err))
	}
	return os.Lchown(s.upper(id), int(uid), int(gid))
}

// mounts returns the mounts of snapshot id on top of the layers below.
func (s *Snapshotter) mounts(kind snapshots.Kind, id string, below []layer) []mount.Mount {
	if len(below) == 0 {
		// overlayfs needs at least one lower directory.
		how := "rw"
		if kind == snapshots.KindView {
			how = "ro"
		}
		return bind(s.upper(id), how)
	}
	if kind == snapshots.KindView && len(below) == 1 {
		return bind(s.path(below[0]), "ro")
	}
	var options []string
	if kind == snapshots.KindActive {
		options = append(options,
			"workdir="+filepath.Join(s.root, "snapshots", id, "work"),
			"upperdir="+s.upper(id))
	}
	lower := make([]string, len(below))
	for i, l := range below {
		lower[i] = s.path(l)
	}
	options = append(options, "lowerdir="+strings.Join(lower, ":"))
	return []mount.Mount{{
		Type:    "overlay",
		Source:  "overlay",
		Options: append(options, s.options...),
	}}
}

func bind(source, how string) []mount.Mount {
	return []mount.Mount{{Type: "bind", Source: source, Options: []string{how, "rbind"}}}
}

// path returns where the files of a layer are seen.
func (s *Snapshotter) path(l layer) string {
	if l.dir != "" {
		return filepath.Join(s.tree, l.dir)
	}
	return s.upper(l.id)
}

// upper returns the directory with the files of a plain snapshot.
func (s *Snapshotter) upper(id string) string {
	return filepath.Join(s.root, "snapshots", id, "fs")
}
