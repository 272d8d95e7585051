// Package layerfs serves the file trees of layers through FUSE: one mount for
// the node, a directory for each layer below it, to be stacked by overlayfs.
//
//	<mount>/<slot>       the layer as a lower directory: whiteouts and opaque
//	                     directories in the form that overlayfs understands
//	<mount>/<slot>.base  the same layer as the lowest of an image: without
//	                     them, since there is nothing that they could hide and
//	                     an unpacker leaves none behind
//
// The tree never changes, so the kernel may keep for ever what it has been
// told, and a warm tree costs what a local file system costs. Files whose
// content is complete are opened in passthrough mode where the kernel has it
// (Linux 6.9): their reads don't come here at all.
//
// What has not crossed the link yet is waited for: a look-up for the layer's
// TOC, a read for its bytes. Each request waits by itself, without a lock, in
// a goroutine of its own; nothing that waits holds up anything else.
//
// # Node ids
//
// A node id, which is the inode number too, is computed:
//
//	63            33 32            32 31      0
//	[ slot+1        ][ 1 = base view ][ entry  ]
//
// Slots are never reused and entries are counted in the order of the TOC, so
// the ids mean the same in every process that opens the same state, and the
// process that serves a mount needs nothing from the one before it: no table
// of inodes, no counts of look-ups, no numbers of open files. Node 1 is the
// root of the mount. MaxSlot leaves the seven highest bits zero; overlayfs
// puts a layer number there if it is mounted with xino.
//
// # Handover
//
// A Keeper holds a duplicate of the connection's descriptor, and of the state
// (state.go): memory in which lies what was negotiated, each request that is
// worked on, and each file that is open and how. So a process may die at any
// moment, and the next one goes on where it was: nobody who waits gets an error.
//
//   - Requests that the dead process had read and not answered come again: from
//     Linux 6.9 on the kernel resends them (FUSE_NOTIFY_RESEND), before that
//     they are taken from the state.
//   - Those that nobody had read are still in the kernel's queue.
//   - The kernel refuses to open a file in another way than it is open in, so
//     the next process opens it in the same. Backing files belong to the
//     connection, not to the process that registered them: programs that run
//     from passed-through files don't notice that nobody is there.
//
// # Interrupts
//
// The kernel reports any signal to a process whose request waits, also those
// that Go's scheduler sends itself or that announce a dead child. A read that
// failed on those would be an I/O error to most programs, and SIGBUS where the
// file is mapped. So a wait ends when the process is dying or is asked to end,
// and goes on otherwise, as with a hard NFS mount (interrupt.go).
//
// # The serving process
//
// It may open and read files of its own tree, but must not map them into its
// memory, nor start a program from it or in one of its directories: in a page
// fault, and between fork and exec, the Go runtime can't go on, and with it
// what is waited for.
package layerfs

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/airstream-io/airstream/internal/toc"
)

// ErrUnavailable is for errors of Layers and Content that say: the bytes are
// not here, and by policy nobody waits for them. The reader gets EIO.
var ErrUnavailable = errors.New("layerfs: content is not on this node and may not be waited for")

// MaxSlot is the highest slot that a layer can have.
const MaxSlot = 1<<23 - 1

const rootID = 1 // FUSE_ROOT_ID

// forever is how long the kernel may keep what it is told; the protocol takes
// seconds in 64 bits, the kernel cuts them to what its clock can hold.
const forever = math.MaxInt32 * time.Second

// Layers is what the tree is made from. All methods may be called
// concurrently. A wait ends with ctx, whose error it then returns; until then
// it may last for days.
type Layers interface {
	// Tree returns the file tree of the layer in slot, waiting while its TOC
	// is still crossing the link. It is asked on each request, so it must be
	// quick when the tree is there. A slot that was never given away, or
	// whose layer was deleted, is fs.ErrNotExist.
	Tree(ctx context.Context, slot uint32) (*toc.Tree, error)
	// Open returns the content of the regular file at entry of the layer. The
	// same file may be opened more than once at a time.
	Open(ctx context.Context, slot, entry uint32) (Content, error)
}

// Content is the content of one regular file. Its methods may be called
// concurrently; Close is called once, after the last of the others returned.
type Content interface {
	// ReadAt fills p with bytes from off on, fewer only where the file ends
	// (with or without io.EOF), waiting for those that have not crossed yet.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	// Complete returns a file that holds exactly the content, if all of it is
	// on disk and verified, or nil. It is valid until Close.
	Complete() *os.File
	Close() error
}

