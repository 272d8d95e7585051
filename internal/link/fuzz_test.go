package link

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/airstream-io/airstream/internal/link/wire"
)

// pieces writes messages as FuzzReceive reads them: a length of two bytes before
// each.
func pieces(all ...*wire.Down) (b []byte) {
	for _, m := range all {
		raw, err := proto.Marshal(m)
		if err != nil {
			panic(err)
		}
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(raw))), raw...)
	}
	return b
}

// Whatever comes, the receiving end holds no more than records may have, and
// delivers nothing that is wrong.
func FuzzReceive(f *testing.F) {
	x := newFixture()
	one := func(h *wire.Head, payload []byte) *wire.Down {
		h.Pull, h.Size = 1, uint64(len(payload))
		if h.Length == 0 {
			h.Length = h.Size
		}
		return &wire.Down{Lane: 1, Head: h, Data: payload}
	}
	names := []*wire.Down{
		one(&wire.Head{Kind: &wire.Head_Manifest{Manifest: &wire.Manifest{Digest: sum(x.manifest)}}}, x.manifest),
		one(&wire.Head{Kind: &wire.Head_Config{Config: &wire.Config{}}}, x.config),
		one(&wire.Head{Kind: &wire.Head_Plan{Plan: &wire.Plan{Digest: sum(nil), Items: 5}}}, nil),
		one(&wire.Head{Item: 1, Kind: &wire.Head_Table{Table: &wire.Table{Format: FormatEStargz, Digest: sum(x.table)}}}, x.table),
		one(&wire.Head{Item: 2, Kind: &wire.Head_Chunk{Chunk: &wire.Chunk{}}}, x.chunks[0]),
		one(&wire.Head{Kind: &wire.Head_Done{Done: &wire.Done{}}}, nil),
	}
	f.Add(pieces(names...))
	f.Add(pieces(names[:4]...))
	f.Add(pieces(one(&wire.Head{Codec: wire.Codec_CODEC_ZSTD_BASE, Kind: &wire.Head_Chunk{Chunk: &wire.Chunk{Base: &wire.Base{Table: sum(nil)[:8]}}}}, []byte("x"))))
	f.Add(pieces(&wire.Down{Lane: 2, Head: &wire.Head{Pull: 1, Size: 100}, Data: []byte("x")}, &wire.Down{Lane: 2, Data: []byte("y")}))
	f.Add(pieces(one(&wire.Head{Kind: &wire.Head_Refusal{Refusal: &wire.Refusal{Reason: wire.Reason_REASON_IMAGE, Text: "no"}}}, nil)))
	f.Add(pieces(one(&wire.Head{Kind: &wire.Head_Status{Status: &wire.Status{Text: "reading"}}}, nil)))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := newSink(x)
		s := &Session{pulls: map[uint32]*Pull{}, kick: make(chan struct{}, 1), more: make(chan struct{})}
		p := &Pull{s: s, sink: n, done: make(chan struct{}), req: &wire.Pull{Id: 1}, demanded: map[chunkKey]Lane{{0, 2}: Demand}}
		s.pulls[1] = p
		r := receiver{begun: s.begun}
		unasked := idle{since: time.Now()}
		for len(b) >= 2 {
			size := min(int(binary.BigEndian.Uint16(b)), len(b)-2)
			m := &wire.Down{}
			err := proto.Unmarshal(b[2:2+size], m)
			b = b[2+size:]
			if err != nil {
				return
			}
			rec, err := r.piece(m)
			if err == nil && rec != nil {
				err = s.deliver(context.Background(), rec, &unasked)
			}
			if err != nil {
				break
			}
		}
		for i, got := range n.chunks {
			if got != string(x.chunks[i]) {
				t.Errorf("chunk %d was delivered as %q", i, got)
			}
		}
		for _, part := range r.partials() {
			p.keep(part)
		}
		again := &Pull{}
		if err := again.restore(p.Cookie()); err != nil {
			t.Errorf("its own cookie is not taken: %v", err)
		}
	})
}

