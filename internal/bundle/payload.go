package bundle

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io/fs"

	"github.com/opencontainers/go-digest"
)

// Sum is a SHA-256.
type Sum = [sha256.Size]byte

// SumOf returns the bytes of a SHA-256 digest.
func SumOf(d digest.Digest) (Sum, error) {
	var s Sum
	b, err := hex.DecodeString(d.Encoded())
	if err != nil || len(b) != len(s) || d.Algorithm() != digest.SHA256 {
		return s, damaged("digest %q: only sha256 is supported", d)
	}
	return Sum(b), nil
}

// DigestOf returns a SHA-256 as OCI writes it.
func DigestOf(s Sum) digest.Digest { return digest.NewDigestFromBytes(digest.SHA256, s[:]) }

// Document is a manifest or index of OCI.
type Document struct {
	MediaType string // at most 255 bytes
	Body      []byte
}

// Encode returns the payload.
func (d *Document) Encode() []byte {
	b := append([]byte{byte(len(d.MediaType))}, d.MediaType...)
	return append(b, d.Body...)
}

// ParseDocument reads a payload. Body is a part of it.
func ParseDocument(p []byte) (d Document, err error) {
	c := &cursor{b: p}
	d.MediaType = string(c.take(uint64(c.byte())))
	d.Body = c.b
	return d, c.end("document")
}

// Part is a piece of content that is named by the digest of the whole.
type Part struct {
	Sum    Sum
	Size   int64 // bytes of the whole
	Offset int64
	At     int64 // of a table: where it begins in the layer blob
	Data   []byte
}

const maxBlob = 1 << 40 // bytes; larger than any layer

// Encode returns the payload, of a table or of a blob.
func (p *Part) Encode(kind Kind) []byte {
	b := make([]byte, 0, len(p.Data)+56)
	b = append(b, p.Sum[:]...)
	b = le.AppendUint64(b, uint64(p.Size))
	b = le.AppendUint64(b, uint64(p.Offset))
	if kind == KindTable {
		b = le.AppendUint64(b, uint64(p.At))
	}
	return append(b, p.Data...)
}

// ParsePart reads a payload of a kind. Data is a part of it.
func ParsePart(kind Kind, b []byte) (p Part, err error) {
	c := &cursor{b: b}
	p.Sum = c.sum()
	p.Size, p.Offset = c.i64(), c.i64()
	if kind == KindTable {
		p.At = c.i64()
	}
	p.Data = c.b
	if err := c.end(kind.String()); err != nil {
		return Part{}, err
	}
	if p.Size > maxBlob || p.At > maxBlob || p.Offset > p.Size || int64(len(p.Data)) > p.Size-p.Offset {
		return Part{}, damaged("a part of %d bytes from %d on, of %d", len(p.Data), p.Offset, p.Size)
	}
	return p, nil
}

// Run is chunks of a table that follow each other.
type Run struct {
	Table int // place in Tables
	First uint32
	Count uint32 // at least 1
}

// Chunks is content of chunks.
type Chunks struct {
	Tables []Sum // digests of tables of contents
	Runs   []Run
	Data   []byte // content of the chunks in Runs, one after the other
}

// Encode returns the payload.
func (g *Chunks) Encode() []byte {
	b := make([]byte, 0, len(g.Data)+40*len(g.Tables)+8*len(g.Runs)+16)
	b = appendSums(b, g.Tables)
	b = binary.AppendUvarint(b, uint64(len(g.Runs)))
	for _, r := range g.Runs {
		b = binary.AppendUvarint(b, uint64(r.Table))
		b = binary.AppendUvarint(b, uint64(r.First))
		b = binary.AppendUvarint(b, uint64(r.Count))
	}
	return append(b, g.Data...)
}

// ParseChunks reads a payload. Data is a part of it.
func ParseChunks(p []byte) (g Chunks, err error) {
	c := &cursor{b: p}
	g.Tables = c.sums()
	n := c.count(3)
	g.Runs = make([]Run, 0, n)
	for range n {
		r := Run{Table: c.index(len(g.Tables)), First: c.u32(), Count: c.u32()}
		if r.Count == 0 || r.First+r.Count < r.First {
			c.fail()
		}
		g.Runs = append(g.Runs, r)
	}
	g.Data = c.b
	return g, c.end("chunks")
}

// Object names content that a delta is made from.
type Object struct {
	ID     Sum
	Size   int64
	Chunks uint32
}

// Target is a file that a delta makes.
type Target struct {
	Table int // place in Tables
	Entry uint32
}

// Delta says what a delta, whose bytes come as a blob, makes of what. What those
// bytes mean, only its codec knows.
type Delta struct {
	Codec   string
	Sum     Sum // of the blob
	Bases   []Object
	Tables  []Sum
	Targets []Target
}

// Encode returns the payload.
func (d *Delta) Encode() []byte {
	b := binary.AppendUvarint(nil, uint64(len(d.Codec)))
	b = append(b, d.Codec...)
	b = append(b, d.Sum[:]...)
	b = binary.AppendUvarint(b, uint64(len(d.Bases)))
	for _, o := range d.Bases {
		b = append(b, o.ID[:]...)
		b = binary.AppendUvarint(b, uint64(o.Size))
		b = binary.AppendUvarint(b, uint64(o.Chunks))
	}
	b = appendSums(b, d.Tables)
	b = binary.AppendUvarint(b, uint64(len(d.Targets)))
	for _, t := range d.Targets {
		b = binary.AppendUvarint(b, uint64(t.Table))
		b = binary.AppendUvarint(b, uint64(t.Entry))
	}
	return b
}

// ParseDelta reads a payload.
func ParseDelta(p []byte) (d Delta, err error) {
	c := &cursor{b: p}
	d.Codec = string(c.take(c.uvarint()))
	d.Sum = c.sum()
	n := c.count(34)
	for range n {
		o := Object{ID: c.sum(), Size: int64(c.uvarint()), Chunks: c.u32()}
		if o.Size < 0 || o.Size > maxBlob {
			c.fail()
		}
		d.Bases = append(d.Bases, o)
	}
	d.Tables = c.sums()
	for range c.count(2) {
		d.Targets = append(d.Targets, Target{Table: c.index(len(d.Tables)), Entry: c.u32()})
	}
	if len(c.b) > 0 {
		c.fail()
	}
	return d, c.end("delta")
}

func appendSums(b []byte, sums []Sum) []byte {
	b = binary.AppendUvarint(b, uint64(len(sums)))
	for _, s := range sums {
		b = append(b, s[:]...)
	}
	return b
}

// checkPath refuses names of files that don't stay where they are put.
func checkPath(name string) error {
	if !fs.ValidPath(name) || name == "." || len(name) > 4096 {
		return damaged("file name %q: want a relative path without ..", name)
	}
	return nil
}
