package cache

import (
	"cmp"
	"context"
	"encoding/binary"
	"slices"
	"sort"

	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/store"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
)

// A rank is how long something stays: what has rank 0 nobody wants; then come
// the images that may be evicted, the one first that was not used for longest;
// forever is for what a pinned image or a mount uses. Shared content has the
// highest rank of all that use it.
type rank uint32

const forever rank = 1<<30 - 1

// mark is what is known of one object: 16 bytes, of which a node with fifty
// images of twenty thousand files has a million.
type mark struct {
	key  uint64 // the first 8 bytes of its ID
	rank rank
	hot  bool // a start reads it
	gone bool // it was deleted, or would be
}

// marks are sorted by key once they are complete.
type marks []mark

func keyOf(id toc.ObjectID) uint64 { return binary.LittleEndian.Uint64(id[:]) }

// find returns the mark of an object, or nil.
func (m marks) find(id toc.ObjectID) *mark {
	key := keyOf(id)
	i := sort.Search(len(m), func(i int) bool { return m[i].key >= key })
	if i == len(m) || m[i].key != key {
		return nil
	}
	return &m[i]
}

// settle sorts the marks and makes one of those that have the same key.
func (m marks) settle() marks {
	slices.SortFunc(m, func(a, b mark) int { return cmp.Compare(a.key, b.key) })
	out := m[:0]
	for _, k := range m {
		if n := len(out); n > 0 && out[n-1].key == k.key {
			out[n-1].rank = max(out[n-1].rank, k.rank)
			out[n-1].hot = out[n-1].hot || k.hot
			continue
		}
		out = append(out, k)
	}
	return out
}

// markLayer adds the objects of a layer whose tree is t. hot are its plans.
func (m marks) markLayer(ctx context.Context, t *toc.Tree, r rank, layer catalog.Layer, hot []string) (marks, error) {
	inHot := map[uint32]bool{} // entries
	for _, text := range hot {
		plan, err := trace.ParsePlan(text, layer.Size)
		if err != nil {
			continue // it only says what to fetch first
		}
		for _, run := range plan {
			hotEntries(t, run, inHot)
		}
	}
	if len(m)+t.Len() > cap(m) { // append would double it
		m = slices.Grow(m, max(t.Len(), len(m)/4))
	}
	for entry := range uint32(t.Len()) {
		if entry%1000 == 0 && ctx.Err() != nil {
			return m, ctx.Err()
		}
		if first, end := t.Chunks(entry); first < end && t.Known(entry) {
			m = append(m, mark{key: keyOf(t.ObjectID(entry)), rank: r, hot: inHot[entry]})
		}
	}
	return m, nil
}

// hotEntries adds the files that a run of the layer blob holds pieces of.
func hotEntries(t *toc.Tree, run trace.Run, into map[uint32]bool) {
	n := t.NumMembers()
	i := sort.Search(n, func(i int) bool { return t.Member(uint32(i)).Offset >= run.Offset })
	for ; i < n && t.Member(uint32(i)).Offset < run.Offset+run.Size; i++ {
		first, end := t.MemberChunks(uint32(i))
		for c := first; c < end; c++ {
			into[t.ChunkFile(c)] = true
		}
	}
}

// eachObject calls f for the objects of a layer that have rank r and are not
// gone.
func eachObject(s *store.Store, m marks, layer catalog.Layer, r rank, f func(id toc.ObjectID, k *mark) error) error {
	if !s.HasTree(layer.TOC) {
		return nil
	}
	t, err := s.Tree(layer.TOC)
	if err != nil {
		return nil //nolint:nilerr // a damaged tree is gone: what it names are orphans
	}
	for entry := range uint32(t.Len()) {
		if first, end := t.Chunks(entry); first == end || !t.Known(entry) {
			continue
		}
		id := t.ObjectID(entry)
		if k := m.find(id); k != nil && k.rank == r && !k.gone {
			if err := f(id, k); err != nil {
				return err
			}
		}
	}
	return nil
}