// A cookie comes from the disk, which may be damaged.
func FuzzCookie(f *testing.F) {
	x := newFixture()
	p := &Pull{req: &wire.Pull{Reference: "r.example/a:1", Have: []string{"r.example/a@sha256:00"}}}
	f.Add(p.Cookie())
	p.state.manifest, p.state.config, p.raw = digestOf(x.manifest), true, x.manifest
	p.state.plan, p.state.position = sum(nil), 7
	p.state.got = map[chunkKey]uint64{{0, 3}: 0, {0, 4}: 9, {1, 0}: 0}
	p.state.partial = []*record{{&wire.Head{Size: 9, Kind: &wire.Head_Chunk{Chunk: &wire.Chunk{Chunk: 1}}}, []byte("begin")}}
	f.Add(p.Cookie())
	f.Add([]byte(cookieMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		// Past the checksum, which a fuzzer doesn't find.
		if len(b) > len(cookieMagic)+32 {
			b = append(append([]byte(cookieMagic), sum(b[len(cookieMagic)+32:])...), b[len(cookieMagic)+32:]...)
		}
		again := &Pull{}
		if err := again.restore(b); err != nil {
			if !errors.Is(err, ErrCookie) {
				t.Error(err)
			}
			return
		}
		third := &Pull{}
		if err := third.restore(again.Cookie()); err != nil {
			t.Error(err)
		}
	})
}

// decode holds no more than it was told, whatever comes.
func FuzzDecode(f *testing.F) {
	base := bytes.Repeat([]byte("the version before; "), 100)
	next := append(bytes.Clone(base), "and more"...)
	codec, payload := Encode(next)
	f.Add(int32(codec), payload, uint64(len(next)), base)
	codec, payload = EncodeWith(next, base)
	f.Add(int32(codec), payload, uint64(len(next)), base)
	f.Add(int32(0), next, uint64(len(next)), base)
	f.Fuzz(func(t *testing.T, codec int32, payload []byte, length uint64, base []byte) {
		out, err := decode(wire.Codec(codec), payload, length%(1<<20), base)
		if err == nil && uint64(len(out)) != length%(1<<20) {
			t.Errorf("%d bytes", len(out))
		}
	})
}

// What a node says is checked before it means anything.
func FuzzUp(f *testing.F) {
	for _, m := range []*wire.Up{
		{Kind: &wire.Up_Pull{Pull: &wire.Pull{Id: 1, Reference: "r.example/a:1", Tables: make([]byte, 16), Got: []*wire.Got{{Runs: []uint32{3, 1 << 31, 1 << 31, 1 << 31}}}}}},
		{Kind: &wire.Up_Demand{Demand: &wire.Demand{Pull: 1, Chunks: []uint32{1, 2}}}},
		{Kind: &wire.Up_Cancel{Cancel: &wire.Cancel{Pull: 1}}},
	} {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &wire.Up{}
		if proto.Unmarshal(b, m) != nil || checkUp(m) != nil {
			return
		}
		for _, g := range m.GetPull().GetGot() {
			last := int64(-1)
			Expand(g, 1<<16, func(c uint32) {
				if int64(c) <= last || c >= 1<<16 {
					t.Fatalf("%d after %d", c, last)
				}
				last = int64(c)
			})
		}
	})
}

// However a stream of frames is cut, the same bytes are found in it.
func FuzzDataCounter(f *testing.F) {
	f.Add([]byte{0, 0, 3, 0, 0, 0, 0, 0, 1, 'a', 'b', 'c', 0, 0, 1, 8, 0, 0, 0, 0, 0, 'x'}, uint8(5))
	f.Fuzz(func(t *testing.T, b []byte, step uint8) {
		var whole, parts dataCounter
		want := whole.count(b)
		var got int64
		for len(b) > 0 {
			n := min(int(step)%7+1, len(b))
			got += parts.count(b[:n])
			b = b[n:]
		}
		if got != want || whole != parts {
			t.Errorf("%d and %d", got, want)
		}
	})
}
