// Package delta makes, of what a receiver has and what it wants, the fewest
// bytes that turn the one into the other, and applies them.
//
// It works on the content of regular files. Names, modes and times don't cross
// here, nor do chunk IDs unless asked for: a receiver learns them from tables of
// contents.
//
// Encode plans first: content that the receiver has in any file costs nothing,
// everything else gets a base (plan.go). Files with their bases are then coded
// in groups, so small that the sender can hold a group's bases and sort them.
//
// # Format, version 1
//
// Integers are uvarints as in encoding/binary unless said otherwise.
//
//	8 bytes   "ASdelta" and 1, the version
//	integer   length of the header, at most 1 MiB
//	header    profile (0 default, 1 fast, 2 slow: larger tables); chunk size; 1 if chunk IDs cross, else 0; bytes of memory that
//	          Apply needs beyond the bases; number of wanted files in the list
//	          that indices refer to; number of files in the delta; sum of their
//	          sizes; number of sets; for each set the length of its name, the
//	          name, and how many files it has
//	frames    1 byte stream, integer length (1 to 64 KiB), bytes of the stream
//	          stream 1: the model's code (package entropy)
//	          stream 2: literals, zstd with a window of at most 8 MiB
//	          stream 0: the end: 16 bytes, the start of the SHA-256 over all
//	          chunk IDs in the order in which the delta has them. Nothing follows.
//
// A reader never has to keep more than 4 MiB of one stream to get on with the
// other.
//
// The model's code holds groups: how many pieces (0: no more groups), how many
// bases, for each base its place in all sets laid end to end, as the distance
// from behind the base before, and, if its file is longer than 96 MiB, offset
// and length; then 32 bits of a check over the bases' content. A piece is up to
// 96 MiB of a file; a longer file is as many pieces as it takes, behind each
// other. A file's first piece begins with its index (distance from behind the
// one before) and its size. Then, in each piece: the number of the base that it
// resembles most, plus 1; the number of segments, and for each the gap before
// it, its length and where its old bytes are (package bindiff), in the group's
// bases laid end to end; then how often the prediction of segments' bytes is
// right before it is wrong, and by how much it is wrong then. Gaps are literals,
// in stream 2 or, as a flag of the piece says, in the model's code.
// Chunk IDs, if they cross, stand in the literals before their file. The order
// is that of code.go, which both sides run.
//
// A version is never changed once a release could write it.
package delta

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/airstream-io/airstream/internal/chunk"
)

const (
	magic = "ASdelta\x01"
	// pieceSize bounds what is aligned at a time, and the longest stretch of a
	// base, in bytes.
	pieceSize = 96 << 20
	maxHeader = 1 << 20
	// maxSegments is how many segments a piece may have: 36 bytes of memory each.
	maxSegments = 1 << 18
)

// Content is the content of one file.
type Content interface {
	io.ReaderAt
	io.Closer
}

// File is one regular file that somebody has or wants.
type File struct {
	Path   string // as in the image, "/" between elements
	Size   int64  // bytes
	Chunks []chunk.ID
	Open   func(ctx context.Context) (Content, error)
}

// key names content: its size and chunk IDs.
type key [sha256.Size]byte

func (f *File) key() key {
	h := sha256.New()
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], uint64(f.Size))
	h.Write(n[:])
	for i := range f.Chunks {
		h.Write(f.Chunks[i][:])
	}
	return key(h.Sum(nil))
}

// Set is content that a receiver may have, as a whole: a layer, or a directory.
// Both sides must list the same files in the same order under the name.
type Set struct {
	Name  string // at most 255 bytes; e.g. the digest of a layer's table
	Files []File
}

// Errors of Apply and ReadHeader, wrapped with what they are about.
var (
	// ErrFormat says that the bytes are not a delta, or damaged.
	ErrFormat = errors.New("not a delta of version 1, or damaged")
	// ErrBase says that a base is missing or not what the delta was made from.
	ErrBase = errors.New("base is missing or is not what the delta was made from")
	// ErrTooLarge says that the delta needs more than the receiver allows.
	ErrTooLarge = errors.New("delta needs more than is allowed")
)

// Profile is how much time a delta may take, at both ends.
type Profile uint8

const (
	// Default decodes at 20 MB/s or more, in 96 MiB beyond the bases.
	Default Profile = iota
	// Fast is for deltas that somebody waits for: bases are sampled, not sorted.
	Fast
	// Slow models all literals. It decodes at about 1 MB of literals a second, in
	// 208 MiB beyond the bases.
	Slow
	profiles
)

// slowTables is by how many bits the slow profile's tables are larger.
const slowTables = 3

// Options says how Encode works. The zero value serves most.
type Options struct {
	// ChunkSize is where files were cut for File.Chunks, in bytes; 0 for
	// chunk.DefaultSize. Chunk i of a file is at i*ChunkSize.
	ChunkSize int
	// IDs makes chunk IDs cross, 32 bytes each, for a receiver without the table
	// of what it wants.
	IDs     bool
	Profile Profile
	// Report, if set, is told of each file in the order of the delta, a file
	// longer than a piece once for each. It is called from one goroutine at a time.
	Report func(Piece)
}

// Piece says how a stretch of a wanted file is coded.
type Piece struct {
	Index     int    // of the file
	Path      string // of the file
	Base      string // path of the file that it resembles most, "" if none is known
	Predicted bool   // references are predicted
	Size      int64  // bytes
	Aligned   int64  // bytes that resemble a base
	Missed    int64  // bytes of those that were not predicted
	Literal   int64  // bytes without counterpart
}

func (o Options) chunkSize() (int, error) {
	if o.ChunkSize == 0 {
		return chunk.DefaultSize, nil
	}
	if o.ChunkSize < 1 || o.ChunkSize > chunk.MaxSize {
		return 0, fmt.Errorf("delta: chunks of %d bytes, the limit is %d", o.ChunkSize, chunk.MaxSize)
	}
	return o.ChunkSize, nil
}

// Stats says what Encode did.
type Stats struct {
	Same    int   // wanted files whose content the receiver has, or gets under another index
	Files   int   // files in the delta
	Bytes   int64 // their sizes
	Aligned int64 // bytes of them that resemble a base
	Missed  int64 // bytes of those that were not predicted
	Literal int64 // bytes without counterpart
	Written int64 // bytes of the delta
}
