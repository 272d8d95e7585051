package snapshotter_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/airstream-io/airstream/snapshotter"
)

// fakeLayers stands for the node behind the snapshotter.Layers border. Layers
// in dirs are lazy; those in crossing wait for their TOC.
type fakeLayers struct {
	mu       sync.Mutex
	dirs     map[string]string        // chain ID to directory, without ".base"
	crossing map[string]chan struct{} // directory to what is closed when its TOC is here
	owners   map[string][2]uint32
	stacks   map[string][]string // chain ID of the highest layer to directories
	refuse   error
	asked    int
	released []string
	onFree   func(dir string)
}

func newFakeLayers() *fakeLayers {
	return &fakeLayers{dirs: make(map[string]string), crossing: make(map[string]chan struct{}), owners: make(map[string][2]uint32)}
}

func (f *fakeLayers) Lazy(_ context.Context, chainID string, base bool) (dir, reason string, ok bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	if f.refuse != nil {
		return "", "", false, f.refuse
	}
	dir, ok = f.dirs[chainID]
	if !ok {
		return "", "not converted", false, nil
	}
	if base {
		dir += ".base"
	}
	return dir, "", true, nil
}

func (f *fakeLayers) Stack(_ context.Context, chainID string, dirs []string) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if own := f.stacks[chainID]; own != nil {
		return own, nil
	}
	return dirs, nil
}

func (f *fakeLayers) Owner(ctx context.Context, dir string) (uid, gid uint32, err error) {
	f.mu.Lock()
	crossing, owner := f.crossing[dir], f.owners[dir]
	f.mu.Unlock()
	if crossing != nil {
		select {
		case <-crossing:
			return owner[0], owner[1], nil
		default:
		}
		select {
		case <-crossing:
		case <-ctx.Done():
			return 0, 0, fmt.Errorf("wait for the TOC of %s: %w", dir, ctx.Err())
		}
	}
	return owner[0], owner[1], nil
}

func (f *fakeLayers) Usage(context.Context, string) (bytes, inodes int64, err error) {
	return 12345, 6, nil
}

func (f *fakeLayers) Release(_ context.Context, dir string) {
	f.mu.Lock()
	f.released = append(f.released, dir)
	onFree := f.onFree
	f.mu.Unlock()
	if onFree != nil {
		onFree(dir)
	}
}

func (f *fakeLayers) releasedDirs() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.released)
}

func (f *fakeLayers) timesAsked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

func open(tb testing.TB, root, tree string, layers snapshotter.Layers, opts snapshotter.Options) *snapshotter.Snapshotter {
	tb.Helper()
	sn, err := snapshotter.Open(tb.Context(), root, tree, layers, opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := sn.Close(); err != nil {
			tb.Error(err)
		}
	})
	return sn
}
