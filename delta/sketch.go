package delta

import (
	"context"
	"fmt"
	"io"
	"slices"
)

const (
	// sketchSize is how many of the least hashes of a file's content are kept,
	// sketchBytes how much of it is looked at, sketchFiles how many files.
	sketchSize  = 24
	sketchBytes = 8 << 20
	sketchFiles = 20_000
	// smallestSketched is the size of the smallest file that is looked for by
	// content, in bytes: smaller ones cost little either way.
	smallestSketched = 2048
)

// byContent looks for bases for the items that have none, among the files that
// are not wanted any more: these may have been moved.
func (p *planner) byContent(ctx context.Context, items []item, want []*File) error {
	kept := map[key]bool{}
	for _, f := range want {
		kept[f.key()] = true
	}
	var lost []int // items
	for i := range items {
		if len(items[i].bases) == 0 && items[i].file.Size >= smallestSketched {
			lost = append(lost, i)
		}
	}
	if len(lost) == 0 {
		return nil
	}
	owners := map[uint64][]int{}
	sketched := 0
	for i, f := range p.have {
		if f.Size < smallestSketched || sketched == sketchFiles {
			continue
		}
		if k := f.key(); kept[k] {
			continue
		} else {
			kept[k] = true // once
		}
		sketched++
		s, err := sketch(ctx, f)
		if err != nil {
			return err
		}
		for _, h := range s {
			owners[h] = append(owners[h], i)
		}
	}
	if len(owners) == 0 {
		return nil
	}
	for _, i := range lost {
		s, err := sketch(ctx, items[i].file)
		if err != nil {
			return err
		}
		votes := map[int]int{}
		for _, h := range s {
			for _, o := range owners[h] {
				votes[o]++
			}
		}
		best := -1
		for o, n := range votes {
			if n >= 3 && (best < 0 || n > votes[best] || n == votes[best] && o < best) {
				best = o
			}
		}
		if best >= 0 {
			items[i].bases = []int{best}
		}
	}
	return nil
}

// sketch returns the least hashes of the file's content over windows of 32
// bytes: two files that share content share hashes.
func sketch(ctx context.Context, f *File) ([]uint64, error) {
	p, err := readFile(ctx, f, 0, min(f.Size, sketchBytes))
	if err != nil {
		return nil, err
	}
	const window = 32
	const factor = 0x9e3779b97f4a7c15
	out := uint64(1) // factor to the power of window
	for range window {
		out *= factor
	}
	var least []uint64
	h := uint64(0)
	for i, c := range p {
		h = h*factor + uint64(c) + 1
		if i < window-1 {
			continue
		}
		if i >= window {
			h -= out * (uint64(p[i-window]) + 1)
		}
		v := (h ^ h>>29) * 0xbf58476d1ce4e5b9
		if len(least) == sketchSize && v >= least[sketchSize-1] {
			continue
		}
		at, there := slices.BinarySearch(least, v)
		if there {
			continue
		}
		if len(least) < sketchSize {
			least = append(least, 0)
		}
		copy(least[at+1:], least[at:])
		least[at] = v
	}
	return least, nil
}

// readFile reads n bytes at off of the file.
func readFile(ctx context.Context, f *File, off, n int64) ([]byte, error) {
	p := make([]byte, n)
	return p, readInto(ctx, f, p, off)
}

func readInto(ctx context.Context, f *File, p []byte, off int64) error {
	c, err := f.Open(ctx)
	if err != nil {
		return fmt.Errorf("delta: %s: %w", f.Path, err)
	}
	_, err = io.ReadFull(io.NewSectionReader(c, off, int64(len(p))), p)
	if e := c.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("delta: %s: %w", f.Path, err)
	}
	return nil
}
