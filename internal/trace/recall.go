package trace

import (
	"cmp"
	"slices"
	"sort"

	"github.com/airstream-io/airstream/internal/toc"
)

// Recall turns the plans of an image back into a trace: that of the version
// before becomes that of the next, if nobody has recorded one. A plan names
// members, so reads come back as whole chunks, and what shared a member with
// them comes along; the order is that of the plan. Chunks are named by their
// hints.
type Recall struct {
	reads []recalled
}

type recalled struct {
	Read
	rank uint32
}

// Add adds the layer number layer, whose table of contents is tree. The tree
// and the plan are not used any more when it returns.
func (r *Recall) Add(layer int, tree *toc.Tree, plan Plan) {
	paths := Paths(tree)
	done := skips{} // members
	for _, run := range plan {
		first := sort.Search(tree.NumMembers(), func(i int) bool { return tree.Member(uint32(i)).Offset >= run.Offset })
		for m := done.next(uint32(first)); int(m) < tree.NumMembers() && tree.Member(m).Offset < run.Offset+run.Size; m = done.next(m) {
			done[m] = m + 1
			c, end := tree.MemberChunks(m)
			for ; c < end; c++ {
				k := tree.Chunk(c)
				path := paths[tree.ChunkFile(c)]
				if path == "" {
					continue // a file without a name, which no honest table has
				}
				r.reads = append(r.reads, recalled{Read{Layer: layer, Path: path, Offset: k.Offset, Size: int64(k.Size), Chunk: HintOf(k.ID)}, run.Rank})
			}
		}
	}
}

// Trace returns what was added, as the trace of an image of so many layers.
func (r *Recall) Trace(image, manifest string, layers int) *Trace {
	slices.SortStableFunc(r.reads, func(a, b recalled) int { return cmp.Compare(a.rank, b.rank) })
	t := &Trace{Version: Version, Image: image, Manifest: manifest, Layers: layers}
	for _, read := range r.reads {
		t.Reads = append(t.Reads, read.Read)
	}
	return t
}

// Paths returns a path for every entry of a tree, without a leading slash: "" for
// the root, and the first in the order of names for a file with several.
func Paths(tree *toc.Tree) []string {
	paths := make([]string, tree.Len())
	stack := []uint32{toc.Root}
	for len(stack) > 0 {
		dir := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for k := range tree.NumChildren(dir) {
			name, e := tree.Child(dir, k)
			path := name
			if dir != toc.Root {
				path = paths[dir] + "/" + name
			}
			if paths[e] == "" { // of hardlinks the first
				paths[e] = path
			}
			if tree.Attr(e).Mode&toc.TypeMask == toc.TypeDir {
				stack = append(stack, e)
			}
		}
	}
	return paths
}
