package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
)

// Prepare makes an active snapshot, or, if the label containerd.io/snapshot.ref
// names a layer that the node serves lazily or already has, a committed one.
// In the second case it returns an error that wraps errdefs.ErrAlreadyExists,
// which tells containerd that there is nothing to download, and a Walk with a
// filter on that label and the parent finds the snapshot. It never waits for
// the link.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	labels, err := labelsOf(opts)
	if err != nil {
		return nil, fmt.Errorf("snapshotter: prepare %s: %w", key, err)
	}
	if chainID := labels[snapshots.LabelSnapshotRef]; chainID != "" {
		here, err := s.adopt(ctx, key, parent, chainID, labels)
		if err != nil {
			return nil, fmt.Errorf("snapshotter: prepare layer %s: %w", chainID, err)
		}
		if here {
			return nil, fmt.Errorf("snapshotter: prepare layer %s: %w", chainID, errdefs.ErrAlreadyExists)
		}
	}
	return s.create(ctx, snapshots.KindActive, key, parent, labels)
}

// View makes a snapshot that can only be read.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	labels, err := labelsOf(opts)
	if err != nil {
		return nil, fmt.Errorf("snapshotter: view %s: %w", key, err)
	}
	return s.create(ctx, snapshots.KindView, key, parent, labels)
}

// labelsOf returns the labels that opts set, without the one that is ours.
func labelsOf(opts []snapshots.Opt) (map[string]string, error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return nil, err
		}
	}
	labels := maps.Clone(info.Labels)
	delete(labels, DirLabel)
	delete(labels, StackLabel)
	return labels, nil
}

