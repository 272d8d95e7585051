package layerfs

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
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

	// CacheOnly turns passthrough off. Without it overlayfs can be stacked
	// once on the tree, with it twice.
	CacheOnly bool
}

// Server serves a mounted tree. Make one with Mount.
type Server struct {
	dir   string
	tree  *tree
	fuse  *fuse.Server
	fd    int           // a duplicate of the connection, to ask for its state
	done  chan struct{} // closed when no request can come any more
	close func() error  // once
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
// Close. dir is made if need be. What a dead process left mounted there is
// detached first; that of a living one is an error. It needs root, and
// /dev/fuse.
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
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if err := vacate(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	fd, err := mountAt(dir)
	if err != nil {
		return nil, err
	}
	t := newTree(layers, opts.Logger)
	s := &Server{dir: dir, tree: t, done: make(chan struct{})}
	s.close = sync.OnceValue(s.shut)
	if s.fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return nil, errors.Join(err, unix.Close(fd), unix.Unmount(dir, unix.MNT_DETACH))
	}
	t.alive = s.alive
	// go-fuse takes the descriptor over, as it would one that was inherited.
	s.fuse, err = fuse.NewServer(&session{tree: t, cacheOnly: opts.CacheOnly}, fmt.Sprintf("/dev/fd/%d", fd), &fuse.MountOptions{
		Name:                     "airstream",
		FsName:                   "airstream",
		MaxBackground:            maxBackground,
		CongestionThreshold:      maxBackground,
		MaxWrite:                 maxRead,
		MaxReadAhead:             opts.ReadAhead,
		MaxStackDepth:            1, // the store is on a real file system, overlayfs comes on top
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true, // the data never changes
		EnableAcl:                true, // layers may have POSIX ACLs; unpacked ones are obeyed, too
		DisabledCapabilities:     disabled(opts),
		ExtraCapabilities:        fuse.CAP_NO_OPENDIR_SUPPORT,
		Logger:                   slog.NewLogLogger(opts.Logger.Handler(), slog.LevelWarn),
	})
	if err != nil {
		return nil, errors.Join(err, unix.Close(s.fd), unix.Unmount(dir, unix.MNT_DETACH))
	}
	go func() {
		defer close(s.done)
		s.fuse.Serve()
	}()
	return s, s.askForPoll()
}

// disabled returns the capabilities that go-fuse would negotiate and we don't want.
func disabled(opts Options) uint64 {
	// Every open has to be seen, to decide how it is done.
	off := uint64(fuse.CAP_NO_OPEN_SUPPORT)
	if opts.CacheOnly {
		// Only then the kernel counts the tree as a file system that is not
		// stacked on another.
		off |= fuse.CAP_PASSTHROUGH
	}
	return off
}

// session is the tree as one FUSE connection has it.
type session struct {
	*tree
	cacheOnly bool
}

// Init notes what the kernel can do. go-fuse calls it before other requests.
func (s *session) Init(server *fuse.Server) {
	flags := server.KernelSettings().Flags64()
	s.noOpenDir = flags&fuse.CAP_NO_OPENDIR_SUPPORT != 0
	if !s.cacheOnly && flags&fuse.CAP_PASSTHROUGH != 0 {
		s.files.mu.Lock()
		s.files.backer = server
		s.files.mu.Unlock()
	}
}

// mountAt opens a FUSE connection and mounts it. There is no nodev and no
// nosuid: views of an image are bind mounts of it, and in a container's root
// file system devices and setuid programs must work as if they were unpacked.
func mountAt(dir string) (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open /dev/fuse: %w", err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=%d", fd, maxRead)
	if err := unix.Mount("airstream", dir, "fuse.airstream", unix.MS_RDONLY|unix.MS_NOATIME, data); err != nil {
		return 0, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// vacate detaches trees at dir whose process is dead.
func vacate(dir string) error {
	const most = 64 // of them on top of each other
	for range most {
		var fs unix.Statfs_t
		err := unix.Statfs(dir, &fs) // always asks the serving process
		switch {
		case errors.Is(err, unix.ENOENT):
			return nil
		case errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED):
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				return fmt.Errorf("detach the tree of a dead process: %w", err)
			}
			continue
		case err != nil:
			return err
		}
		if fs.Type == unix.FUSE_SUPER_MAGIC && isMountPoint(dir) {
			return errors.New("a living process serves a file system there; stop it or choose another directory")
		}
		return nil
	}
	return fmt.Errorf("more than %d dead trees", most)
}

func isMountPoint(dir string) bool {
	var here, up unix.Stat_t
	return unix.Lstat(dir, &here) == nil && unix.Lstat(filepath.Dir(dir), &up) == nil && here.Dev != up.Dev
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

// alive says whether the kernel still has the connection.
func (s *Server) alive() bool {
	fds := []unix.PollFd{{Fd: int32(s.fd)}}
	_, err := unix.Poll(fds, 0)
	return err != nil || fds[0].Revents&(unix.POLLERR|unix.POLLNVAL) == 0
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
	close(s.tree.ending)
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
	if err := errors.Join(s.tree.closeFiles(), unix.Close(s.fd)); err != nil {
		return fmt.Errorf("layerfs: close %s: %w", s.dir, err)
	}
	return nil
}

// String names the mount for people.
func (s *Server) String() string { return strings.TrimSuffix(s.dir, "/") }
