package layerfs

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Opcodes that are treated in a way of their own (linux/fuse.h).
const (
	opForget      = 2
	opOpen        = 14
	opRead        = 15
	opGetXAttr    = 22
	opListXAttr   = 23
	opReadDir     = 28
	opInterrupt   = 36
	opIoctl       = 39
	opBatchForget = 42
	opReadDirPlus = 44
)

const (
	devBackingOpen  = 0x4010e501 // FUSE_DEV_IOC_BACKING_OPEN
	devBackingClose = 0x4004e502 // FUSE_DEV_IOC_BACKING_CLOSE

	notifyResend = 7 // FUSE_NOTIFY_RESEND
)

const (
	headSize = int(unsafe.Sizeof(fuse.OutHeader{}))

	// smallAnswer is what all answers but READ and long listings fit in: the
	// longest is that of READLINK, 4 KiB.
	smallAnswer = 4096 + 512
)

// answerSizes are the sizes of answers that are kept for use again.
var answerSizes = [...]int{32<<10 + 512, maxRead + 512}

// interruptPause is how long the kernel has to wait for its answer if it
// reports a signal for a request that is not here. It asks again at once, for
// as long as the request is on its way.
const interruptPause = time.Millisecond

// conn serves a FUSE connection: it reads requests, lets go-fuse's protocol
// server and the tree answer them, and writes what they say.
//
// go-fuse's own Server can't be told to go on with a connection; and here each
// request lies in the state while it is worked on, from the moment at which
// the kernel hands it out, so that no request is lost with a process. The
// descriptor must not be cloned (FUSE_DEV_IOC_CLONE): the kernel ends what a
// clone has read with the clone's last descriptor.
type conn struct {
	fd       int
	protocol *fuse.ProtocolServer
	state    *state
	log      *slog.Logger

	readers  int32 // how many may wait for a request
	waiting  atomic.Int32
	left     atomic.Bool  // nothing is answered any more
	working  sync.RWMutex // held for reading while a request is worked on
	loops    sync.WaitGroup
	ended    chan struct{} // closed when the kernel has ended the connection
	endOnce  sync.Once
	writeErr atomic.Bool           // has been logged
	unheard  func(node, fh uint64) // the answer to an OPEN came too late

	mu    sync.Mutex
	slots []uint32 // guarded by mu; of requests, free, below the mark

	answers [len(answerSizes)]sync.Pool // of *[]byte
}

func newConn(fd int, st *state, log *slog.Logger) *conn {
	const least, most = 2, 16
	c := &conn{fd: fd, state: st, log: log, ended: make(chan struct{})}
	c.readers = int32(min(max(runtime.GOMAXPROCS(0), least), most))
	for i, size := range answerSizes {
		c.answers[i].New = func() any { b := make([]byte, size); return &b }
	}
	return c
}

// loop is a goroutine that reads and answers requests. Whoever has read one
// answers it, after seeing to it that another reads: to hand it over would
// cost more than most answers do.
type loop struct {
	c     *conn
	slot  uint32
	in    []byte // where requests are read to
	noted bool   // in is a slot of the state
	small []byte // for answers
}

// start starts another loop.
func (c *conn) start() { c.startWith(c.newLoop(), 0) }

// startWith starts a loop. If first is not 0, a request of that length is in
// its slot already.
func (c *conn) startWith(l *loop, first int) {
	c.loops.Go(func() {
		defer l.end()
		if first > 0 {
			l.answer(first)
		}
		l.run()
	})
}

func (c *conn) newLoop() *loop {
	l := &loop{c: c, small: make([]byte, smallAnswer)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.slots); n > 0 {
		l.slot, c.slots = c.slots[n-1], c.slots[:n-1]
	} else if l.slot = c.state.u32(atRequests).Load(); l.slot < maxRequests {
		c.state.u32(atRequests).Store(l.slot + 1)
	} else {
		// What it reads is lost with this process, unless the kernel resends.
		l.in = make([]byte, requestSize)
		return l
	}
	l.in, l.noted = c.state.request(l.slot), true
	return l
}

// end gives the slot back, except that of a request that was left.
func (l *loop) end() {
	if l.noted && length(l.in) == 0 {
		l.c.mu.Lock()
		l.c.slots = append(l.c.slots, l.slot)
		l.c.mu.Unlock()
	}
}

