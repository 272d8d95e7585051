package link

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/link/wire"
)

func TestAnHonestProxyDelivers(t *testing.T) {
	f := newFixture()
	s := open(t, proxyOf{f, func(s *script, _ *wire.Pull) {
		s.names()
		s.plan(5)
		s.table(1)
		for i, c := range f.chunks {
			s.chunk(uint64(i)+2, uint32(i), c)
		}
		s.done()
	}})
	n := newSink(f)
	if err := s.Pull(Request{Reference: "r.example/a:1"}, n).Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, c := range f.chunks {
		if n.chunks[uint32(i)] != string(c) {
			t.Errorf("chunk %d: %q", i, n.chunks[uint32(i)])
		}
	}
}

// Whatever a proxy does, the node takes nothing that is wrong, doesn't grow, and
// tries again or gives up as it should.
func TestAHostileProxy(t *testing.T) {
	f := newFixture()
	begin := func(s *script) {
		s.names()
		s.plan(5)
		s.table(1)
	}
	huge := &wire.Head{Kind: &wire.Head_Chunk{Chunk: &wire.Chunk{}}, Length: 1 << 40}
	for name, c := range map[string]struct {
		do   func(s *script)
		want error
	}{
		"a manifest that is another": {func(s *script) {
			s.put(Demand, &wire.Head{Kind: &wire.Head_Manifest{Manifest: &wire.Manifest{Digest: sum([]byte("x"))}}}, f.manifest)
		}, ErrContent},
		"a config that is another": {func(s *script) {
			s.put(Demand, &wire.Head{Kind: &wire.Head_Manifest{Manifest: &wire.Manifest{Digest: sum(f.manifest)}}}, f.manifest)
			s.put(Demand, &wire.Head{Kind: &wire.Head_Config{Config: &wire.Config{}}}, []byte(`{}`))
		}, ErrContent},
		"an outline of a layer that has a table": {func(s *script) {
			s.names()
			s.plan(5)
			s.put(Hot, &wire.Head{Item: 1, Kind: &wire.Head_Table{Table: &wire.Table{Format: FormatOutline, Digest: sum(f.table), DiffId: sum(f.table)}}}, f.table)
		}, ErrProtocol},
		"a plan with an outline of a layer that has a table": {func(s *script) {
			s.names()
			s.put(Demand, &wire.Head{Kind: &wire.Head_Plan{Plan: &wire.Plan{Digest: sum([]byte("plan")), Outlines: []uint32{0}}}}, nil)
		}, ErrProtocol},
		"a plan with an outline of no layer": {func(s *script) {
			s.names()
			s.put(Demand, &wire.Head{Kind: &wire.Head_Plan{Plan: &wire.Plan{Digest: sum([]byte("plan")), Outlines: []uint32{7}}}}, nil)
		}, ErrProtocol},
		"a table that is another": {func(s *script) {
			s.names()
			s.plan(5)
			s.put(Hot, &wire.Head{Item: 1, Kind: &wire.Head_Table{Table: &wire.Table{Format: FormatEStargz, Digest: sum([]byte("y"))}}}, []byte("y"))
		}, ErrContent},
		"a chunk that is another":       {func(s *script) { begin(s); s.chunk(2, 0, bytes.Repeat([]byte("x"), len(f.chunks[0]))) }, ErrContent},
		"a chunk that is longer":        {func(s *script) { begin(s); s.chunk(2, 0, append([]byte("x"), f.chunks[0]...)) }, ErrContent},
		"a chunk before its table":      {func(s *script) { s.names(); s.plan(5); s.chunk(2, 0, f.chunks[0]) }, ErrProtocol},
		"a chunk that the layer hasn't": {func(s *script) { begin(s); s.chunk(2, 4, f.chunks[0]) }, ErrProtocol},
		"a layer that the image hasn't": {func(s *script) {
			begin(s)
			s.put(Hot, &wire.Head{Item: 2, Kind: &wire.Head_Chunk{Chunk: &wire.Chunk{Layer: 7}}}, f.chunks[0])
		}, ErrProtocol},
		"items in the wrong order": {func(s *script) { begin(s); s.chunk(3, 1, f.chunks[1]); s.chunk(2, 0, f.chunks[0]) }, ErrProtocol},
		"items beyond the plan":    {func(s *script) { begin(s); s.chunk(6, 1, f.chunks[1]) }, ErrProtocol},
		"a plan without end":       {func(s *script) { s.names(); s.plan(1 << 50) }, ErrProtocol},
		"a record of a terabyte":   {func(s *script) { begin(s); s.put(Hot, huge, []byte("x")) }, ErrProtocol},
		"a record that goes on from nowhere": {func(s *script) {
			begin(s)
			s.put(Hot, &wire.Head{Item: 2, Offset: 7, Length: 30, Kind: &wire.Head_Chunk{Chunk: &wire.Chunk{}}}, f.chunks[0])
		}, ErrProtocol},
		"a bomb": {func(s *script) {
			s.names()
			s.plan(5)
			codec, payload := Encode(make([]byte, 8<<20))
			s.put(Hot, &wire.Head{Item: 1, Codec: codec, Length: 100, Kind: &wire.Head_Table{Table: &wire.Table{Format: FormatEStargz, Digest: sum(f.table)}}}, payload)
		}, ErrProtocol},
		"chunks without end": {func(s *script) {
			begin(s)
			for range 200_000 {
				if s.chunk(0, 1, f.chunks[1]); s.err != nil {
					return
				}
			}
		}, ErrProtocol},
		"records of a kind that there is not": {func(s *script) {
			begin(s)
			for range 200_000 {
				if s.put(Hot, &wire.Head{}, []byte("x")); s.err != nil {
					return
				}
			}
		}, ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, proxyOf{f, func(s *script, _ *wire.Pull) { c.do(s) }})
			n := newSink(f)
			pull := s.Pull(Request{Reference: "r.example/a:1"}, n)
			eventually(t, "an end of the session", func() bool { st, _ := s.State(); return st.Err != nil })
			st, _ := s.State()
			if !errors.Is(st.Err, c.want) {
				t.Errorf("the session ended with %v, want %v", st.Err, c.want)
			}
			n.mu.Lock()
			defer n.mu.Unlock()
			for i, got := range n.chunks {
				if got != string(f.chunks[i]) {
					t.Errorf("chunk %d was delivered as %q", i, got)
				}
			}
			pull.Cancel()
		})
	}
}

