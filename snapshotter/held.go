package snapshotter

import (
	"context"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// Mounted returns the directories below the FUSE mount that lie beneath a
// container's snapshot or a view, so that somebody may have them mounted. It
// is a part of what Dirs returns: an image that is here and that nobody runs is
// in Dirs alone.
func (s *Snapshotter) Mounted(ctx context.Context) (map[string]bool, error) {
	all := make(map[string]snapshots.Info)
	var tops []string
	dirs := make(map[string]bool)
	err := s.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if all[info.Name] = info; info.Kind != snapshots.KindCommitted {
			tops = append(tops, info.Parent)
			for _, dir := range stackOf(info) {
				dirs[dir] = true
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, name := range tops {
		for name != "" {
			info := all[name]
			if dir, lazy := info.Labels[DirLabel]; lazy {
				dirs[dir] = true
			}
			name = info.Parent
		}
	}
	return dirs, nil
}

// Unpacked returns the chain IDs of layers that containerd has downloaded and
// unpacked here, so that they need no blob any more.
func (s *Snapshotter) Unpacked(ctx context.Context) (map[string]bool, error) {
	chains := make(map[string]bool)
	err := s.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		_, lazy := info.Labels[DirLabel]
		if chain := info.Labels[snapshots.LabelSnapshotRef]; chain != "" && !lazy && info.Kind == snapshots.KindCommitted {
			chains[chain] = true
		}
		return nil
	})
	return chains, err
}
