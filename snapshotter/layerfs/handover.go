package layerfs

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Keeper keeps descriptors for the process that comes after this one, however
// this one ends. fdstore.Store is one.
type Keeper interface {
	// Keeps says whether it does, or only seems to.
	Keeps() bool
	// Take returns what an earlier process left under a name, or nil.
	Take(name string) *os.File
	// Keep keeps a duplicate of f under a name.
	Keep(name string, f *os.File) error
	// Drop closes what is kept under a name.
	Drop(name string) error
}

// Names under which a Keeper has a connection and its state.
const (
	keptConn  = "tree"
	keptState = "tree-state"
)

// takeOver serves what the keeper has for the mount: what the kernel was
// promised still holds, and what it has asked meanwhile is answered. It returns
// false if that is nothing, or nothing that can be served. It asks nothing of
// the tree, which would wait for this very process.
func (s *Server) takeOver(opts Options) (ok bool, err error) {
	if s.keeper == nil {
		return false, nil
	}
	file, memory := s.keeper.Take(keptConn), s.keeper.Take(keptState)
	if file == nil && memory == nil {
		return false, nil
	}
	if file != nil && memory != nil {
		if err = s.adopt(file, memory, opts); err == nil {
			return true, nil
		}
	} else {
		err = errors.New("one of two descriptors is missing")
	}
	for _, f := range []*os.File{file, memory} {
		if f != nil {
			_ = f.Close() // it may be closed already
		}
	}
	s.tree.log.Warn("the tree of the process before this one can't be taken over; containers that use it lose it",
		slog.String("dir", s.dir), slog.Any("reason", err))
	return false, errors.Join(s.keeper.Drop(keptConn), s.keeper.Drop(keptState))
}

// adopt serves the connection of two descriptors, which are its own then.
func (s *Server) adopt(file, memory *os.File, opts Options) (err error) {
	fd, err := duplicate(file)
	if err != nil {
		return err
	}
	st, err := openState(memory)
	if err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	s.conn = newConn(fd, st, s.tree.log)
	device, err := mountedAt(s.dir)
	switch {
	case err != nil:
	case device != st.u64(atDevice).Load():
		err = errors.New("something else is mounted there by now")
	case !s.conn.alive():
		err = errors.New("it was unmounted")
	default:
		err = s.renegotiate(opts)
	}
	if err != nil {
		return errors.Join(err, unix.Close(fd), st.close())
	}
	s.goOn(opts)
	_ = file.Close() // a duplicate
	return nil
}

// duplicate returns another descriptor for a file that is not to be closed
// behind our back.
func duplicate(f *os.File) (fd int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(err, cerr)
}

// mountedAt returns the device number of the file system that is mounted at
// dir, without a word to it; an error if there is none.
func mountedAt(dir string) (device uint64, err error) {
	// The mount point itself must not be looked at.
	up, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err != nil {
		return 0, err
	}
	dir = filepath.Join(up, filepath.Base(dir))
	list, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return 0, err
	}
	// proc_pid_mountinfo(5): ID, parent, major:minor, root, mount point. The
	// last one is on top.
	escaped := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`).Replace(dir)
	err = fmt.Errorf("%s: %w: nothing is mounted there", dir, fs.ErrNotExist)
	for line := range strings.Lines(string(list)) {
		fields := strings.Fields(line)
		if len(fields) < 5 || fields[4] != escaped {
			continue
		}
		major, minor, _ := strings.Cut(fields[2], ":")
		a, aerr := strconv.ParseUint(major, 10, 32)
		b, berr := strconv.ParseUint(minor, 10, 32)
		device, err = unix.Mkdev(uint32(a), uint32(b)), errors.Join(aerr, berr)
	}
	return device, err
}

// renegotiate has the protocol server know what the kernel and the first
// process agreed on.
func (s *Server) renegotiate(opts Options) error {
	st := s.conn.state
	if n := len(st.answer()); n < headSize+int(unsafe.Sizeof(fuse.InitOut{})) {
		return fmt.Errorf("answer to INIT has %d bytes", n)
	}
	s.agreed(opts)
	s.conn.protocol = fuse.NewProtocolServer(s.tree, restored(opts, st.flags()))
	n, status := s.conn.protocol.HandleRequest([][]byte{st.init()}, [][]byte{make([]byte, smallAnswer)})
	if n == 0 || !status.Ok() {
		return fmt.Errorf("repeat INIT: %v", status)
	}
	return nil
}

// goOn serves from where the process before this one was.
func (s *Server) goOn(opts Options) {
	files := s.tree.files.load()
	again := errors.ErrUnsupported
	if !opts.noResend && s.kernel()&fuse.CAP_HAS_RESEND != 0 {
		again = s.conn.resend()
	}
	requests := s.repeat(again != nil)
	if !s.tree.files.off {
		const beyond = 16 // given to a process that died before it noted them
		highest := int32(s.conn.state.u32(atBacking).Load())
		s.tree.files.sweep(highest+1, highest+beyond, s.conn.ended)
		s.conn.loops.Go(func() { s.tree.files.sweep(1, highest, s.conn.ended) }) // the kernel counts on, not from 1
	}
	s.conn.start()
	s.tree.log.Info("tree is taken over", slog.String("dir", s.dir), slog.Int("files", files),
		slog.Int("requests", requests), slog.Bool("resent", again == nil))
}

// restored are the options that lead to these capabilities.
func restored(opts Options, flags uint64) *fuse.MountOptions {
	o := mountOptions(opts)
	o.ExtraCapabilities, o.DisabledCapabilities = flags, ^flags
	return o
}

// repeat goes through what the dead process had not answered, and counts it.
// What the kernel doesn't send again is answered from the state. Some of it may
// have been answered already: then the kernel doesn't know of it and says so.
func (s *Server) repeat(answer bool) (n int) {
	c := s.conn
	var left []*loop
	for slot := range c.state.u32(atRequests).Load() {
		in := c.state.request(slot)
		is := length(in) >= uint32(unsafe.Sizeof(fuse.InHeader{})) && length(in) <= requestSize
		if is {
			n++
		}
		if is && answer {
			l := &loop{c: c, slot: slot, in: in, noted: true, small: make([]byte, smallAnswer)}
			s.tree.repeated[l.header().Unique] = struct{}{}
			left = append(left, l)
			continue
		}
		clear(in[:4])
		c.slots = append(c.slots, slot)
	}
	for _, l := range left {
		c.startWith(l, int(length(l.in)))
	}
	return n
}

// Kept says whether the connection outlives this process.
func (s *Server) Kept() bool { return s.keeper != nil }

// Leave ends the service without ending the tree, for the process that gets
// the connection next. What is asked from now on, and what is not answered
// yet, waits for it. Without a Keeper it is Close.
//
// When it returns, nothing uses the Layers any more. Readers of the connection
// that have nothing to read stay blocked in the kernel, with what they get in
// the end left for the next process: this one should exit soon, and can't mount
// dir again.
func (s *Server) Leave() error {
	if !s.Kept() {
		return s.Close()
	}
	s.conn.left.Store(true)
	s.endOnce.Do(func() { close(s.tree.ending) })
	s.conn.working.Lock() // waits for those who still work
	defer s.conn.working.Unlock()
	if err := s.tree.closeFiles(); err != nil {
		return fmt.Errorf("layerfs: leave %s: %w", s.dir, err)
	}
	return nil
}
