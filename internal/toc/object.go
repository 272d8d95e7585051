package toc

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
)

// ObjectID names the content of one regular file by what was proved of it:
// its size and the IDs of its chunks in order. It is not the digest of the
// file, which a table of contents can claim but nobody can check before the
// last byte has arrived; a forged claim would let one image name another's
// content.
type ObjectID [sha256.Size]byte

// String returns the ID in 64 hex digits.
func (id ObjectID) String() string { return hex.EncodeToString(id[:]) }

// ObjectID computes the ID of the content of the regular file at entry:
// SHA-256 over "airstream object 1\n", then the size as 8 bytes, then for each
// chunk its size as 4 bytes and its ID, integers little-endian. Files with
// equal content that are cut alike have equal IDs in every layer and image.
func (t *Tree) ObjectID(entry uint32) ObjectID {
	h := sha256.New()
	h.Write([]byte("airstream object 1\n"))
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], uint64(t.flat.entry(entry).size))
	h.Write(n[:])
	first, end := t.Chunks(entry)
	for c := first; c < end; c++ {
		b := t.flat.chunks.at(c, chunkSize)
		h.Write(b[40:44])
		h.Write(b[:32])
	}
	return ObjectID(h.Sum(nil))
}
