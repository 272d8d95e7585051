package proxy

import (
	"context"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/internal/toc"
)

// contents counts how often each content came, whichever pull brought it.
type contents struct {
	mu    sync.Mutex
	times map[string]int
	bytes int64
	trees map[string]*toc.Tree // by what the layer's table goes by
}

func newContents() *contents {
	return &contents{times: map[string]int{}, trees: map[string]*toc.Tree{}}
}

// through is a node of which several pulls of a session are: a table is here for all
// of them, whichever brought it.
type through struct {
	*node
	all *contents
}

func (c *contents) pull() *through { return &through{newNode(), c} }

func (s *through) Table(ctx context.Context, t link.Table) (link.Chunks, error) {
	chunks, err := s.node.Table(ctx, t)
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	s.all.trees[t.Desc.Annotations[annotation.TOCDigest]] = s.trees[t.Layer]
	return chunks, err
}

func (s *through) Known(_ context.Context, _ int, desc ocispec.Descriptor) (link.Chunks, error) {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	if tree := s.all.trees[desc.Annotations[annotation.TOCDigest]]; tree != nil {
		return chunksOf{tree}, nil
	}
	return nil, nil //nolint:nilnil // not here
}

func (s *through) Chunk(ctx context.Context, layer int, number uint32, content []byte) error {
	s.all.mu.Lock()
	s.all.times[string(content)]++
	s.all.bytes += int64(len(content))
	s.all.mu.Unlock()
	return s.node.Chunk(ctx, layer, number, content)
}

// twice returns how many bytes came again.
func (c *contents) twice() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for content, times := range c.times {
		n += (times - 1) * len(content)
	}
	return n
}

// Two images that share a layer, and a file in layers of their own, are asked for
// beside each other, and one of them again: each content crosses once.
func TestPullsOfASessionSendNothingTwice(t *testing.T) {
	s := newShore(t)
	base := []file{{name: "lib/shared", content: noise(1, 512<<10), hot: 1}}
	copied := noise(2, 300<<10)
	one := s.push(t, "team/one", "1", base, []file{{name: "bin/one", content: noise(3, 200<<10), hot: 2}, {name: "opt/same", content: copied}})
	two := s.push(t, "team/two", "1", base, []file{{name: "bin/two", content: noise(4, 200<<10), hot: 2}, {name: "usr/same", content: copied}})
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{Limits: Limits{Rate: 2_000_000}})
	sess := dial(t, p.addr, "vessel-1", nil)
	c := newContents()
	var pulls []*link.Pull
	for _, img := range []*testImage{one, two, one} {
		pulls = append(pulls, sess.Pull(all(img), c.pull()))
		time.Sleep(30 * time.Millisecond)
	}
	for _, q := range pulls {
		wait(t, q)
	}
	if n := c.twice(); n > 0 {
		t.Errorf("%d bytes came twice", n)
	}
	if want := int64(512+200+300+200) << 10; c.bytes != want {
		t.Errorf("%d bytes came, of %d", c.bytes, want)
	}
}

// What one pull is asked for while another one sends it does not come again. If that
// one is canceled before it has come, it does.
func TestADemandForWhatAnotherPullSends(t *testing.T) {
	for _, cancel := range []bool{false, true} {
		s := newShore(t)
		img := app(t, s)
		p := serve(t, t.TempDir(), "127.0.0.1:0", Options{Limits: Limits{Rate: 500_000}})
		sess := dial(t, p.addr, "vessel-1", nil)
		c := newContents()
		first, second := c.pull(), c.pull()
		names := all(img)
		names.Depth = link.Names
		other := sess.Pull(names, second)
		wait(t, other) // tables are here
		pull := sess.Pull(all(img), first)
		await(t, "some of it", func() bool { return first.count() > 0 })
		for n := range uint32(img.trees[0].NumChunks()) {
			other.Demand(link.Demand, 0, n)
		}
		if cancel {
			time.Sleep(20 * time.Millisecond)
			pull.Cancel()
			await(t, "what was demanded", func() bool {
				return first.count()+second.count() >= img.trees[0].NumChunks()
			})
			continue
		}
		wait(t, pull)
		if n := c.twice(); n > 0 {
			t.Errorf("%d bytes came twice", n)
		}
		if second.count() == 0 {
			t.Error("no demand was met first")
		}
	}
}

// A ledger forgets the oldest, and what it says of records is what the node said.
func TestLedger(t *testing.T) {
	l := newLedger()
	id := pieceID{1}
	e, mine := l.take(id, 1, 0, false)
	if !mine {
		t.Fatal("a piece that nobody sends is not given to who asks")
	}
	if _, mine := l.take(id, 2, never, true); mine || !l.isUrgent(e) {
		t.Error("a piece that is being made is given away, or nobody hurries")
	}
	l.handed(e)
	l.gone(e, 7)
	if _, ok := l.underWay(id, 6, false); !ok {
		t.Error("the seventh record is taken for here after six")
	}
	if _, ok := l.underWay(id, 7, false); ok {
		t.Error("the seventh record is taken for under way after seven")
	}
	if _, mine := l.take(id, 2, never, false); mine {
		t.Error("a plan sends what has come")
	}
	if _, mine := l.take(id, 2, 7, false); !mine {
		t.Error("what has come and is wanted again is not sent")
	}
	for i := range maxEntries {
		l.take(pieceID{2, byte(i), byte(i >> 8), byte(i >> 16)}, 3, never, false)
	}
	if len(l.entries) > maxEntries || len(l.order) > maxEntries {
		t.Errorf("%d pieces are remembered", len(l.entries))
	}
	if _, ok := l.underWay(id, 0, false); ok {
		t.Error("the oldest is not forgotten")
	}
	l.leave(3)
	if len(l.entries) > 0 {
		t.Errorf("%d pieces are remembered of a pull that has ended", len(l.entries))
	}
}
