// Package link is the wire between a node and a shore proxy, both ends of it.
//
// A node opens one session, a gRPC stream over mutual TLS, and keeps it for as
// long as there is a link. In it the node asks for images, and the proxy sends
// what the node lacks of them, in the order in which it will be wanted. One
// request, one answer: a warm session brings the first chunk of a start one
// round trip after the question.
//
// # Records, pieces, lanes
//
// What the proxy sends are records: a manifest, a config, a table of contents, a
// chunk. A record crosses in small pieces, so that a more urgent one need not
// wait for its end: each piece names its lane, one for each class of urgency,
// and within a lane records follow each other. A piece that begins a record
// carries its Head; from the Head's size the receiver knows which is the last.
// The sender holds back what the socket would only queue (see Sender), so that
// "urgent" is decided a few kilobytes before the link and not a megabyte.
//
// # A pull
//
// The node names a reference, a platform, how much it wants, and which complete
// images it has. The answer is, in this order: the manifests (an index first, if
// the reference names one), the config, the Plan, and then the plan's items:
// tables of contents, the chunks that a start reads in the order of its trace,
// and, if asked for, the rest. Done ends it. Chunks are named by the layer's
// place in the manifest and their number in its table, which costs a few bytes
// and is checked against the chunk ID that the table has. The node may demand
// any chunk at any time; it comes in the first lane and is left out of the plan.
//
// What several pulls of a session want crosses once: both ends count the records
// that came whole, and the node says the count with what it wants, so that the proxy
// knows what is on its way. A demand that another pull's chunk meets is withdrawn
// without a word.
//
// # Terms
//
// The node says at what rate, and in which lanes, its policy lets things cross now. The
// proxy keeps to that from then on. What is no content, and records that somebody waits
// for, cross in lanes that are held back, too.
//
// # Trust
//
// The node believes nothing: manifests and configs are compared with their
// digests, tables with the digest that the manifest gives, chunks with their IDs,
// all of it before the Sink sees it. What a record may hold is bounded by its kind,
// items of a plan come in rising order, chunks that are not of the plan must have
// been demanded. A proxy that breaks one of these rules loses the session
// (ErrProtocol).
//
// Layers that were never converted have no table that the image vouches for. A node
// that says so in its request takes an outline (package toc) on the proxy's word,
// for such a layer alone, and compares the layer's diffID when all of it is here.
//
// # Resuming
//
// A plan is the same for the same manifest, depth and inventory, whichever
// proxy computes it, and items are numbered. So the state of a pull is small:
// the digest of the plan, the last item that came, the beginning of the one that
// broke off, and which later ones came on demand. Session sends it whenever it
// connects again; Pull.Cookie is the same for the disk. If the plan has changed
// meanwhile, the pull begins anew.
//
// # The rest
//
// The messages are in wire/link.proto. Field numbers never change their meaning;
// unknown fields are ignored, unknown kinds of records are passed over. A change
// that an older end would misunderstand gets a new service name.
package link

import (
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/link/wire"
)

// Bounds on what one record may hold, in bytes.
const (
	MaxManifest = 4 << 20  // as registries have it
	MaxConfig   = 8 << 20  // real ones have some kilobytes
	MaxTable    = 64 << 20 // as it crosses; the fetcher's own limit
	maxExpanded = 256 << 20
	maxPayload  = chunk.MaxSize + 64<<10 // of a chunk; what doesn't compress grows a little
	maxText     = 4 << 10
	maxHave     = 256  // images in an inventory
	maxWarm     = 32   // and of which the hot set is here; each costs the proxy a look at its plans
	maxTables   = 4096 // tables in a request
)

// Lane is a class of urgency; the lower goes first.
type Lane uint8

// The lanes, in their order.
const (
	Demand Lane = iota // somebody waits for it, and what a pull begins with
	Hot                // a start will read it
	Rest               // completes the image
	NumLanes
)

// Depth says how much of an image is wanted.
type Depth = wire.Depth

// The depths.
const (
	Names = wire.Depth_DEPTH_NAMES // manifests, config and tables
	Start = wire.Depth_DEPTH_HOT   // and what a start reads
	All   = wire.Depth_DEPTH_ALL   // and the rest
)

// ErrProtocol says that the other end broke a rule of the protocol.
var ErrProtocol = errors.New("the other end breaks the protocol")

func broken(format string, args ...any) error {
	return fmt.Errorf("link: %w: "+format, append([]any{ErrProtocol}, args...)...)
}

// Refusal is why a proxy does not serve a request.
type Refusal struct {
	Reason wire.Reason
	Text   string
	Since  time.Time // since when it is so; zero: unknown
}

// Error implements error.
func (r *Refusal) Error() string {
	s := "link: refused: " + r.Text
	if !r.Since.IsZero() {
		s += ", since " + r.Since.UTC().Format(time.RFC3339)
	}
	return s
}

// Temporary tells whether waiting can help.
func (r *Refusal) Temporary() bool {
	return r.Reason == wire.Reason_REASON_UPSTREAM || r.Reason == wire.Reason_REASON_LIMIT
}

// Manifest is a manifest or index that was compared with its digest.
type Manifest struct {
	MediaType string
	Digest    digest.Digest
	Body      []byte
	Index     bool // it lists the manifest that follows
}

// Table is a layer's table of contents that was compared with its digest. What
// is in Body depends on Format; see Tables.
type Table struct {
	Layer   int
	Desc    ocispec.Descriptor // of the layer, as the manifest has it
	Format  string
	Digest  digest.Digest // of Body
	Payload int64         // bytes of the blob before its table, or of the tar; chunks lie within them
	DiffID  digest.Digest // of an outline: what the tar that it makes must have
	Body    []byte
}

const (
	// FormatEStargz is the table of contents as eStargz has it: JSON, whose digest
	// is the layer's annotation.
	FormatEStargz = "estargz.v1"
	// FormatOutline is the table of a layer that was never converted, an outline of
	// package toc. Nothing in the image says what its digest must be: it is the
	// proxy's word, until the whole layer is here and its diffID can be compared.
	FormatOutline = "outline.v1"
)

// Base is a part of a file that the node has.
type Base struct {
	Table  [8]byte // how the digest of the layer's table begins
	Entry  uint32  // of the file, in the table
	Offset int64   // bytes
	Length uint32  // bytes
}
