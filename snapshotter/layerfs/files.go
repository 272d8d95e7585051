package layerfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/airstream-io/airstream/internal/toc"
)

// How a file was opened; the number that the kernel keeps for an open file.
const (
	byCache       uint64 = iota // reads come here through the page cache
	byPassthrough               // reads go to the backing file
)

// minPassthrough is the size from which on files are passed through, in bytes.
// To open a file that way costs 14 µs more than through the cache, which also
// keeps small files after the first read (BenchmarkOpen, 2 cores, 2026-11-21).
const minPassthrough = 64 << 10

// backer is the part of a FUSE connection that passthrough needs.
type backer interface {
	RegisterBackingFd(m *fuse.BackingMap) (id int32, errno syscall.Errno)
	UnregisterBackingFd(id int32) syscall.Errno
}

// files are the contents that are open. They are kept by node and not by
// number of the open file, so that a read that belongs to an open that another
// process answered can be served all the same.
type files struct {
	mu     sync.Mutex
	open   map[uint64]*file // guarded by mu
	backer backer           // guarded by mu; nil if the kernel has no passthrough
	off    bool             // guarded by mu; passthrough does not work here
}

// file is the content of one node. The kernel refuses to have a node open in
// both ways at once, so the way that is in use is kept until its last close.
type file struct {
	content Content
	users   int   // guarded by files.mu; opens and running reads
	cached  int   // guarded by files.mu; opens by cache
	passed  int   // guarded by files.mu; opens by passthrough
	backing int32 // guarded by files.mu; valid while passed > 0
}

// acquire returns the open content of a node, opening it if need be, for which
// it may wait. drop must be called afterwards.
func (t *tree) acquire(ctx context.Context, n node) (*file, error) {
	id := n.id()
	if f := t.files.use(id); f != nil {
		return f, nil
	}
	content, err := t.layers.Open(ctx, n.slot, n.entry)
	if err != nil {
		return nil, err
	}
	t.files.mu.Lock()
	f, raced := t.files.open[id]
	if !raced {
		f = &file{content: content}
		t.files.open[id] = f
	}
	f.users++
	t.files.mu.Unlock()
	if raced {
		if err := content.Close(); err != nil {
			t.complain(id, err)
		}
	}
	return f, nil
}

// use returns the open content of a node, or nil.
func (fs *files) use(id uint64) *file {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f := fs.open[id]
	if f != nil {
		f.users++
	}
	return f
}

// drop ends one use of a file.
func (t *tree) drop(id uint64, f *file) {
	t.files.mu.Lock()
	f.users--
	last := f.users == 0
	if last {
		delete(t.files.open, id)
	}
	t.files.mu.Unlock()
	if last {
		if err := f.content.Close(); err != nil {
			t.complain(id, err)
		}
	}
}

// Open opens a regular file, by passthrough if all of its content is here.
func (t *tree) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	t.stats.opens.Add(1)
	if in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return fuse.EROFS
	}
	ctx := t.request(cancel, &in.InHeader)
	defer ctx.end()
	n, tr, err := t.locate(ctx, in.NodeId)
	if err != nil {
		return t.status(ctx, in.NodeId, err)
	}
	out.Fh = byCache
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH
	a := tr.Attr(n.entry)
	if a.Mode&toc.TypeMask != toc.TypeRegular {
		return fuse.EINVAL
	}
	if a.Size == 0 {
		return fuse.OK // nobody reads it
	}
	f, err := t.acquire(ctx, n)
	if err != nil {
		return t.status(ctx, in.NodeId, err)
	}
	if backing, ok := t.pass(f, a.Size); ok {
		t.stats.passthrough.Add(1)
		out.Fh = byPassthrough
		out.OpenFlags = fuse.FOPEN_PASSTHROUGH | fuse.FOPEN_NOFLUSH // the kernel allows no others
		out.BackingID = backing
	}
	return fuse.OK
}

