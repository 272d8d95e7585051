package layerfs

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// negotiate answers the kernel's first request.
func (s *Server) negotiate(opts Options) error {
	in, out := make([]byte, requestSize), make([]byte, smallAnswer)
	n, err := syscall.Read(s.conn.fd, in)
	for errors.Is(err, unix.EINTR) {
		n, err = syscall.Read(s.conn.fd, in)
	}
	if err != nil {
		return fmt.Errorf("read INIT: %w", err)
	}
	in = in[:n]
	s.conn.protocol = fuse.NewProtocolServer(s.tree, mountOptions(opts))
	n, status := s.conn.protocol.HandleRequest([][]byte{in}, [][]byte{out})
	if n < headSize+int(unsafe.Sizeof(fuse.InitOut{})) || !status.Ok() {
		return fmt.Errorf("INIT of %d bytes has an answer of %d: %v", len(in), n, status)
	}
	// Nobody writes, so MaxWrite is the least there is; but go-fuse takes the
	// size of reads from it, too.
	(*fuse.InitOut)(unsafe.Pointer(&out[headSize])).MaxPages = uint16(maxRead / os.Getpagesize())
	device, err := mountedAt(s.dir)
	if err != nil {
		return err
	}
	if err := s.conn.state.negotiated(device, in, out[:n]); err != nil {
		return err
	}
	s.agreed(opts)
	if _, err := syscall.Write(s.conn.fd, out[:n]); err != nil {
		return fmt.Errorf("answer INIT: %w", err)
	}
	return nil
}

// mountOptions are what we want of the kernel.
func mountOptions(opts Options) *fuse.MountOptions {
	const minWrite = 4096
	return &fuse.MountOptions{
		Name:                     "airstream",
		FsName:                   "airstream",
		MaxBackground:            maxBackground,
		CongestionThreshold:      maxBackground,
		MaxWrite:                 minWrite,
		MaxReadAhead:             opts.ReadAhead,
		MaxStackDepth:            1, // the store is on a real file system, overlayfs comes on top
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true, // the data never changes
		EnableAcl:                true, // layers may have POSIX ACLs; unpacked ones are obeyed, too
		DisabledCapabilities:     disabled(opts),
		ExtraCapabilities:        fuse.CAP_NO_OPENDIR_SUPPORT | fuse.CAP_HAS_RESEND,
		Logger:                   slog.NewLogLogger(opts.Logger.Handler(), slog.LevelWarn),
	}
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

// kernel returns the capabilities of the kernel.
func (s *Server) kernel() uint64 {
	in := s.conn.state.init()
	if len(in) < int(unsafe.Offsetof(fuse.InitIn{}.Unused)) {
		return 0 // before 5.17 it is shorter, and has none of those above bit 31
	}
	return (*fuse.InitIn)(unsafe.Pointer(&in[0])).Flags64()
}

// agreed tells the tree what was negotiated. No request may run.
func (s *Server) agreed(opts Options) {
	flags := s.conn.state.flags()
	s.tree.noOpenDir = flags&fuse.CAP_NO_OPENDIR_SUPPORT != 0
	s.tree.alive = s.conn.alive
	s.conn.unheard = s.tree.unheard
	s.tree.files.table.state = s.conn.state
	s.tree.files.backer = s.conn
	s.tree.files.off = opts.CacheOnly || flags&fuse.CAP_PASSTHROUGH == 0
}
