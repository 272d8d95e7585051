package layerfs

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	devFUSE = "/dev/fuse"

	// maxBackground is how many read-aheads may wait for the link at a time,
	// over all images. The kernel's default is 12; beyond the limit reads of
	// files that are complete would wait behind those that are not. The
	// protocol has 16 bits.
	maxBackground = 1<<16 - 1

	// maxRead is the most that one read asks for, in bytes.
	maxRead = 128 << 10

	// defaultReadAhead: see Options.ReadAhead.
	defaultReadAhead = 32 << 10
)

// Options change how a tree is served. The zero value is ready for use.
type Options struct {
	// Logger gets errors of files, once per file. Default: discard.
	Logger *slog.Logger

	// ReadAhead is how much the kernel reads around or ahead of what is asked
	// for, in bytes, of files that are not complete. All of it has to cross
	// the link before the reader goes on, so it should not be more than a
	// chunk. Default: 32 KiB. A page fault in the middle then waits for one
	// chunk of 64 KiB or two, with the kernel's 128 KiB for three.
	ReadAhead int

	// Keeper, if not nil, keeps the connection for the next process that
	// mounts dir with it. See Leave.
	Keeper Keeper

	// Observer, if not nil, is told of look-ups.
	Observer Observer

	// CacheOnly turns passthrough off. Without it overlayfs can be stacked
	// once on the tree, with it twice.
	CacheOnly bool

	noResend bool // for tests: as on a kernel that can't
}

// Server serves a mounted tree. Make one with Mount.
type Server struct {
	dir     string
	tree    *tree
	conn    *conn
	keeper  Keeper        // nil if nobody keeps the connection
	done    chan struct{} // closed when no request can come any more
	close   func() error  // once
	endOnce sync.Once     // of tree.ending
}

// Stats counts requests since the mount.
type Stats struct {
	Lookups     uint64 // of names
	Opens       uint64 // of files
	Passthrough uint64 // opens after which the kernel reads by itself
	Reads       uint64 // that came here
	Xattrs      uint64 // extended attributes read or listed
}

// Mount mounts the tree of layers at the directory dir and serves it until
// Close. dir is made if need be. It needs root, and /dev/fuse.
//
// If the Keeper has the connection of a process before this one, the tree that
// is mounted already goes on: files that are open stay open, and requests that
// wait are answered. Otherwise what a dead process left mounted there is
// detached first; that of a living one is an error.
func Mount(dir string, layers Layers, opts Options) (*Server, error) {
	s, err := mount(dir, layers, opts)
	if err != nil {
		return nil, fmt.Errorf("layerfs: mount %s: %w", dir, err)
	}
	return s, nil
}

