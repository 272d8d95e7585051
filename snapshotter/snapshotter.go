// Package snapshotter is containerd's view of the node: it implements
// containerd's Snapshotter over layers of two kinds.
//
// A lazy layer has no files of its own here. Its tree is served by the one
// FUSE mount of the node, in a directory per layer, and its content comes when
// somebody reads it. Prepare of such a layer does what containerd expects of a
// remote snapshotter: it commits the snapshot itself, under the chain ID that
// the label containerd.io/snapshot.ref carries, and returns ErrAlreadyExists,
// so that containerd downloads nothing.
//
// A plain layer was downloaded and unpacked by containerd into a directory of
// ours, as with overlayfs, because the node could not serve it lazily. That is
// logged, since on a thin link it is the difference between seconds and hours.
//
// Containers get an overlay mount whose lower directories are any mix of both.
//
// Nothing in this package waits for the link, with one exception that says so
// (Mounts, on the owner of a layer's root directory): containerd holds locks
// of its own around Prepare, Commit and Remove, and one call that hangs there
// stops every other container of the node. If a layer's table of contents has
// not crossed yet, the FUSE tree waits, and only for whoever looks into it.
//
// # On disk
//
//	<root>/metadata.db         containerd's snapshot MetaStore (bbolt)
//	<root>/snapshots/<id>/fs   files of a plain layer, or a container's writes
//	<root>/snapshots/<id>/work overlayfs' work directory, active snapshots only
//	<root>/snapshots/<id>/usage disk usage of a committed plain layer, a cache:
//	                           "<bytes> <inodes>\n"
//
// A lazy snapshot has no directory; the label airstream.io/dir names the one
// below the FUSE mount. A removed snapshot's directory stays until Cleanup.
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
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// DirLabel is the label of a lazy snapshot that names its directory below the
// FUSE mount. Only this package sets it: what a client sends under this name
// is dropped.
const DirLabel = "airstream.io/dir"

// lockWait is how long Open waits for another process to let go of the
// metadata database before it reports it. A guess: a daemon that is being
// stopped closes it within a second.
const lockWait = 2 * time.Second

// Layers says what the node knows of layers before containerd asks for them.
// All methods may be called concurrently, except where a method says
// otherwise, and none of them may touch the network.
type Layers interface {
	// Lazy returns the directory name, below the FUSE mount, under which the
	// layer with this chain ID is, or will be as soon as its TOC has crossed,
	// served. With base it is the image's lowest layer. The name must stay
	// the same for as long as a snapshot uses it, over restarts too.
	//
	// With ok false the layer must be downloaded as a whole, and reason says
	// why in a few words for the log. An error fails the Prepare: it is the
	// way to refuse such a download. What is not one of errdefs' errors
	// reaches the client as ErrUnavailable.
	//
	// Lazy and Release are never called at the same time.
	Lazy(ctx context.Context, chainID string, base bool) (dir, reason string, ok bool, err error)

	// Stack returns the directories that a container mounts whose layers are all
	// lazy and in dirs, the highest first; chainID is the highest one's. As many
	// are returned, and the answer is kept for as long as the container.
	Stack(ctx context.Context, chainID string, dirs []string) ([]string, error)

	// Owner returns the owner of the layer's root directory. It returns at
	// once if the layer's TOC is on the node, whatever the state of ctx;
	// otherwise it waits for the TOC until ctx ends, and returns ctx's error.
	Owner(ctx context.Context, dir string) (uid, gid uint32, err error)

	// Usage returns what the layer's content and metadata take on the disk of
	// this node, in bytes and files. It is asked often and must be cheap.
	Usage(ctx context.Context, dir string) (bytes, inodes int64, err error)

	// Release tells that the last snapshot with this directory is gone. It is
	// a hint and may be lost in a crash; Dirs is the truth.
	Release(ctx context.Context, dir string)
}

// Options change how a Snapshotter works. The zero value is ready for use.
type Options struct {
	// Logger gets one line for each layer that is not lazy. Default: discard.
	Logger *slog.Logger
}

