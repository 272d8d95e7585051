package link

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"

	"github.com/airstream-io/airstream/internal/link/wire"
)

// A cookie is what a pull's next process has to know, as a file may hold it:
//
//	"ALCK1"           5 bytes
//	SHA-256           32 bytes, of all that follows
//	length, manifest  4 bytes big-endian, and the manifest; none if it had not come
//	length, request   likewise: a wire.Pull with resume, got and partial
//	payloads          of the partials, in their order, offset bytes each
//
// One of another version is as good as none.
const cookieMagic = "ALCK1"

// ErrCookie says that a cookie is damaged or another version's.
var ErrCookie = errors.New("link: not a resume cookie of this version")

// describe writes the state into a request. Pull.mu is held.
func (s *pullState) describe(m *wire.Pull) {
	if s.manifest != "" && s.config {
		sum, err := hex.DecodeString(s.manifest.Encoded())
		if err != nil || len(sum) != sha256.Size {
			return
		}
		m.Resume = &wire.Resume{Manifest: sum, Plan: s.plan, Position: s.position}
	}
	byLayer := map[uint32][]uint32{}
	for k, item := range s.got {
		if item > 0 && item <= s.position {
			delete(s.got, k)
			continue
		}
		byLayer[k.layer] = append(byLayer[k.layer], k.chunk)
	}
	for layer, chunks := range byLayer {
		m.Got = append(m.Got, &wire.Got{Layer: layer, Runs: runsOf(chunks)})
	}
	slices.SortFunc(m.Got, func(a, b *wire.Got) int { return cmp.Compare(a.GetLayer(), b.GetLayer()) })
	for _, r := range s.partial {
		m.Partial = append(m.Partial, &wire.Partial{Head: r.head, Offset: uint64(len(r.payload))})
	}
}

// runsOf writes chunk numbers as Got has them.
func runsOf(chunks []uint32) []uint32 {
	slices.Sort(chunks)
	var runs []uint32
	next := uint32(0)
	for _, c := range chunks {
		if n := len(runs); n > 0 && c == next {
			runs[n-1]++
		} else {
			runs = append(runs, c-next, 1)
		}
		next = c + 1
	}
	return runs
}

// Expand calls f for every chunk of a Got that is below limit.
func Expand(g *wire.Got, limit uint32, f func(chunk uint32)) {
	at := uint64(0)
	for i, n := range g.GetRuns() {
		end := min(at+uint64(n), uint64(limit))
		for ; i%2 == 1 && at < end; at++ {
			f(uint32(at)) //nolint:gosec // below limit
		}
		at = end
	}
}

// Cookie returns what another process needs to go on with the pull. What the
// Sink had not made durable by then must be asked for again: take the cookie
// before the store is flushed.
func (p *Pull) Cookie() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	m, ok := proto.Clone(p.req).(*wire.Pull)
	if !ok {
		return nil
	}
	m.Id = 0
	p.state.describe(m)
	var manifest []byte
	if m.Resume != nil {
		manifest = p.raw
	}
	req, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil
	}
	var body []byte
	for _, part := range [][]byte{manifest, req} {
		body = binary.BigEndian.AppendUint32(body, uint32(len(part))) //nolint:gosec // bounded
		body = append(body, part...)
	}
	for _, r := range p.state.partial {
		body = append(body, r.payload...)
	}
	sum := sha256.Sum256(body)
	return slices.Concat([]byte(cookieMagic), sum[:], body)
}

// restore puts a pull where a cookie has it.
func (p *Pull) restore(cookie []byte) error {
	head := len(cookieMagic) + sha256.Size
	if len(cookie) < head || string(cookie[:len(cookieMagic)]) != cookieMagic {
		return ErrCookie
	}
	body := cookie[head:]
	if sum := sha256.Sum256(body); string(sum[:]) != string(cookie[len(cookieMagic):head]) {
		return fmt.Errorf("%w: it is damaged", ErrCookie)
	}
	var parts [2][]byte
	for i := range parts {
		if len(body) < 4 || uint64(binary.BigEndian.Uint32(body)) > uint64(len(body)-4) {
			return ErrCookie
		}
		n := binary.BigEndian.Uint32(body)
		parts[i], body = body[4:4+n], body[4+n:]
	}
	m := &wire.Pull{}
	if err := proto.Unmarshal(parts[1], m); err != nil {
		return fmt.Errorf("%w: %w", ErrCookie, err)
	}
	if err := p.restoreState(m, parts[0], body); err != nil {
		return err
	}
	p.req = &wire.Pull{Reference: m.GetReference(), Platform: m.GetPlatform(), Depth: m.GetDepth(), Have: m.GetHave(), Warm: m.GetWarm(), Tables: m.GetTables(), Outlines: m.GetOutlines()}
	return nil
}

func (p *Pull) restoreState(m *wire.Pull, raw, payloads []byte) error {
	r := m.GetResume()
	if r == nil {
		return nil
	}
	var parsed ocispec.Manifest
	if err := json.Unmarshal(raw, &parsed); err != nil {
		return fmt.Errorf("%w: %w", ErrCookie, err)
	}
	d := digest.NewDigestFromBytes(digest.SHA256, r.GetManifest())
	if digest.FromBytes(raw) != d {
		return ErrCookie
	}
	p.manifest, p.raw = &parsed, raw
	s := &p.state
	s.manifest, s.config, s.plan, s.position = d, true, r.GetPlan(), r.GetPosition()
	s.chunks = make([]Chunks, len(parsed.Layers))
	s.got = map[chunkKey]uint64{}
	for _, g := range m.GetGot() {
		n := uint64(len(s.got))
		for i := 1; i < len(g.GetRuns()); i += 2 {
			n += uint64(g.GetRuns()[i])
		}
		if n > maxGot {
			return ErrCookie
		}
		Expand(g, math.MaxUint32, func(c uint32) { s.got[chunkKey{g.GetLayer(), c}] = 0 })
	}
	for _, part := range m.GetPartial() {
		n := part.GetOffset()
		if n > uint64(len(payloads)) || part.GetHead() == nil {
			return ErrCookie
		}
		s.partial = append(s.partial, &record{part.GetHead(), slices.Clone(payloads[:n])})
		payloads = payloads[n:]
	}
	return nil
}

// maxGot bounds what a cookie is believed of chunks that came out of order.
const maxGot = 1 << 20
