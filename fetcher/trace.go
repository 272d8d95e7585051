package fetcher

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/airstream-io/airstream/internal/trace"
)

// Trace returns what was read and looked up of an image's layers since the
// daemon started, in the order in which that was done first. slots are the
// image's layers from the lowest up, 0 for one that is not lazy. A file that has
// several names is called by the first of them.
//
// Only what reached the daemon counts: what the kernel had in its cache is not in
// it, nor, once an image is old on the node, what was read from complete files;
// nor what Diary has given up for images that came later. So a trace is recorded
// on a node that has just met the image.
func (f *Fetcher) Trace(ctx context.Context, slots []uint32) (*trace.Trace, error) {
	var all []dated
	for i, slot := range slots {
		// A layer that an image has twice counts as the upper one.
		if slot == 0 || slices.Contains(slots[i+1:], slot) {
			continue
		}
		tree, err := f.Tree(ctx, slot)
		if err != nil {
			return nil, fmt.Errorf("fetcher: trace: %w", err)
		}
		all = append(all, f.diary.written(slot, i, trace.Paths(tree))...)
	}
	slices.SortFunc(all, func(a, b dated) int { return cmp.Compare(a.at, b.at) })
	t := &trace.Trace{Version: trace.Version, Layers: len(slots), Reads: make([]trace.Read, 0, len(all))}
	for _, d := range all {
		t.Reads = append(t.Reads, d.Read)
	}
	return t, nil
}
