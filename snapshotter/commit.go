package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Commit makes an active snapshot a committed one under the given name.
//
// The files are on the disk before the metadata says that the layer is there:
// a layer of zero-length files after a power cut is worth nothing where it
// can't be fetched again. containerd calls this inside a write transaction of
// its own, so nothing is counted here: Usage does that when somebody asks.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	if err := s.commit(ctx, name, key, opts); err != nil {
		return fmt.Errorf("snapshotter: commit %s as %s: %w", key, name, err)
	}
	return nil
}

func (s *Snapshotter) commit(ctx context.Context, name, key string, opts []snapshots.Opt) error {
	var id string
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		var info snapshots.Info
		var err error
		if id, info, _, err = storage.GetInfo(ctx, key); err != nil {
			return err
		}
		if info.Kind != snapshots.KindActive {
			return fmt.Errorf("snapshot is not active: %w", errdefs.ErrFailedPrecondition)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := syncFiles(s.upper(id)); err != nil {
		return err
	}
	opts = append(slices.Clip(opts), func(info *snapshots.Info) error {
		delete(info.Labels, DirLabel)
		delete(info.Labels, StackLabel)
		return nil
	})
	return s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, err := storage.CommitActive(ctx, key, name, snapshots.Usage{}, opts...)
		return err
	})
}

// syncFiles makes the file system that dir is on durable.
func syncFiles(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err = unix.Syncfs(int(f.Fd())); err != nil {
		err = fmt.Errorf("sync file system of %s: %w", dir, err)
	}
	return errors.Join(err, f.Close())
}

// Usage returns what a snapshot takes on disk, without its parents: for a lazy
// one what the node holds of it now.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	usage, err := s.usage(ctx, key)
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("snapshotter: usage of %s: %w", key, err)
	}
	return usage, nil
}

func (s *Snapshotter) usage(ctx context.Context, key string) (usage snapshots.Usage, err error) {
	var (
		id   string
		info snapshots.Info
	)
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		id, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil {
		return usage, err
	}
	dir, lazy := info.Labels[DirLabel]
	switch {
	case lazy:
		usage.Size, usage.Inodes, err = s.layers.Usage(ctx, dir)
		return usage, err
	case info.Kind == snapshots.KindCommitted:
		return s.committedUsage(ctx, id)
	case info.Kind == snapshots.KindActive:
		du, err := fs.DiskUsage(ctx, s.upper(id))
		return snapshots.Usage(du), err
	}
	return usage, nil // a view takes nothing
}

// committedUsage counts a plain layer once and keeps the result beside it,
// because CRI asks for every snapshot every few seconds.
func (s *Snapshotter) committedUsage(ctx context.Context, id string) (usage snapshots.Usage, err error) {
	path := filepath.Join(s.root, "snapshots", id, "usage")
	b, err := os.ReadFile(path)
	if err == nil {
		if n, err := fmt.Sscanf(string(b), "%d %d\n", &usage.Size, &usage.Inodes); err == nil && n == 2 {
			return usage, nil
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return usage, err
	}
	du, err := fs.DiskUsage(ctx, s.upper(id))
	if err != nil {
		return usage, err
	}
	usage = snapshots.Usage(du)
	f, err := os.CreateTemp(filepath.Dir(path), "usage-")
	if err != nil {
		return usage, err
	}
	_, err = fmt.Fprintf(f, "%d %d\n", usage.Size, usage.Inodes)
	err = errors.Join(err, f.Close())
	if err == nil {
		// Not synced: if it is lost or cut short we count again.
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return usage, errors.Join(err, os.Remove(f.Name()))
	}
	return usage, nil
}
