// Package layer turns a layer's tar into an eStargz blob: a tar.gz that every
// container runtime unpacks as before, cut into gzip members that a lazy
// reader can fetch and verify one by one.
//
// Why not estargz.Build? Its output depends on how many workers it has and on
// the Go release that compiled it. Here the same tar and the same Options give
// the same bytes on any machine with the same binary: where members begin
// depends on uncompressed sizes alone, each is compressed by itself, and the
// compressor is a dependency with a pinned version.
//
// # Layout, format version 1
//
//	member 1   tar header of the landmark .no.prefetch.landmark
//	member 2…  content of the landmark, then the source tar's entries in order
//	TOC        one member: tar entry stargz.index.json and the end of the tar
//	footer     51 bytes: an empty member whose extra field gives the TOC's offset
//
// With Options.Prioritize the files that it names come first, with the
// directories that they are in, and behind them the landmark, which is then
// called .prefetch.landmark; the other entries follow in the order of the source.
// What a start reads is one run of the blob then, for stargz-snapshotter as well,
// which fetches what is in front of that landmark at once. If none of the files
// can be moved, the layer is as without.
//
// Headers are copied from the source as they are, byte by byte: PAX records,
// nanoseconds, names that are not UTF-8. Dropped are the landmarks and the
// table of an eStargz source and the padding behind the last entry. Sparse
// entries are written out in full, because no reader of chunks knows holes.
//
// A member begins
//   - at every chunk, that is at every multiple of Options.ChunkSize in a
//     file's content. With Options.GroupSize, a chunk joins the member before
//     it while that is smaller than GroupSize;
//   - at a header, where maxHeaderRun bytes of other headers already follow
//     the last content: a lazy reader fetches all that lies between two
//     chunks, and should not have to pay for ten thousand symbolic links.
//
// So a member holds at most ChunkSize + GroupSize bytes of content. What a
// chunk is called doesn't depend on how chunks are grouped.
//
// The table lists what an unpacker would have at the end and not what the tar
// says on the way: of duplicate names the last one, hardlinks of a replaced
// file under the name that is left, entries below a symbolic link at the place
// they go to. Entries are in the order of the tar, JSON without indentation.
// Three things go beyond what stargz writes and are read by it without harm:
// modtime keeps the fraction of a second, a header that begins a member has an
// offset, and names that are not UTF-8 are given a second time as base64 in
// rawName and rawLinkName, while name and linkName show the odd bytes as \xNN.
//
// # What grouping saves, and costs
//
// November 2026, chunks of 64 KiB, in MB, tables included. "start" is what a
// lazy reader fetches of the 3.12 tree for the 176 files that python3 reads to
// import asyncio, http.server, ssl, sqlite3 and some others:
//
//	                   Python 2.7   Python 3.12   start
//	tar                     107.3         306.4
//	gzip -9, whole           28.64         86.46
//	no grouping              34.82        100.29   4.00
//	16 KiB                   32.82         96.30   4.78
//	32 KiB                   31.37         93.34   5.37
//	64 KiB                   30.66         91.58   6.47
//	128 KiB                                90.06   8.08
//	estargz.Build            34.91        100.30
//
// So grouping makes an image smaller by up to a tenth and a first start larger
// by half: a group drags in neighbours that nobody wanted. It will pay when the
// files of a start lie next to each other. Until then it is off unless asked
// for, also because estargz's VerifyTOC refuses a table in which two chunks
// begin at one offset (stargz-snapshotter itself does not).
package layer

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/airstream-io/airstream/internal/chunk"
)

// Format is the version of the layout. It changes whenever the same source
// would give other bytes, also by a new version of the compressor: the golden
// test says when that is.
const Format = 1

// Limits on what is accepted.
const (
	MinChunkSize  = 4 << 10        // below, the table outgrows what it describes
	MaxChunkSize  = 8 << 20        // bounds the memory; readers accept chunk.MaxSize
	MaxGroupSize  = 1 << 20        // a lone small file drags in this much
	maxEntries    = 2 << 20        // as internal/toc
	maxLayerSize  = int64(1) << 40 // bytes of tar, holes written out
	maxHeaderRun  = 16 << 10       // bytes; see the package comment
	maxHeaderSize = 4 << 20        // bytes of one entry's headers
)

// ErrInvalid says that bytes are not a tar that can be unpacked as a layer.
var ErrInvalid = errors.New("invalid layer")

// Options say how a layer is cut. The zero value is what Airstream uses.
type Options struct {
	// ChunkSize is where files are cut, in bytes; 0 means chunk.DefaultSize.
	ChunkSize int64
	// GroupSize is the size in bytes up to which chunks share a member; 0
	// means that they don't.
	GroupSize int64
	// Prioritize names files, by path, that are written before all others, in
	// this order, as far as the tar has them and they can be moved without
	// harm.
	Prioritize []string
}

// Validate checks the sizes.
func (o Options) Validate() error {
	if s := o.chunkSize(); s < MinChunkSize || s > MaxChunkSize {
		return fmt.Errorf("layer: chunk size %d: want %d to %d bytes", s, MinChunkSize, MaxChunkSize)
	}
	if o.GroupSize < 0 || o.GroupSize > MaxGroupSize {
		return fmt.Errorf("layer: group size %d: want 0 to %d bytes", o.GroupSize, MaxGroupSize)
	}
	return nil
}

func (o Options) chunkSize() int64 {
	if o.ChunkSize == 0 {
		return chunk.DefaultSize
	}
	return o.ChunkSize
}

// Tar is an uncompressed tar, given as anything that can be read at random:
// a file on disk, so that its size doesn't matter to memory.
type Tar struct {
	io.ReaderAt
	Size int64 // bytes
}

// Scratch makes a file that is gone when it is closed, and when the process
// dies.
type Scratch func() (*os.File, error)