// Snapshotter implements containerd's snapshots.Snapshotter and
// snapshots.Cleaner. Make one with Open. It is safe for concurrent use.
type Snapshotter struct {
	root    string // absolute
	tree    string // absolute; where the FUSE tree is mounted
	layers  Layers
	ms      *storage.MetaStore
	log     *slog.Logger
	options []string // overlay mount options that don't depend on the snapshot

	// adoption makes "Lazy, then create" and "remove, then Release" atomic
	// against each other: a layer must not be released when a new snapshot
	// of it has just been made. Never held across anything slow.
	adoption sync.Mutex
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// Open opens the snapshotter whose state is below root, which is created if
// needed. tree is where the FUSE tree with the lazy layers is, or will be,
// mounted. Keep both short and below one common directory: their names are
// repeated for each layer in a mount's options, which have one page, 4 KiB,
// and containerd shortens only what they have in common.
//
// One process at a time can have root open; another one gets an error that
// wraps errdefs.ErrUnavailable.
func Open(ctx context.Context, root, tree string, layers Layers, opts Options) (*Snapshotter, error) {
	s := &Snapshotter{layers: layers, log: opts.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if s.root, err = mountable(root); err != nil {
		return nil, err
	}
	if s.tree, err = mountable(tree); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(s.root, "snapshots"), 0o700); err != nil {
		return nil, fmt.Errorf("snapshotter: create state directory: %w", err)
	}
	if ok, err := fs.SupportsDType(s.root); err != nil {
		return nil, fmt.Errorf("snapshotter: check file system of %s: %w", s.root, err)
	} else if !ok {
		return nil, fmt.Errorf("snapshotter: the file system of %s has no d_type, which overlayfs needs (XFS: make it with ftype=1)", s.root)
	}
	// With index=on a lower directory could not be shared by two mounts with
	// different upper ones after a copy or a restore of the state.
	if _, err := os.Stat("/sys/module/overlay/parameters/index"); err == nil {
		s.options = append(s.options, "index=off")
	}
	s.ms, err = storage.NewMetaStore(filepath.Join(s.root, "metadata.db"), func(o *bbolt.Options) error {
		o.Timeout = lockWait
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("snapshotter: open metadata: %w", err)
	}
	if err := s.initialise(ctx); err != nil {
		return nil, errors.Join(err, s.ms.Close())
	}
	return s, nil
}

// mountable returns the absolute form of a path that can be part of overlayfs'
// mount options, where some characters separate.
func mountable(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("snapshotter: %w", err)
	}
	if strings.ContainsAny(path, `:,\`) {
		return "", fmt.Errorf("snapshotter: path %q: overlayfs can't have a colon, comma or backslash in it", path)
	}
	return path, nil
}

// initialise opens the database and makes its buckets, without which walking
// an empty store is an error.
func (s *Snapshotter) initialise(ctx context.Context) error {
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		_, err := storage.IDMap(ctx)
		return err
	})
	switch {
	case errors.Is(err, errdefs.ErrNotFound):
		err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
			const key = "airstream-init"
			if _, err := storage.CreateSnapshot(ctx, snapshots.KindView, key, ""); err != nil {
				return err
			}
			_, _, err := storage.Remove(ctx, key)
			return err
		})
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("snapshotter: open %s: in use by another process: %w: %w", s.root, errdefs.ErrUnavailable, err)
	}
	if err != nil {
		return fmt.Errorf("snapshotter: open metadata in %s: %w", s.root, err)
	}
	return nil
}

// Stat returns the info of the snapshot with this key or name.
func (s *Snapshotter) Stat(ctx context.Context, key string) (info snapshots.Info, err error) {
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		_, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil {
		return snapshots.Info{}, fmt.Errorf("snapshotter: stat %s: %w", key, err)
	}
	return info, nil
}

// Update changes the labels of a snapshot. The directory of a lazy snapshot
// can't be changed: containerd replaces all labels with those that it knows of.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (updated snapshots.Info, err error) {
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, old, _, err := storage.GetInfo(ctx, info.Name)
		if err != nil {
			return err
		}
		info.Labels = maps.Clone(info.Labels)
		for _, label := range []string{DirLabel, StackLabel} {
			delete(info.Labels, label)
			if v, ours := old.Labels[label]; ours {
				if info.Labels == nil {
					info.Labels = make(map[string]string)
				}
				info.Labels[label] = v
			}
		}
		updated, err = storage.UpdateInfo(ctx, info, fieldpaths...)
		return err
	})
	if err != nil {
		return snapshots.Info{}, fmt.Errorf("snapshotter: update %s: %w", info.Name, err)
	}
	return updated, nil
}

// Walk calls fn for each snapshot that the filters match, all if there are
// none. fn runs inside a read transaction: it may read, but not change.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, fn, filters...)
	})
	if err != nil {
		return fmt.Errorf("snapshotter: walk: %w", err)
	}
	return nil
}

// Dirs returns the directories below the FUSE mount that some snapshot needs,
// in no order: what a garbage collection of layers must keep.
func (s *Snapshotter) Dirs(ctx context.Context) ([]string, error) {
	set := make(map[string]struct{})
	err := s.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if dir, lazy := info.Labels[DirLabel]; lazy {
			set[dir] = struct{}{}
		}
		for _, dir := range stackOf(info) {
			set[dir] = struct{}{}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	dirs := make([]string, 0, len(set))
	for dir := range set {
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

// Close closes the metadata. Mounts that were handed out stay as they are.
// Closing twice is fine.
func (s *Snapshotter) Close() error {
	if err := s.ms.Close(); err != nil {
		return fmt.Errorf("snapshotter: close: %w", err)
	}
	return nil
}