// adopt returns true if a committed snapshot of the layer on top of parent
// exists, after making one if the layer is lazy.
func (s *Snapshotter) adopt(ctx context.Context, key, parent, chainID string, labels map[string]string) (bool, error) {
	s.adoption.Lock()
	defer s.adoption.Unlock()
	if here, err := s.has(ctx, parent, chainID); here || err != nil {
		return here, err
	}
	dir, reason, ok, err := s.layers.Lazy(ctx, chainID, parent == "")
	if err != nil {
		return false, unavailable(err)
	}
	if !ok {
		s.log.InfoContext(ctx, "layer is not lazy", slog.String("chain", chainID), slog.String("reason", reason))
		return false, nil
	}
	if dir == "" || dir == "." || dir == ".." || strings.ContainsAny(dir, `/:,\`) {
		return false, fmt.Errorf("directory name %q: %w", dir, errdefs.ErrInvalidArgument)
	}
	labels = maps.Clone(labels)
	labels[DirLabel] = dir
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		name, err := freeName(ctx, chainID, parent)
		if err != nil {
			return err
		}
		if _, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, parent, snapshots.WithLabels(labels)); err != nil {
			return err
		}
		_, err = storage.CommitActive(ctx, key, name, snapshots.Usage{}, snapshots.WithLabels(labels))
		return err
	})
	return err == nil, err
}

// has returns true if there is a committed snapshot, lazy or plain, of the
// layer on top of parent. A plain one belongs to another containerd namespace
// then, which has downloaded and checked it: what crossed once does not cross
// again.
func (s *Snapshotter) has(ctx context.Context, parent, chainID string) (bool, error) {
	found := errors.New("found")
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			if info.Kind == snapshots.KindCommitted && info.Parent == parent && info.Labels[snapshots.LabelSnapshotRef] == chainID {
				return found
			}
			return nil
		})
	})
	if errors.Is(err, found) {
		return true, nil
	}
	return false, err
}

// freeName returns a name for the committed snapshot of a layer. It is the
// chain ID, unless that name is taken by a snapshot of the layer with another
// parent: that happens when the layer below is plain, because each namespace
// of containerd has its own snapshot of a plain layer. containerd finds ours
// by label and parent and takes whatever name we give.
func freeName(ctx context.Context, chainID, parent string) (string, error) {
	name := chainID
	for {
		switch _, _, _, err := storage.GetInfo(ctx, name); {
		case errors.Is(err, errdefs.ErrNotFound):
			return name, nil
		case err != nil:
			return "", err
		}
		name += " on " + parent
	}
}

// unavailable makes an error of Layers one that containerd knows.
func unavailable(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || !errors.Is(errdefs.Resolve(err), errdefs.ErrUnknown) {
		return err
	}
	return fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
}

// create makes an active snapshot or a view, and its directories.
func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, labels map[string]string) ([]mount.Mount, error) {
	var below []layer
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		below, err = parents(ctx, parent)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("snapshotter: %s %s on %s: %w", verb(kind), key, parent, err)
	}
	below, stack, err := s.choose(ctx, below)
	if err != nil {
		return nil, fmt.Errorf("snapshotter: %s %s on %s: %w", verb(kind), key, parent, err)
	}
	if stack != "" {
		if labels = maps.Clone(labels); labels == nil {
			labels = map[string]string{}
		}
		labels[StackLabel] = stack
	}
	uid, gid, err := s.rootOwner(ctx, below, labels)
	if err != nil {
		return nil, fmt.Errorf("snapshotter: %s %s on %s: %w", verb(kind), key, parent, err)
	}
	var snap storage.Snapshot
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) (err error) {
		snap, err = storage.CreateSnapshot(ctx, kind, key, parent, snapshots.WithLabels(labels))
		if err != nil {
			return err
		}
		return makeDirs(filepath.Join(s.root, "snapshots", snap.ID), kind, uid, gid)
	})
	if err != nil {
		return nil, fmt.Errorf("snapshotter: %s %s on %s: %w", verb(kind), key, parent, err)
	}
	return s.mounts(kind, snap.ID, below), nil
}

func verb(kind snapshots.Kind) string {
	if kind == snapshots.KindView {
		return "view"
	}
	return "prepare"
}

// makeDirs makes the directories of a snapshot. It runs inside the write
// transaction that made the snapshot's ID, so that Cleanup can't take them for
// leftovers. What is there already is one: its transaction did not end well,
// and the ID was given away again. If ours doesn't either, the next one with
// this ID or Cleanup takes care of them.
func makeDirs(dir string, kind snapshots.Kind, uid, gid int) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, os.ErrExist) {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o700)
	}
	if err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "fs"), 0o755); err != nil {
		return err
	}
	// The mode of fs is the mode of / in the container, whatever the umask.
	if err := os.Chmod(filepath.Join(dir, "fs"), 0o755); err != nil {
		return err
	}
	if kind == snapshots.KindActive {
		if err := os.Mkdir(filepath.Join(dir, "work"), 0o711); err != nil {
			return err
		}
	}
	return os.Lchown(filepath.Join(dir, "fs"), uid, gid)
}

// rootOwner returns who owns / in a new snapshot: root as the labels map it
// into a user namespace, or the owner that the layer below has.
func (s *Snapshotter) rootOwner(ctx context.Context, below []layer, labels map[string]string) (uid, gid int, err error) {
	uid, gid, mapped, err := mappedRoot(labels)
	if err != nil {
		return 0, 0, err
	}
	if len(below) == 0 {
		return uid, gid, nil
	}
	top := below[0]
	switch {
	case mapped && top.dir != "":
		// containerd remaps by copying where a snapshotter doesn't offer to
		// do it; here somebody asked without looking.
		return 0, 0, fmt.Errorf("user namespace mapping of a lazy layer: %w", errdefs.ErrNotImplemented)
	case mapped:
		return uid, gid, nil
	case top.dir == "":
		info, err := os.Stat(s.upper(top.id))
		if err != nil {
			return 0, 0, err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return 0, 0, fmt.Errorf("stat %s: no owner", info.Name())
		}
		return int(st.Uid), int(st.Gid), nil
	}
	// Only what is known now: Prepare must not wait for the TOC. Mounts makes
	// up for it.
	now, cancel := context.WithCancel(ctx)
	cancel()
	if u, g, err := s.layers.Owner(now, top.dir); err == nil {
		uid, gid = int(u), int(g)
	}
	return uid, gid, nil
}
