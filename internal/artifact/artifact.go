// Package artifact holds what a node needs before the first start of an image,
// in two blobs instead of one table for each layer: the TOC of all layers, and
// the hot set, which is the content that a start reads.
//
// The converter makes both and publishes them beside the image, as an artifact
// whose subject is the image's manifest; see MediaType. The manifest's own
// annotations commit to the blobs (Ref). So a node that has verified the
// manifest knows their digests and may ask for both at once, without looking
// for referrers and without the artifact's manifest; that is there so that
// registries keep the blobs and people find them.
//
// The TOC blob begins with its root: all names and attributes as columns, and of
// files that a start reads the chunk IDs and where the chunks are. IDs and places
// of all other chunks are in pages behind the root, which commits to each by its
// SHA-256: 32 bytes that no compressor makes smaller, for files that may never be
// read. A node fetches the root with one range request, and pages when it wants
// them. What it makes of them is a toc.Tree for each layer (Root.Tree): entries and
// chunks have the numbers that they have in the tree of the layer's own JSON
// table, and with all pages it is that tree, byte for byte.
//
// The hot blob is chunks in the order in which a start reads them, in frames of
// zstd that can each be decompressed alone. A transfer that broke off goes on at
// any frame. See WriteHot for how it is made and Hot for how it is read.
//
// Bytes are hostile until their hash says otherwise, and their author may be
// hostile after that: all counts, places and sizes are checked before memory is
// given to them, and what toc.Parse would refuse is refused. Content is believed
// when it has been compared with its chunk ID.
//
// What a root says of a layer is bound to the image whose manifest names the
// root, and not to the digest of the layer's own table: to compare these one
// needs all of that table. So a tree from here is this image's. Before another
// image is served from it, which has the same layer and another root, or none, it
// must agree with what that one says (toc.Tree.Agrees), or with the layer's own
// table; else an image could change what is in another.
//
// # The TOC blob, version 1
//
// Integers are little-endian. uvarint and varint are those of encoding/binary,
// varint being the signed one. "text" is a uvarint and so many bytes.
//
//	root     its size and SHA-256 are in the manifest's annotations
//	pages    see below
//
// # Root
//
//	header   32 B  magic "ASTOCS01"; layers u32; pages u32;
//	               known u32 (chunks of which the root has the ID);
//	               cold u32 (chunks of which pages have it);
//	               frame u32 (size of a hot frame before compression; 0: no
//	               hot set); 0 u32
//	columns 128 B  for each of 16 columns: size u32, size as it is here u32
//	         …     the columns one after the other: a zstd frame, or the bytes
//	               themselves where both sizes are equal
//	pages          for each: size u16, SHA-256 [32]
//	ids            the known chunks' IDs, [32] each, by layer and number
//
// Five columns are about the image:
//
//	layers    for each layer uvarints: entries; chunk size; chunks; known ones;
//	          how many of the times are first used by layers below; and its
//	          share of each of the columns below, in bytes
//	profiles  mode, uid, gid, rdev uvarint; xattrs uvarint, and for each its
//	          name and its value, text, sorted by name
//	times     seconds varint (difference to the time before), nanoseconds
//	          uvarint; in the order in which entries use them first
//	order     the chunks of the hot blob, as runs of one layer: layer uvarint;
//	          first chunk varint (difference to the chunk behind the last run of
//	          that layer); chunks uvarint
//	frames    sizes of the hot blob's frames, uvarint
//
// The others are about each layer's entries, in the order of their numbers. The
// root directory, entry 0, has neither parent nor name; all others have one, and
// what they have beyond that, as hardlinks, is in extra.
//
//	profile   uvarint, number in profiles
//	time      uvarint: 0, the next one that no entry had before; else number in
//	          times plus 1
//	parent    uvarint: 0, that of the entry before; 1, the entry before; n < 512,
//	          what is n-1 above the parent of the entry before; else n-512
//	prefix    uvarint, bytes that the name has in common with the one before; the
//	          root's name is empty
//	name      the rest of it, and a 0 byte
//	low       of regular files the lowest byte of the size
//	high      and the rest of it, uvarint
//	link      targets of symbolic links, each and a 0 byte
//	cut       files that are not cut at multiples of the layer's chunk size:
//	          entry uvarint (difference to the one before), sizes of its chunks
//	          uvarint, which make the size of the file
//	where     for each known chunk, see below
//	extra     directory uvarint, entry uvarint, name text
//
// Known are all chunks of the files of which order names any, for the content of
// a file has no name, and no place on disk, before all its IDs are there. frames
// follow from order: a frame has as many chunks as fit in it, and at least one.
//
// # Where
//
// Where a chunk begins is said by difference to the chunk before it in the column
// or page; a layer and a page begin as if behind a member that ends at 0.
//
//	uvarint   2 × size of the gzip member that it begins in, plus 1 if more
//	          follows; size 0: that of the chunk before
//	varint    if more follows and the size isn't 0: from the end of the member
//	          before to the beginning of this one
//	uvarint   if more follows: bytes into the uncompressed stream of the member,
//	          behind the end of the chunk before if that is in it
//
// # Page
//
// Pages hold 128 chunks each, the last one what is left, by layer and number:
// all IDs, then where each is.
//
// # Compatibility
//
// A reader refuses another magic, and then does without the artifact: the layers'
// own tables say the same. Whatever changes in these formats, or in the bytes that
// the compressor makes of the same input, changes Format.
package artifact

