package snapshotter

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
)

// deadPrefix begins the name of a directory that only waits to be deleted.
const deadPrefix = "dead-"

// Remove forgets a snapshot that has no children. Its files stay on disk until
// Cleanup, because containerd's garbage collection removes snapshots under a
// lock that stops everything else.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	s.adoption.Lock()
	defer s.adoption.Unlock()
	var released string
	err := s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, info, _, err := storage.GetInfo(ctx, key)
		if err != nil {
			return err
		}
		if _, _, err := storage.Remove(ctx, key); err != nil {
			return err
		}
		dir, lazy := info.Labels[DirLabel]
		if !lazy {
			return nil
		}
		released = dir
		return storage.WalkInfo(ctx, func(_ context.Context, other snapshots.Info) error {
			if other.Labels[DirLabel] == dir {
				released = ""
			}
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("snapshotter: remove %s: %w", key, err)
	}
	if released != "" {
		s.layers.Release(ctx, released)
	}
	return nil
}

// Cleanup deletes the files of removed snapshots, and what a crash left.
//
// What is dead gets another name first, while nobody can make a snapshot: an
// ID whose transaction failed is given away again, and then the directory must
// not be deleted under its new owner.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	base := filepath.Join(s.root, "snapshots")
	var dead []string
	// A write transaction, so that no directory is being made meanwhile.
	err := s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		ids, err := storage.IDMap(ctx)
		if err != nil {
			return err
		}
		entries, err := os.ReadDir(base)
		if err != nil {
			return err
		}
		for _, e := range entries {
			name := e.Name()
			if _, alive := ids[name]; alive {
				continue
			}
			if !strings.HasPrefix(name, deadPrefix) {
				name = deadPrefix + name + "-" + rand.Text()
				if err := os.Rename(filepath.Join(base, e.Name()), filepath.Join(base, name)); err != nil {
					return err
				}
			}
			dead = append(dead, name)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("snapshotter: clean up: %w", err)
	}
	var errs []error
	for _, name := range dead {
		if err := ctx.Err(); err != nil {
			errs = append(errs, err)
			break
		}
		if err := os.RemoveAll(filepath.Join(base, name)); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("snapshotter: clean up: %w", err)
	}
	return nil
}
