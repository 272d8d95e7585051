package delta

import (
	"cmp"
	"context"
	"path"
	"slices"
	"strings"
)

// item is a wanted file that the receiver lacks, with the bases it may be made
// from, the likest first.
type item struct {
	index int // in want
	file  *File
	bases []int // in have, all sets laid end to end
}

// maxBases is how many files serve one as a base of its own. Besides, it can use
// all bases of its group.
const maxBases = 2

// plan finds out what has to cross. Files that are alike follow each other. It
// returns how many files need nothing.
func plan(ctx context.Context, have, want []*File) (items []item, same int, err error) {
	p := planner{have: have, same: map[key]bool{}, names: map[string][]int{}, wanted: map[key]bool{}}
	for i, f := range have {
		p.same[f.key()] = true
		if f.Size == 0 {
			continue
		}
		for rank, name := range namesOf(f.Path) {
			// A place with thousands of candidates says nothing.
			if n := rankedName(rank, name); len(p.names[n]) < 200 {
				p.names[n] = append(p.names[n], i)
			}
		}
	}
	for i, f := range want {
		k := f.key()
		if p.same[k] || p.wanted[k] {
			same++
			continue
		}
		p.wanted[k] = true
		items = append(items, item{index: i, file: f, bases: p.byName(f)})
	}
	if err := p.byContent(ctx, items, want); err != nil {
		return nil, 0, err
	}
	slices.SortStableFunc(items, func(a, b item) int {
		return cmp.Or(strings.Compare(kind(a.file.Path), kind(b.file.Path)), strings.Compare(a.file.Path, b.file.Path))
	})
	return items, same, nil
}

type planner struct {
	have         []*File
	same, wanted map[key]bool
	names        map[string][]int
}

// kind groups files whose content is of one sort, by the ending of the name.
func kind(name string) string {
	base := path.Base(name)
	if i := strings.Index(base, ".so."); i > 0 {
		return ".so"
	}
	return path.Ext(base)
}

// namesOf returns what a file may be found by, the surest first: its path, the
// path without version numbers, the last parts of that.
func namesOf(name string) []string {
	plain := withoutNumbers(name)
	names := []string{name, plain}
	parts := strings.Split(plain, "/")
	for _, n := range []int{3, 2, 1} {
		if len(parts) > n {
			names = append(names, strings.Join(parts[len(parts)-n:], "/"))
		}
	}
	return names
}

func rankedName(rank int, name string) string { return string(rune('0'+rank)) + name }

// withoutNumbers replaces digits, and the dots, dashes and signs between them.
func withoutNumbers(name string) string {
	b := make([]byte, 0, len(name))
	for i := 0; i < len(name); i++ {
		c := name[i]
		if c >= '0' && c <= '9' {
			if n := len(b); n > 1 && strings.IndexByte(".-+~_", b[n-1]) >= 0 && b[n-2] == '#' {
				b = b[:n-1]
			} else if n == 0 || b[n-1] != '#' {
				b = append(b, '#')
			}
			continue
		}
		b = append(b, c)
	}
	return string(b)
}

// byName returns the files that have the name, or nearly so; among equals those
// of about the same size first, and later sets before earlier ones.
func (p *planner) byName(f *File) []int {
	for rank, name := range namesOf(f.Path) {
		found := slices.Clone(p.names[rankedName(rank, name)])
		if len(found) == 0 {
			continue
		}
		slices.SortStableFunc(found, func(a, b int) int {
			return cmp.Or(cmp.Compare(sizeGap(p.have[a], f), sizeGap(p.have[b], f)), b-a)
		})
		var bases []int
		for _, i := range found {
			if sizeGap(p.have[i], f) > 4 && rank > 1 {
				break
			}
			if !slices.ContainsFunc(bases, func(j int) bool { return slices.Equal(p.have[i].Chunks, p.have[j].Chunks) }) {
				bases = append(bases, i)
			}
			if len(bases) == maxBases {
				break
			}
		}
		if len(bases) > 0 {
			return bases
		}
	}
	return nil
}

// sizeGap is how many doublings the sizes are apart.
func sizeGap(a, b *File) int {
	n := 0
	for x, y := min(a.Size, b.Size)+1, max(a.Size, b.Size)+1; x < y-y/4; x <<= 1 {
		n++
	}
	return n
}