import "errors"

// Format is the version of what the converter writes. It changes whenever the
// same image and traces would give other bytes; the golden test says when that is.
const Format = 1

// Types of the artifact and its blobs.
const (
	MediaType    = "application/vnd.airstream.artifact.v1" // the manifest's artifactType
	TOCMediaType = "application/vnd.airstream.toc.v1"
	HotMediaType = "application/vnd.airstream.hot.v1"
)

// ErrInvalid says that bytes are not what this version writes, contradict
// themselves or ask for too much.
var ErrInvalid = errors.New("not a valid artifact")

// ErrTooLarge says that an image is larger than what readers accept. It can do
// without an artifact.
var ErrTooLarge = errors.New("too large for an artifact")

// Limits on what readers accept. The largest are several times what the images
// of the test rig need, and what a small machine can give.
const (
	MaxRoot     = 32 << 20 // bytes
	maxColumns  = 32 << 20 // bytes, all columns together, decompressed
	maxLayers   = 1024     // overlayfs takes 500
	maxEntries  = 1 << 20  // in all layers
	maxChunks   = 2 << 20  // in all layers: 128 GiB of content
	maxProfiles = 1 << 16  // combinations of mode, owner, device and attributes
	maxXattrs   = 1 << 16  // in all of these
	maxHot      = 1 << 17  // chunks in the hot set: 8 GiB of content
)

// PageChunks is how many chunks a page holds. A reader of a cold file waits for
// one page, 4.4 kB: 0.14 s at 256 kbit/s. Twice as many would take 2.7 kB off
// the root of an image of 20,000 chunks, which every start waits for.
const PageChunks = 128

const (
	magic      = "ASTOCS01"
	headerSize = 32
	pageEntry  = 2 + 32 // bytes in the root for each page
	absolute   = 512    // parent codes from here on are entry numbers
)

// Columns, in the order of the root. Those from perLayer on are cut up by layer.
const (
	colLayers = iota
	colProfiles
	colTimes
	colOrder
	colFrames
	colProfile
	colTime
	colParent
	colPrefix
	colName
	colLow
	colHigh
	colLink
	colCut
	colWhere
	colExtra
	numColumns

	perLayer  = colProfile
	numShares = numColumns - perLayer
	columnsAt = headerSize + 8*numColumns // where the columns begin
)

// Run is some chunks of one layer that follow each other.
type Run struct {
	Layer int    // counted from the lowest, 0
	First uint32 // number of the chunk in the layer's tree
	Count uint32 // at least 1
}
