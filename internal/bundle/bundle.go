// Package bundle is the file in which images cross where no session can: by USB
// stick, pipe, HTTP, mail or radio.
//
// A bundle is a row of records. The first one is its manifest, which lists the
// others with their hashes, says what they make, and may be signed. Whoever has
// read it knows everything that is to come and believes nothing else. The most
// important records come first, so that every beginning of a bundle is of use;
// each can be checked alone, so that damage costs what it hit and nothing else;
// and each says what it is, so that it doesn't matter when it comes.
//
// What the records hold is content that is named by digests: manifests of OCI,
// tables of contents, chunks. So the manifest's signature is about what names are
// to mean; from there on the digests are the proof, as they are for what comes from
// a registry.
//
// # Format, version 1
//
// Integers are little-endian. A bundle is
//
//	record 0       the manifest
//	records 1…n    as the manifest lists them
//	record n+1     record 0 once more, for the case that it is damaged
//
// A record is a header of 40 bytes and a payload:
//
//	 0  magic    4 B  B1 'A' 'S' 'B'
//	 4  version  u8   1
//	 5  kind     u8   see below
//	 6  flags    u8   1: compressed with zstd; 2: sealed
//	 7  priority u8   0 most important; order of records is by it
//	 8  bundle   8 B  the first bytes of the SHA-256 of the manifest's body
//	16  number   u32  place in the row, from 0 on
//	20  size     u32  bytes of payload behind the header
//	24  raw      u32  bytes of it, opened and decompressed
//	28  sum      8 B  the first bytes of the SHA-256 of the payload as it stands here
//	36  check    u32  CRC-32C of the 36 bytes before
//
// A reader that finds no valid header where one should be looks for the next magic
// that begins one of the same bundle.
//
// # Manifest, kind 1
//
//	size u32, signature     text as minisign writes it, of the body; size 0: none
//	size u32, key           an age file that holds 32 bytes, the key of sealed
//	                        records; size 0: nothing is sealed
//	body                    compressed with zstd, and sealed if there is a key
//
// The body, decompressed, is what is signed:
//
//	magic   8 B  "ASBODY01"
//	size u32, JSON   Contents
//	count u32        records but the manifest
//	for each 44 B    kind u8; priority u8; flags u8; 0; size u32; raw u32; SHA-256 of
//	                 the payload as it stands in the bundle [32]
//
// # Other kinds
//
//	2 document  a manifest or index of OCI: size u8 and media type; the bytes
//	3 blob      a part of content: SHA-256 of the whole [32], its size u64, offset
//	            u64; the bytes
//	4 table     a part of a layer's table of contents, the JSON: as blob, and before
//	            the bytes where the table begins in the layer blob, u64
//	5 chunks    uvarint and SHA-256 [32] each of the tables that runs are of;
//	            uvarint runs, for each uvarints: which table, first chunk, chunks;
//	            the content of all of them, one after the other
//	6 delta     text codec; SHA-256 [32] of the delta, whose bytes come as blob;
//	            uvarint bases, for each object ID [32], uvarint size, uvarint chunks;
//	            uvarint tables, as above; uvarint targets, for each uvarints: which
//	            table, entry. Texts are a uvarint and so many bytes.
//
// A payload, unpacked, has at most MaxPayload bytes, the manifest's body MaxBody.
//
// # Sealing
//
// A sealed payload is ChaCha20-Poly1305 of the compressed one, with the key that
// the manifest holds for the recipients, the number as nonce (u32, then 8 zero
// bytes), and the kind as additional data. Keys are never used twice.
//
// # Compatibility
//
// A reader refuses another version and skips kinds that it doesn't know. Unknown
// keys in the JSON are ignored; what an older reader must not ignore gets a new
// version. The golden file in testdata is read by every version from this one on.
package bundle

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Kind says what a record holds.
type Kind uint8

// Kinds of records.
const (
	KindManifest Kind = 1 + iota
	KindDocument
	KindBlob
	KindTable
	KindChunks
	KindDelta
)

// String returns the kind in a word.
func (k Kind) String() string {
	names := [...]string{KindManifest: "manifest", KindDocument: "document", KindBlob: "blob", KindTable: "table", KindChunks: "chunks", KindDelta: "delta"}
	if int(k) < len(names) && names[k] != "" {
		return names[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Priorities of records; those between are for senders who know better.
const (
	PriorityNames  = 10 // documents and configs
	PriorityTables = 20
	PriorityHot    = 30 // what a start reads
	PriorityRest   = 40
)

// Limits, in bytes. MaxPayload holds a chunk of the largest size that layers may
// have, 16 MiB, and what stands around it.
const (
	MaxPayload  = 16<<20 + 64<<10
	MaxBody     = 64 << 20
	maxManifest = MaxBody + 1<<20
	maxRecords  = 1 << 20 // 1 TiB of content in groups of 1 MiB
	// PartSize is how much of a blob a sender puts into one record: what a flipped bit
	// costs.
	PartSize = 1 << 20
)

const (
	headerSize = 40
	version    = 1
	magic      = "\xb1ASB"
	bodyMagic  = "ASBODY01"

	flagZstd   = 1
	flagSealed = 2
)

// Errors that callers tell apart.
var (
	// ErrDamaged says that bytes are not those that were written, or never made sense.
	ErrDamaged = errors.New("the bundle is damaged")
	// ErrNotBundle says that a stream holds no bundle, or none that this version reads.
	ErrNotBundle = errors.New("not a bundle")
	// ErrSignature says that a bundle is not signed by whom it should be.
	ErrSignature = errors.New("the bundle's signature is not valid")
	// ErrSealed says that a bundle is encrypted, and not to a key that is at hand.
	ErrSealed = errors.New("the bundle is encrypted")
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrDamaged, fmt.Errorf(format, args...))
}

// ID names a bundle: the first bytes of the SHA-256 of its manifest's body.
type ID [8]byte

// String returns the ID in 16 hex digits.
func (id ID) String() string { return fmt.Sprintf("%x", id[:]) }

// header is what stands before each payload.
type header struct {
	kind     Kind
	flags    uint8
	priority uint8
	bundle   ID
	number   uint32
	size     uint32 // bytes of payload
	raw      uint32 // bytes of it, unpacked
	sum      [8]byte
}

func (h *header) append(b []byte) []byte {
	at := len(b)
	b = append(b, magic...)
	b = append(b, version, byte(h.kind), h.flags, h.priority)
	b = append(b, h.bundle[:]...)
	b = le.AppendUint32(b, h.number)
	b = le.AppendUint32(b, h.size)
	b = le.AppendUint32(b, h.raw)
	b = append(b, h.sum[:]...)
	return le.AppendUint32(b, crc32.Checksum(b[at:], castagnoli))
}

// parseHeader reads a header; ok is false if b doesn't begin with one.
func parseHeader(b []byte) (h header, ok bool) {
	if len(b) < headerSize || string(b[:4]) != magic || le.Uint32(b[36:]) != crc32.Checksum(b[:36], castagnoli) {
		return h, false
	}
	h = header{kind: Kind(b[5]), flags: b[6], priority: b[7], bundle: ID(b[8:16]), number: le.Uint32(b[16:]), size: le.Uint32(b[20:]), raw: le.Uint32(b[24:]), sum: [8]byte(b[28:36])}
	size, raw := uint32(MaxPayload), uint32(MaxPayload)
	if h.kind == KindManifest {
		size, raw = maxManifest, MaxBody
	}
	return h, b[4] == version && h.size <= size && h.raw <= raw && h.number <= maxRecords+1
}
