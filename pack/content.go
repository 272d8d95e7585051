package pack

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"sort"

	"github.com/klauspost/compress/gzip"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/bundle"
	"github.com/airstream-io/airstream/internal/trace"
)

// claim says which layer's file a content comes from.
type claim struct {
	layer int
	entry uint32
}

// How much content shares a record, in bytes before compression: what damage costs,
// and what has to come before any of it is of use. What a start reads is cut finer.
const (
	hotGroup  = 256 << 10
	restGroup = 1 << 20
)

// claimAll decides for each content that is wanted where it comes from.
func (p *packer) claimAll(ctx context.Context) error {
	for i, l := range p.layers {
		if l.had {
			continue
		}
		l.mine = make([]bool, l.tree.Len())
		l.sent = make([]bool, l.tree.NumChunks())
		for e := range uint32(l.tree.Len()) {
			if e%1000 == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			if first, end := l.tree.Chunks(e); first == end {
				continue
			}
			id := l.tree.ObjectID(e)
			if _, claimed := p.claims[id]; claimed {
				continue
			}
			if p.have.object(id) {
				p.skipped += l.tree.Attr(e).Size
				continue
			}
			p.claims[id] = claim{i, e}
			l.mine[e] = true
		}
	}
	return nil
}

// owner returns the layer and chunk that a chunk's content comes from; ok is false
// if it doesn't cross.
func (p *packer) owner(l *layer, c uint32) (*layer, uint32, bool) {
	e := l.tree.ChunkFile(c)
	if l.mine[e] {
		return l, c, true
	}
	from, ok := p.claims[l.tree.ObjectID(e)]
	if !ok {
		return nil, 0, false
	}
	first, _ := l.tree.Chunks(e)
	owner := p.layers[from.layer]
	begin, _ := owner.tree.Chunks(from.entry)
	return owner, begin + c - first, true
}

// hotRun is a run of a layer blob that a start reads.
type hotRun struct {
	trace.Run
	l *layer
}

// hot adds what starts read, in their order.
func (p *packer) hot(ctx context.Context) error {
	var runs []hotRun
	for _, l := range p.layers {
		if l.had {
			continue
		}
		plan, err := trace.ParsePlan(l.desc.Annotations[annotation.Hot], l.desc.Size)
		if err != nil {
			continue // none, or none that a node would follow
		}
		for _, r := range plan {
			runs = append(runs, hotRun{r, l})
		}
	}
	slices.SortStableFunc(runs, func(a, b hotRun) int { return cmp.Compare(a.Rank, b.Rank) })
	p.group = group{priority: bundle.PriorityHot, limit: hotGroup}
	if len(runs) > 0 {
		p.say("packing what a start reads")
	}
	for _, r := range runs {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		t := r.l.tree
		n := t.NumMembers()
		m := sort.Search(n, func(i int) bool { return t.Member(uint32(i)).Offset >= r.Offset })
		for ; m < n && t.Member(uint32(m)).Offset < r.Offset+r.Size; m++ {
			if err := p.hotMember(r.l, uint32(m)); err != nil {
				return err
			}
		}
	}
	return p.flush()
}

func (p *packer) hotMember(l *layer, m uint32) error {
	first, end := l.tree.MemberChunks(m)
	for c := first; c < end; c++ {
		owner, k, ok := p.owner(l, c)
		if !ok || owner.sent[k] {
			continue
		}
		at := owner.tree.Chunk(k)
		if err := p.member(owner, at.Member, func(other uint32) bool { return other == k }); err != nil {
			return err
		}
	}
	return nil
}

// rest adds all other content, layer by layer in the order of the blobs.
func (p *packer) rest(ctx context.Context) error {
	p.group = group{priority: bundle.PriorityRest, limit: restGroup}
	for _, l := range p.layers {
		if l.had {
			continue
		}
		p.say("packing layer " + l.desc.Digest.String())
		for m := range uint32(l.tree.NumMembers()) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := p.member(l, m, func(c uint32) bool { return l.mine[l.tree.ChunkFile(c)] }); err != nil {
				return err
			}
		}
	}
	return p.flush()
}

// member adds those chunks of a member that are wanted and were not sent.
func (p *packer) member(l *layer, m uint32, wanted func(c uint32) bool) error {
	var r *bufio.Reader
	first, end := l.tree.MemberChunks(m)
	at := int64(0) // bytes of the member that were read
	for c := first; c < end; c++ {
		if l.sent[c] || !wanted(c) {
			continue
		}
		if r == nil {
			span := l.tree.Member(m)
			zr, err := gzip.NewReader(bufio.NewReaderSize(io.NewSectionReader(l.file, span.Offset, span.End-span.Offset), 32<<10))
			if err != nil {
				return fmt.Errorf("layer %s: %w", l.desc.Digest, err)
			}
			r = bufio.NewReaderSize(zr, 32<<10)
		}
		k := l.tree.Chunk(c)
		buf := make([]byte, k.Size)
		_, err := io.CopyN(io.Discard, r, int64(k.Inner)-at)
		if err == nil {
			_, err = io.ReadFull(r, buf)
		}
		if err == nil {
			err = k.ID.Verify(buf)
		}
		if err != nil {
			return fmt.Errorf("layer %s: chunk %d: %w", l.desc.Digest, c, err)
		}
		at = int64(k.Inner) + int64(k.Size)
		l.sent[c] = true
		if err := p.chunk(l, c, buf); err != nil {
			return err
		}
	}
	return nil
}

// group is chunks that will share a record.
type group struct {
	bundle.Chunks
	priority uint8
	limit    int
}

func (p *packer) chunk(l *layer, c uint32, content []byte) error {
	g := &p.group
	if len(g.Data) > 0 && len(g.Data)+len(content) > g.limit {
		if err := p.flush(); err != nil {
			return err
		}
	}
	sum, err := bundle.SumOf(l.toc)
	if err != nil {
		return err
	}
	table := slices.Index(g.Tables, sum)
	if table < 0 {
		table = len(g.Tables)
		g.Tables = append(g.Tables, sum)
	}
	if n := len(g.Runs); n > 0 && g.Runs[n-1].Table == table && g.Runs[n-1].First+g.Runs[n-1].Count == c {
		g.Runs[n-1].Count++
	} else {
		g.Runs = append(g.Runs, bundle.Run{Table: table, First: c, Count: 1})
	}
	g.Data = append(g.Data, content...)
	return nil
}

func (p *packer) flush() error {
	g := &p.group
	if len(g.Data) == 0 {
		return nil
	}
	err := p.w.Add(bundle.KindChunks, g.priority, g.Encode())
	g.Chunks = bundle.Chunks{Tables: g.Tables[:0], Runs: g.Runs[:0], Data: g.Data[:0]}
	return err
}