// tree implements fuse.RawFileSystem.
type tree struct {
	fuse.RawFileSystem
	layers Layers
	log    *slog.Logger
	files  files
	alive  func() bool   // the kernel still listens
	ending chan struct{} // closed when the server closes or leaves

	// Set before the first request.
	observer  Observer            // nil if nobody observes
	noOpenDir bool                // the kernel does without OPENDIR
	repeated  map[uint64]struct{} // numbers of requests that another process has begun

	complained struct {
		sync.Mutex
		nodes map[uint64]struct{} // guarded by the mutex
	}
	stats stats
}

// stats counts requests.
type stats struct{ lookups, opens, passthrough, reads, xattrs atomic.Uint64 }

func newTree(layers Layers, log *slog.Logger) *tree {
	t := &tree{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		layers:        layers,
		log:           log,
		alive:         func() bool { return true },
		ending:        make(chan struct{}),
	}
	t.files.open = make(map[uint64]*file)
	t.files.again = make(map[uint64]struct{})
	t.repeated = make(map[uint64]struct{})
	t.complained.nodes = make(map[uint64]struct{})
	return t
}

func (t *tree) String() string { return "airstream" }

// node is a node id taken apart. It is not for the root of the mount.
type node struct {
	slot  uint32
	base  bool
	entry uint32
}

func (n node) id() uint64 {
	view := uint64(n.slot+1) << 1
	if n.base {
		view |= 1
	}
	return view<<32 | uint64(n.entry)
}

// at returns the node of another entry in the same view of the same layer.
func (n node) at(entry uint32) node { n.entry = entry; return n }

// parseID takes a node id apart; ok is false for the root of the mount.
func parseID(id uint64) (n node, ok bool) {
	slot := id >> 33
	if slot == 0 || slot > MaxSlot+1 {
		return node{}, false
	}
	return node{slot: uint32(slot - 1), base: id>>32&1 == 1, entry: uint32(id)}, true
}

// DirName returns the name of a layer's directory below the mount.
func DirName(slot uint32, base bool) string {
	name := strconv.FormatUint(uint64(slot), 10)
	if base {
		name += ".base"
	}
	return name
}

// ParseDirName is the inverse of DirName.
func ParseDirName(name string) (slot uint32, base, ok bool) {
	digits, base := strings.CutSuffix(name, ".base")
	n, err := strconv.ParseUint(digits, 10, 32)
	if err != nil || n > MaxSlot || DirName(uint32(n), base) != name {
		return 0, false, false
	}
	return uint32(n), base, true
}

// locate returns the node with this id and the tree that it is in, waiting for
// the tree if need be.
func (t *tree) locate(ctx context.Context, id uint64) (n node, tr *toc.Tree, err error) {
	n, ok := parseID(id)
	if !ok {
		return n, nil, fs.ErrNotExist
	}
	tr, err = t.layers.Tree(ctx, n.slot)
	if err != nil {
		return n, nil, err
	}
	if uint64(n.entry) >= uint64(tr.Len()) {
		return n, nil, fs.ErrNotExist
	}
	return n, tr, nil
}

// hidden says whether the view doesn't show an entry.
func (n node) hidden(tr *toc.Tree, entry uint32) bool { return n.base && tr.IsWhiteout(entry) }

// status translates an error for the kernel, the only place where that is
// done, and logs those that a user of the file can't know the reason of.
func (t *tree) status(ctx context.Context, id uint64, err error) fuse.Status {
	var errno syscall.Errno
	switch {
	case err == nil:
		return fuse.OK
	case errors.Is(err, fs.ErrNotExist):
		return fuse.ENOENT
	case ctx.Err() != nil: // and nothing else, or a program would see EINTR without a signal
		return fuse.EINTR
	case !errors.Is(err, ErrUnavailable) && errors.As(err, &errno) && (errno == syscall.EMFILE || errno == syscall.ENFILE || errno == syscall.ENOMEM):
		return fuse.Status(errno) // of the node, and may pass
	}
	t.complain(id, err)
	return fuse.EIO
}

// complain logs an error once for each file.
func (t *tree) complain(id uint64, err error) {
	const remembered = 4096 // of files that failed; more begin anew
	t.complained.Lock()
	_, known := t.complained.nodes[id]
	if !known {
		if len(t.complained.nodes) >= remembered {
			clear(t.complained.nodes)
		}
		t.complained.nodes[id] = struct{}{}
	}
	t.complained.Unlock()
	if !known {
		n, _ := parseID(id)
		t.log.Error("file can't be served", slog.Uint64("slot", uint64(n.slot)), slog.Uint64("entry", uint64(n.entry)), slog.Any("error", err))
	}
}
