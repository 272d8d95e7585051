package artifact

import (
	"cmp"
	"slices"
	"sort"

	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
)

// Order collects the hot set of an image: the chunks that the plans of its
// layers name, in the order in which a start reads them.
type Order struct {
	wants []ranked
	have  map[[2]uint32]struct{} // layer and chunk; plans may overlap
}

// Wanted is a chunk of the hot set, and where its layer has it.
type Wanted struct {
	Layer  int
	Number uint32 // in the layer's tree
	Chunk  toc.Chunk
	Member toc.Member
}

type ranked struct {
	Wanted
	rank uint32
}

// Add adds the layer number layer, counted from the lowest, and its plan. The
// tree is not used any more when it returns.
func (o *Order) Add(layer int, tree *toc.Tree, plan trace.Plan) {
	if o.have == nil {
		o.have = map[[2]uint32]struct{}{}
	}
	for _, run := range plan {
		first := sort.Search(tree.NumMembers(), func(i int) bool { return tree.Member(uint32(i)).Offset >= run.Offset })
		for m := uint32(first); int(m) < tree.NumMembers() && tree.Member(m).Offset < run.Offset+run.Size; m++ {
			for c, end := tree.MemberChunks(m); c < end; c++ {
				k := [2]uint32{uint32(layer), c}
				if _, ok := o.have[k]; ok {
					continue
				}
				o.have[k] = struct{}{}
				o.wants = append(o.wants, ranked{Wanted{layer, c, tree.Chunk(c), tree.Member(m)}, run.Rank})
			}
		}
	}
}

// Wanted returns the chunks, first things first.
func (o *Order) Wanted() []Wanted {
	slices.SortFunc(o.wants, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.Layer, b.Layer), cmp.Compare(a.Number, b.Number))
	})
	list := make([]Wanted, len(o.wants))
	for i, w := range o.wants {
		list[i] = w.Wanted
	}
	return list
}

// runs puts together what follows each other.
func runs(list []Wanted) []Run {
	var out []Run
	for _, w := range list {
		if n := len(out); n > 0 && out[n-1].Layer == w.Layer && out[n-1].First+out[n-1].Count == w.Number {
			out[n-1].Count++
			continue
		}
		out = append(out, Run{w.Layer, w.Number, 1})
	}
	return out
}
