// Package chunk says what a chunk is: a piece of one regular file's content,
// cut at a fixed offset, and named by the SHA-256 of its uncompressed bytes.
//
// Because the cut depends on nothing but the file, a file that doesn't change
// keeps its chunk IDs from version to version and from image to image. That
// one property serves deduplication, delta bases and peers alike.
package chunk

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// DefaultSize is where files are cut unless a converter is told otherwise, in
// bytes of uncompressed content. A miss then costs about 2 s on a 256 kbit/s
// link, where stargz's 4 MiB costs 131 s (facts: hot set granularity).
const DefaultSize = 64 << 10

// MaxSize is the largest chunk that is accepted from a table of contents, in
// bytes. Images built by others use up to 4 MiB by default; the bound keeps a
// hostile table from asking for memory without end.
const MaxSize = 16 << 20

// ErrMismatch says that bytes are not the chunk they were taken for.
var ErrMismatch = errors.New("content does not match its chunk ID")

// ID names a chunk: the SHA-256 of its uncompressed bytes.
type ID [sha256.Size]byte

// Sum returns the ID of the chunk with content p.
func Sum(p []byte) ID { return sha256.Sum256(p) }

// Verify returns ErrMismatch, wrapped with the ID, unless p is the chunk id.
func (id ID) Verify(p []byte) error {
	if Sum(p) != id {
		return fmt.Errorf("chunk %s: %w", id, ErrMismatch)
	}
	return nil
}

// String returns the ID as OCI digests are written: "sha256:" and 64 hex digits.
func (id ID) String() string { return "sha256:" + hex.EncodeToString(id[:]) }

// Parse reads an ID as String writes it.
func Parse(s string) (ID, error) {
	var id ID
	h, ok := strings.CutPrefix(s, "sha256:")
	if !ok {
		return id, fmt.Errorf("chunk ID %q: only sha256 is supported", s)
	}
	if len(h) != 2*len(id) {
		return id, fmt.Errorf("chunk ID %q: %d hex digits, want %d", s, len(h), 2*len(id))
	}
	for _, c := range []byte(h) {
		if c >= 'A' && c <= 'F' {
			return id, fmt.Errorf("chunk ID %q: upper-case hex digits", s)
		}
	}
	if _, err := hex.Decode(id[:], []byte(h)); err != nil {
		return id, fmt.Errorf("chunk ID %q: %w", s, err)
	}
	return id, nil
}