// pass decides how one more open of f is done, and counts it.
func (t *tree) pass(f *file, size int64) (backing int32, ok bool) {
	t.files.mu.Lock()
	defer t.files.mu.Unlock()
	switch {
	case f.passed > 0:
		f.passed++
		return f.backing, true
	case f.cached > 0 || t.files.backer == nil || t.files.off:
		f.cached++
		return 0, false
	}
	if complete := f.content.Complete(); complete != nil && size >= minPassthrough {
		backing, err := t.files.register(complete, size)
		if err == nil {
			f.passed, f.backing = 1, backing
			return backing, true
		}
		if t.files.off {
			t.log.Info("files are not passed through", slog.Any("reason", err))
		}
	}
	f.cached++
	return 0, false
}

// register makes a file a backing file of the connection. An error that will
// meet all files turns passthrough off. It needs mu.
func (fs *files) register(complete *os.File, size int64) (int32, error) {
	info, err := complete.Stat()
	if err != nil {
		return 0, err
	}
	if info.Size() != size {
		return 0, fmt.Errorf("backing file %s has %d bytes, want %d", complete.Name(), info.Size(), size)
	}
	id, errno := fs.backer.RegisterBackingFd(&fuse.BackingMap{Fd: int32(complete.Fd())})
	switch errno {
	case 0:
		return id, nil
	case syscall.ENOMEM, syscall.ENOSPC, syscall.EBADF:
	default: // not allowed, not known, or a stacked file system below the store
		fs.off = true
	}
	return 0, fmt.Errorf("register backing file: %w", errno)
}

// Read answers what the page cache doesn't have. It waits for the bytes.
func (t *tree) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	t.stats.reads.Add(1)
	ctx := t.request(cancel, &in.InHeader)
	defer ctx.end()
	n, tr, err := t.locate(ctx, in.NodeId)
	if err != nil {
		return nil, t.status(ctx, in.NodeId, err)
	}
	size := tr.Attr(n.entry).Size
	if in.Offset >= uint64(size) {
		return fuse.ReadResultData(nil), fuse.OK
	}
	buf = buf[:min(uint64(len(buf)), uint64(size)-in.Offset)]
	f, err := t.acquire(ctx, n)
	if err != nil {
		return nil, t.status(ctx, in.NodeId, err)
	}
	defer t.drop(in.NodeId, f)
	got, err := f.content.ReadAt(ctx, buf, int64(in.Offset))
	if got < len(buf) {
		// The kernel would take a short answer for the end of the file.
		if err == nil || errors.Is(err, io.EOF) {
			err = fmt.Errorf("%d bytes at %d, want %d: %w", got, in.Offset, len(buf), io.ErrUnexpectedEOF)
		}
		return nil, t.status(ctx, in.NodeId, err)
	}
	return fuse.ReadResultData(buf), fuse.OK
}

// Release ends an open.
func (t *tree) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	t.files.mu.Lock()
	f := t.files.open[in.NodeId]
	ours := false
	switch {
	case f == nil: // an empty file, or opened before this process
	case in.Fh == byPassthrough && f.passed > 0:
		ours = true
		f.passed--
		if f.passed == 0 {
			// Nothing can be done about an error; the id goes with the connection.
			_ = t.files.backer.UnregisterBackingFd(f.backing)
		}
	case in.Fh == byCache && f.cached > 0:
		ours = true
		f.cached--
	}
	t.files.mu.Unlock()
	if ours {
		t.drop(in.NodeId, f)
	}
}

// Flush says that closing needs no message.
func (t *tree) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// closeFiles closes what the kernel has not released. No request may run.
func (t *tree) closeFiles() error {
	t.files.mu.Lock()
	defer t.files.mu.Unlock()
	var errs []error
	for id, f := range t.files.open {
		errs = append(errs, f.content.Close())
		delete(t.files.open, id)
	}
	return errors.Join(errs...)
}
