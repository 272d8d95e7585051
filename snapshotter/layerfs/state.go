package layerfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// state is what a process that takes a connection over must know of it. It is
// memory without a file (memfd_create), mapped by whoever serves the
// connection, so that what a process wrote is there after it was killed, at
// whatever moment. Its layout, numbers in the machine's byte order:
//
//	   0  16  stateMagic, which counts versions
//	  16   8  device number of the mount
//	  24   4  bytes of the kernel's INIT request
//	  28   4  bytes of our answer; written last, 0 is a state that is no use
//	  32   4  how many request slots were ever used
//	  36   4  how many open slots were ever used
//	  40   4  the highest backing ID that the kernel gave
//	  64 256  INIT request
//	 320 256  answer
//	4096      request slots, requestSize each: what the kernel said, or a
//	          zero in the first four bytes
//	          open slots, openSize each
//
// All of it is sparse: only what is used takes memory. A process that finds
// another version here can't take over and mounts anew.
type state struct {
	file *os.File
	mem  []byte
}

const (
	stateMagic = "airstream tree 1"

	atDevice      = 16
	atInitLen     = 24
	atAnswerLen   = 28
	atRequests    = 32
	atOpens       = 36
	atBacking     = 40
	atInit        = 64
	atAnswer      = 320
	maxInit       = 256
	headerSize    = 4096
	requestSize   = 8192 // FUSE_MIN_READ_BUFFER, the least that the kernel takes
	maxRequests   = 1 << 14
	openSize      = 32
	maxOpens      = 1 << 20 // as many as the daemon may have descriptors
	requestsBegin = headerSize
	opensBegin    = requestsBegin + maxRequests*requestSize
	stateSize     = opensBegin + maxOpens*openSize
)

// newState makes an empty one.
func newState() (*state, error) {
	// Kernels before 6.3 don't know the seal; some later ones insist on it.
	fd, err := unix.MemfdCreate("airstream-tree", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate("airstream-tree", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	file := os.NewFile(uintptr(fd), "airstream-tree")
	if err := file.Truncate(stateSize); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	s := &state{file: file}
	if err := s.mapIn(); err != nil {
		return nil, err
	}
	copy(s.mem, stateMagic)
	return s, nil
}

// openState opens what another process made. It takes file over.
func openState(file *os.File) (*state, error) {
	info, err := file.Stat()
	if err == nil && info.Size() != stateSize {
		err = errors.New("made by another version")
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	s := &state{file: file}
	if err := s.mapIn(); err != nil {
		return nil, err
	}
	init, answer := s.u32(atInitLen).Load(), s.u32(atAnswerLen).Load()
	if string(s.mem[:len(stateMagic)]) != stateMagic || s.u32(atRequests).Load() > maxRequests || s.u32(atOpens).Load() > maxOpens ||
		init == 0 || init > maxInit || answer == 0 || answer > maxInit {
		return nil, errors.Join(errors.New("made by another version, or not to its end"), s.close())
	}
	return s, nil
}

func (s *state) mapIn() (err error) {
	raw, err := s.file.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) {
			s.mem, err = unix.Mmap(int(fd), 0, stateSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		})
		err = errors.Join(err, cerr)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("map state: %w", err), s.file.Close())
	}
	return nil
}

func (s *state) close() error { return errors.Join(unix.Munmap(s.mem), s.file.Close()) }

// u32 returns a number of the header or of a slot. What is written with it is
// there in the order of the program, should the process be killed in between.
func (s *state) u32(at int) *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&s.mem[at])) }

func (s *state) u64(at int) *atomic.Uint64 { return (*atomic.Uint64)(unsafe.Pointer(&s.mem[at])) }

// raise makes a count at least n.
func (s *state) raise(at int, n uint32) {
	for c := s.u32(at); ; {
		if old := c.Load(); old >= n || c.CompareAndSwap(old, n) {
			return
		}
	}
}

// request returns a request slot.
func (s *state) request(slot uint32) []byte {
	at := requestsBegin + int(slot)*requestSize
	return s.mem[at : at+requestSize : at+requestSize]
}

// negotiated keeps what the kernel and we agreed on. With it the state is
// complete.
func (s *state) negotiated(device uint64, init, answer []byte) error {
	if len(init) > maxInit || len(answer) > maxInit {
		return fmt.Errorf("INIT has %d bytes and its answer %d", len(init), len(answer))
	}
	s.u64(atDevice).Store(device)
	s.u32(atInitLen).Store(uint32(copy(s.mem[atInit:], init)))
	s.u32(atAnswerLen).Store(uint32(copy(s.mem[atAnswer:], answer)))
	return nil
}

func (s *state) init() []byte {
	n := s.u32(atInitLen).Load()
	return s.mem[atInit : atInit+n]
}

func (s *state) answer() []byte {
	n := s.u32(atAnswerLen).Load()
	return s.mem[atAnswer : atAnswer+n]
}

// flags returns the capabilities that were agreed on.
func (s *state) flags() uint64 {
	return (*fuse.InitOut)(unsafe.Pointer(&s.answer()[headSize])).Flags64()
}

// length returns the length that a message of the protocol says it has.
func length(message []byte) uint32 { return binary.NativeEndian.Uint32(message) }