func mount(dir string, layers Layers, opts Options) (_ *Server, err error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.ReadAhead <= 0 {
		opts.ReadAhead = defaultReadAhead
	}
	if opts.Keeper != nil && !opts.Keeper.Keeps() {
		opts.Keeper = nil
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	s := &Server{dir: dir, tree: newTree(layers, opts.Logger), keeper: opts.Keeper, done: make(chan struct{})}
	s.tree.observer = opts.Observer
	s.close = sync.OnceValue(s.shut)
	ok, err := s.takeOver(opts)
	if err == nil && !ok {
		err = s.mountNew(opts)
	}
	if err != nil {
		return nil, err
	}
	go s.watch()
	return s, s.askForPoll()
}

// watch is there from the first request to the last.
func (s *Server) watch() {
	defer close(s.done)
	<-s.conn.ended
	s.endOnce.Do(func() { close(s.tree.ending) }) // what waits is in vain
	s.conn.loops.Wait()
}

// mountNew makes a connection and mounts it.
func (s *Server) mountNew(opts Options) (err error) {
	if err := vacate(s.dir, opts.Logger); err != nil {
		return err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	st, err := newState()
	if err != nil {
		return err
	}
	fd, err := mountAt(s.dir)
	if err != nil {
		return errors.Join(err, st.close())
	}
	s.conn = newConn(fd, st, opts.Logger)
	if err := s.negotiate(opts); err != nil {
		return errors.Join(err, unix.Unmount(s.dir, unix.MNT_DETACH), unix.Close(fd), st.close())
	}
	if err := s.keep(); err != nil {
		opts.Logger.Warn("nobody keeps the tree for the next process; containers that use it lose it when this one ends",
			slog.String("dir", s.dir), slog.Any("error", err))
		s.keeper = nil
	}
	s.conn.start()
	return nil
}

// keep gives the connection to the keeper.
func (s *Server) keep() error {
	if s.keeper == nil {
		return nil
	}
	fd, err := unix.FcntlInt(uintptr(s.conn.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), devFUSE)
	return errors.Join(s.keeper.Keep(keptState, s.conn.state.file), s.keeper.Keep(keptConn, f), f.Close())
}

// mountAt opens a FUSE connection and mounts it. There is no nodev and no
// nosuid: views of an image are bind mounts of it, and in a container's root
// file system devices and setuid programs must work as if they were unpacked.
func mountAt(dir string) (int, error) {
	fd, err := unix.Open(devFUSE, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", devFUSE, err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=%d", fd, maxRead)
	if err := unix.Mount("airstream", dir, "fuse.airstream", unix.MS_RDONLY|unix.MS_NOATIME, data); err != nil {
		return 0, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// askForPoll makes the kernel send a POLL, which go-fuse answers once and for
// all with ENOSYS for a name of its own. Else a Go program that opens a file of
// the tree, this one above all, could use up its last thread to wait for it.
func (s *Server) askForPoll() error {
	fd, err := unix.Open(filepath.Join(s.dir, ".go-fuse-epoll-hack"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return errors.Join(fmt.Errorf("first request: %w", err), s.close())
	}
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	if errors.Is(err, unix.EINTR) {
		err = nil // the request was sent
	}
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return errors.Join(fmt.Errorf("first request: %w", err), s.close())
	}
	return nil
}

// Done is closed when the tree is not served any more: after Close, or when
// somebody unmounted it.
func (s *Server) Done() <-chan struct{} { return s.done }

// Stats returns how much the kernel has asked so far.
func (s *Server) Stats() Stats {
	st := &s.tree.stats
	return Stats{
		Lookups:     st.lookups.Load(),
		Opens:       st.opens.Load(),
		Passthrough: st.passthrough.Load(),
		Reads:       st.reads.Load(),
		Xattrs:      st.xattrs.Load(),
	}
}

// Close unmounts the tree and waits until nothing serves it. Requests that wait
// are interrupted. What still uses the tree, the root file systems of running
// containers above all, gets errors from then on. Closing again does nothing.
func (s *Server) Close() error { return s.close() }

func (s *Server) shut() error {
	if s.conn.left.Load() {
		return nil // it is another process's
	}
	s.endOnce.Do(func() { close(s.tree.ending) })
	// Forcing ends the connection whoever uses it; overlayfs has clones of the
	// mount that an unmount doesn't see.
	err := unix.Unmount(s.dir, unix.MNT_FORCE)
	if errors.Is(err, unix.EBUSY) {
		s.tree.log.Warn("tree is still in use; it is detached and gives errors from now on", slog.String("dir", s.dir))
		err = unix.Unmount(s.dir, unix.MNT_DETACH)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		err = nil // unmounted by somebody else
	}
	if err != nil {
		// The connection may be there still, and to wait for it would hang.
		return fmt.Errorf("layerfs: unmount %s: %w", s.dir, err)
	}
	<-s.done
	var errs []error
	if s.keeper != nil {
		errs = append(errs, s.keeper.Drop(keptConn), s.keeper.Drop(keptState))
	}
	errs = append(errs, s.tree.closeFiles(), unix.Close(s.conn.fd), s.conn.state.close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("layerfs: close %s: %w", s.dir, err)
	}
	return nil
}

// String names the mount for people.
func (s *Server) String() string { return strings.TrimSuffix(s.dir, "/") }