// run reads and answers until there are enough others who read, or the
// connection ends.
func (l *loop) run() {
	c := l.c
	for !c.left.Load() {
		if c.waiting.Add(1) > c.readers {
			c.waiting.Add(-1)
			return
		}
		// The first page must be there: the kernel can't bring it in for a
		// process that is being killed, and would fail the request instead.
		clear(l.in[:4])
		n, err := syscall.Read(c.fd, l.in)
		others := c.waiting.Add(-1)
		switch {
		case err == nil:
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EAGAIN):
			continue // ENOENT: the request was taken back
		default:
			if !errors.Is(err, unix.ENODEV) { // what an unmount gives
				c.log.Error("FUSE connection can't be read", slog.Any("error", err))
			}
			c.end()
			return
		}
		if n < int(unsafe.Sizeof(fuse.InHeader{})) {
			c.log.Error("FUSE request is too short", slog.Int("bytes", n))
			continue
		}
		// Those have no answers, so that nothing would slow the kernel down.
		if op := l.header().Opcode; others == 0 && op != opForget && op != opBatchForget {
			c.start()
		}
		l.answer(n)
	}
}

func (c *conn) end() { c.endOnce.Do(func() { close(c.ended) }) }

func (l *loop) header() *fuse.InHeader { return (*fuse.InHeader)(unsafe.Pointer(&l.in[0])) }

// answer answers the request of n bytes in the slot. After leave it may not:
// what it would say is not true any more.
func (l *loop) answer(n int) {
	l.c.working.RLock()
	defer l.c.working.RUnlock()
	if l.c.left.Load() {
		return
	}
	out, give := l.buffer()
	size, _ := l.c.protocol.HandleRequest([][]byte{l.in[:n]}, [][]byte{out})
	if l.c.left.Load() {
		give()
		return
	}
	if size > 0 {
		l.write(out[:size])
	}
	give()
	if l.noted {
		l.c.state.u32(requestsBegin + int(l.slot)*requestSize).Store(0)
	}
}

func (l *loop) write(out []byte) {
	op := l.header().Opcode
	if op == opInterrupt {
		select {
		case <-time.After(interruptPause):
		case <-l.c.ended:
		}
	}
	_, err := syscall.Write(l.c.fd, out)
	switch {
	case err == nil:
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.EPERM):
		// Nobody waits for it any more; or a process that died has answered it.
		if op == opOpen && len(out) >= headSize+int(unsafe.Sizeof(fuse.OpenOut{})) {
			l.c.unheard(l.header().NodeId, (*fuse.OpenOut)(unsafe.Pointer(&out[headSize])).Fh)
		}
	case l.c.writeErr.CompareAndSwap(false, true):
		l.c.log.Error("FUSE answer can't be written", slog.Uint64("opcode", uint64(op)), slog.Any("error", err))
	}
}

// buffer returns memory for the answer to the request in the slot, and what to
// do when it was written.
func (l *loop) buffer() (out []byte, give func()) {
	size := l.answerSize()
	if size <= len(l.small) {
		return l.small, func() {}
	}
	for i, s := range answerSizes {
		if size <= s {
			if b, ok := l.c.answers[i].Get().(*[]byte); ok {
				return *b, func() { l.c.answers[i].Put(b) }
			}
		}
	}
	return make([]byte, size), func() {}
}

// answerSize returns how long the answer can become, in bytes.
func (l *loop) answerSize() int {
	const fixed = 512 // the longest fixed part and the header are shorter
	switch p := unsafe.Pointer(&l.in[0]); l.header().Opcode {
	case opRead, opReadDir, opReadDirPlus:
		return fixed + int((*fuse.ReadIn)(p).Size)
	case opGetXAttr, opListXAttr:
		return fixed + int((*fuse.GetXAttrIn)(p).Size)
	case opIoctl:
		return fixed + int((*fuse.IoctlIn)(p).OutSize)
	default:
		return smallAnswer
	}
}

// resend has the kernel send again what a process before this one has read and
// not answered. Kernels before 6.9 can't.
func (c *conn) resend() error {
	message := fuse.OutHeader{Length: uint32(headSize), Status: notifyResend}
	_, err := syscall.Write(c.fd, unsafe.Slice((*byte)(unsafe.Pointer(&message)), headSize))
	if err != nil {
		return fmt.Errorf("ask for unanswered requests: %w", err)
	}
	return nil
}

// alive says whether the kernel still has the connection.
func (c *conn) alive() bool {
	fds := []unix.PollFd{{Fd: int32(c.fd)}}
	_, err := unix.Poll(fds, 0)
	return err != nil || fds[0].Revents&(unix.POLLERR|unix.POLLNVAL) == 0
}

// register makes an open file a backing file of the connection. It stays one,
// whoever serves the connection, until unregister.
func (c *conn) register(fd int32) (id int32, errno syscall.Errno) {
	m := fuse.BackingMap{Fd: fd}
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(c.fd), devBackingOpen, uintptr(unsafe.Pointer(&m)))
	return int32(r), errno
}

func (c *conn) unregister(id int32) syscall.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(c.fd), devBackingClose, uintptr(unsafe.Pointer(&id)))
	return errno
}
