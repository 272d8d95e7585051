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

// minPassthrough is the size from which on files are passed through, in bytes.
// To open a file that way costs 14 µs more than through the cache, which also
// keeps small files after the first read (BenchmarkOpen, 2 cores, 2026-11-21).
const minPassthrough = 64 << 10

// backer is the part of a FUSE connection that passthrough needs.
type backer interface {
	register(fd int32) (id int32, errno syscall.Errno)
	unregister(id int32) syscall.Errno
}

// files are the contents that are open. They are kept by node and not by
// number of the open file, so that a read that belongs to an open that another
// process answered can be served all the same.
type files struct {
	backer backer // set before the first request

	mu    sync.Mutex
	open  map[uint64]*file    // guarded by mu
	table opens               // guarded by mu; what of open the next process needs
	again map[uint64]struct{} // guarded by mu; opens that may have been, and been released, before
	off   bool                // guarded by mu; nothing is opened by passthrough here any more
}

// file is the content of one node. The kernel refuses to have a node open in
// both ways at once, so the way that is in use is kept until its last close.
type file struct {
	content Content // guarded by files.mu until acquire; nil if only another process has had it
	users   int     // guarded by files.mu; opens and running reads
	cached  int     // guarded by files.mu; opens by cache
	passed  int     // guarded by files.mu; opens by passthrough
	backing int32   // guarded by files.mu; valid while passed > 0
}

// load takes over what other processes have opened, and returns how many files
// that are. Their contents are opened when somebody reads them.
func (fs *files) load() int {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, e := range fs.table.load() {
		f := fs.open[e.node]
		if f == nil {
			f = &file{}
			fs.open[e.node] = f
		}
		f.count(e.backing)
	}
	return len(fs.open)
}

// count counts an open. It needs mu.
func (f *file) count(backing int32) {
	f.users++
	if backing == 0 {
		f.cached++
		return
	}
	f.passed++
	f.backing = backing
}

// sweep closes backing files from a first to a last ID that no open file has:
// those of a process that died before it had noted them, or after it had
// forgotten them. No new ones may get such IDs meanwhile.
func (fs *files) sweep(first, last int32, ended <-chan struct{}) {
	used := make(map[int32]struct{})
	fs.mu.Lock()
	for _, f := range fs.open {
		if f.passed > 0 {
			used[f.backing] = struct{}{}
		}
	}
	fs.mu.Unlock()
	for id := first; id <= last; id++ {
		select {
		case <-ended:
			return
		default:
		}
		if _, ok := used[id]; !ok {
			_ = fs.backer.unregister(id) // most are closed
		}
	}
}

// acquire returns the open content of a node, opening it if need be, for which
// it may wait. drop must be called afterwards.
func (t *tree) acquire(ctx context.Context, n node) (*file, error) {
	id := n.id()
	f, ready := t.files.use(id)
	if ready {
		return f, nil
	}
	content, err := t.layers.Open(ctx, n.slot, n.entry)
	if err != nil {
		if f != nil {
			t.drop(id, f)
		}
		return nil, err
	}
	t.files.mu.Lock()
	if f == nil {
		if f = t.files.open[id]; f == nil {
			f = &file{}
			t.files.open[id] = f
		}
		f.users++
	}
	raced := f.content != nil
	if !raced {
		f.content = content
	}
	t.files.mu.Unlock()
	if raced {
		if err := content.Close(); err != nil {
			t.complain(id, err)
		}
	}
	return f, nil
}

// use returns the file of a node, or nil, and whether its content is open.
func (fs *files) use(id uint64) (f *file, ready bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f = fs.open[id]
	if f == nil {
		return nil, false
	}
	f.users++
	return f, f.content != nil
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
	if last && f.content != nil {
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
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH
	a := tr.Attr(n.entry)
	if a.Mode&toc.TypeMask != toc.TypeRegular {
		return fuse.EINVAL
	}
	if a.Size == 0 {
		return fuse.OK // nobody reads it
	}
	again := t.again(in.Unique)
	if again {
		if e, ok := t.files.find(in.NodeId, in.Unique); ok {
			return t.opened(e, out)
		}
	}
	f, err := t.acquire(ctx, n)
	if err != nil {
		return t.status(ctx, in.NodeId, err)
	}
	e, err := t.pass(f, in.NodeId, in.Unique, a.Size)
	if err != nil {
		t.drop(in.NodeId, f)
		return t.status(ctx, in.NodeId, err)
	}
	if again {
		t.files.mu.Lock()
		t.files.again[e.fh] = struct{}{}
		t.files.mu.Unlock()
	}
	return t.opened(e, out)
}

// unheard is told that the kernel did not wait for the answer to an OPEN: the
// process that died had answered it. What is open of it was found in the table;
// if nothing was, it has been released, and what is noted now is for nothing.
func (t *tree) unheard(node, fh uint64) {
	t.files.mu.Lock()
	_, again := t.files.again[fh]
	t.files.mu.Unlock()
	if again {
		t.Release(nil, &fuse.ReleaseIn{InHeader: fuse.InHeader{NodeId: node}, Fh: fh})
	}
}

// opened answers an OPEN.
func (t *tree) opened(e open, out *fuse.OpenOut) fuse.Status {
	out.Fh = e.fh
	if e.backing != 0 {
		t.stats.passthrough.Add(1)
		out.OpenFlags = fuse.FOPEN_PASSTHROUGH | fuse.FOPEN_NOFLUSH // the kernel allows no others
		out.BackingID = e.backing
	}
	return fuse.OK
}

// find returns the open that an OPEN request has led to in a process before
// this one, which could not say so.
func (fs *files) find(node, unique uint64) (open, bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.table.find(node, unique)
}

// pass decides how one more open of f is done, and notes it. The use of f
// becomes that of the open.
func (t *tree) pass(f *file, node, unique uint64, size int64) (open, error) {
	t.files.mu.Lock()
	defer t.files.mu.Unlock()
	var backing int32
	switch {
	case f.passed > 0:
		backing = f.backing
	case f.cached > 0 || t.files.off || size < minPassthrough:
	default:
		complete := f.content.Complete()
		if complete == nil {
			break
		}
		var err error
		backing, err = t.files.register(complete, size)
		if err != nil && t.files.off {
			t.log.Info("files are not passed through", slog.Any("reason", err))
		}
	}
	fh, err := t.files.table.add(node, unique, backing)
	if err != nil {
		if backing != 0 && f.passed == 0 {
			_ = t.files.backer.unregister(backing)
		}
		return open{}, err
	}
	f.users--
	f.count(backing)
	return open{fh: fh, node: node, backing: backing}, nil
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
	id, errno := fs.backer.register(int32(complete.Fd()))
	switch errno {
	case 0:
		fs.table.state.raise(atBacking, uint32(id))
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

// Release ends an open. It may come twice, and for an empty file it comes for
// nothing.
func (t *tree) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	t.files.mu.Lock()
	e, ok := t.files.table.remove(in.Fh, in.NodeId)
	delete(t.files.again, in.Fh)
	var f *file
	if ok {
		f = t.files.open[in.NodeId]
		if e.backing == 0 {
			f.cached--
		} else if f.passed--; f.passed == 0 {
			// Nothing can be done about an error; the id goes with the connection.
			_ = t.files.backer.unregister(f.backing)
		}
	}
	t.files.mu.Unlock()
	if ok {
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
		if f.content != nil {
			errs = append(errs, f.content.Close())
		}
		delete(t.files.open, id)
	}
	return errors.Join(errs...)
}