// A chunk that comes wrong again and again ends the pull: others may have it.
func TestWrongContentEndsThePull(t *testing.T) {
	f := newFixture()
	s := open(t, proxyOf{f, func(s *script, req *wire.Pull) {
		if req.GetResume() == nil {
			s.names()
		}
		s.plan(5)
		if req.GetResume().GetPosition() == 0 {
			s.table(1)
		}
		s.chunk(2, 0, bytes.Repeat([]byte("x"), len(f.chunks[0])))
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := s.Pull(Request{Reference: "r.example/a:1"}, newSink(f)).Wait(ctx); !errors.Is(err, ErrContent) {
		t.Errorf("it ended with %v", err)
	}
}

// A sink that fails ends its pull, and no other.
func TestASinkThatFails(t *testing.T) {
	f := newFixture()
	s := open(t, proxyOf{f, func(s *script, _ *wire.Pull) {
		s.names()
		s.plan(5)
		s.table(1)
		s.chunk(2, 0, f.chunks[0])
		s.done()
	}})
	full := newSink(f)
	full.fail = errors.New("the disk is full")
	if err := s.Pull(Request{Reference: "r.example/a:1"}, full).Wait(t.Context()); !errors.Is(err, full.fail) {
		t.Errorf("it ended with %v", err)
	}
	if err := s.Pull(Request{Reference: "r.example/a:1"}, newSink(f)).Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if st, _ := s.State(); !st.Up || st.Err != nil {
		t.Errorf("the session is %+v", st)
	}
}

// An idle session sends nothing, and stays.
func TestAnIdleSessionStays(t *testing.T) {
	f := newFixture()
	s := open(t, proxyOf{f, func(s *script, _ *wire.Pull) { s.names(); s.plan(0); s.done() }})
	if err := s.Pull(Request{Reference: "r.example/a:1"}, newSink(f)).Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	before, _ := s.State()
	time.Sleep(2500 * time.Millisecond) // more than two stalls
	after, _ := s.State()
	if !after.Up || after.Since != before.Since || after.Bytes-before.Bytes > 200 {
		t.Errorf("it was %+v, is %+v", before, after)
	}
}

// An outline is taken by whoever said so, of a layer that was never converted, with a
// diffID; not otherwise.
func TestWhoTakesOutlines(t *testing.T) {
	f := newFixture()
	var m ocispec.Manifest
	if err := json.Unmarshal(f.manifest, &m); err != nil {
		t.Fatal(err)
	}
	m.Layers[0].Annotations = nil
	var err error
	if f.manifest, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		takes  bool
		diffID []byte
		want   error
	}{
		"said so":        {true, sum(f.table), nil},
		"did not say so": {false, sum(f.table), ErrProtocol},
		"without diffID": {true, nil, ErrProtocol},
		"a short diffID": {true, []byte("short"), ErrProtocol},
	} {
		var asked atomic.Bool
		s := open(t, proxyOf{f, func(s *script, req *wire.Pull) {
			asked.Store(req.GetOutlines())
			s.names()
			s.put(Hot, &wire.Head{Item: 1, Kind: &wire.Head_Table{Table: &wire.Table{Format: FormatOutline, Digest: sum(f.table), DiffId: c.diffID}}}, f.table)
		}})
		pull := s.Pull(Request{Reference: "r.example/a:1", Outlines: c.takes}, newSink(f))
		if c.want == nil {
			eventually(t, name, func() bool {
				pull.mu.Lock()
				defer pull.mu.Unlock()
				return len(pull.state.chunks) > 0 && pull.state.chunks[0] != nil
			})
		} else {
			eventually(t, name, func() bool { st, _ := s.State(); return errors.Is(st.Err, c.want) })
		}
		if asked.Load() != c.takes {
			t.Errorf("%s: the proxy was told %v", name, asked.Load())
		}
	}
}
