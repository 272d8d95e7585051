package link

import (
	"errors"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// How the worker shares the processor with the machine that it emulates a
// link for.
const (
	// quantum is how long packets may be gathered before they are handled
	// together. It bounds the worker's wake-ups at 2000 a second and the error
	// that it makes in time at half a millisecond each way.
	quantum = 500 * time.Microsecond
	// batch is how many packets are fetched before due ones are delivered.
	batch = 256
	// bufferSize is the size of the buffers that are used again.
	bufferSize = 2048
	// buffersKept bounds them: 8 MiB.
	buffersKept = 4096
)

// errStopped is returned for commands to an emulator that has ended.
var errStopped = errors.New("link: emulator has stopped")

// worker carries one direction: from one device through a shaper to another,
// on a thread of its own.
type worker struct {
	in, out *tun
	shaper  *shaper
	clock   func() time.Duration // since the link began, monotonic
	wakeFD  int                  // eventfd: there are commands
	stopped chan struct{}        // closed when the thread has ended

	mu       sync.Mutex
	commands []func(now time.Duration) // guarded by mu; run on the thread
	stop     bool                      // guarded by mu

	// Used by the thread alone, and kept so that carrying packets makes no
	// garbage.
	priority    string
	polled      [2]unix.PollFd // wakeFD, in
	timeout     unix.Timespec
	scratch     []byte
	free        [][]byte
	flows       flows
	writeErrors uint64
}

func newWorker(in, out *tun, seed uint64, clock func() time.Duration) (*worker, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	w := &worker{
		in: in, out: out, clock: clock, wakeFD: fd,
		stopped: make(chan struct{}), scratch: make([]byte, MaxMTU),
	}
	w.polled = [2]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(in.fd), Events: unix.POLLIN}} //nolint:gosec // descriptors are small
	w.shaper = newShaper(seed, w.write, w.recycle)
	return w, nil
}

// run carries packets until end is called. It takes the thread with it.
func (w *worker) run() {
	runtime.LockOSThread() // never unlocked: its priority must not go back to the pool
	defer close(w.stopped)
	w.priority = raisePriority()
	for {
		fetched := w.fetch()
		now := w.clock()
		w.shaper.advance(now)
		if w.obey(now) {
			return
		}
		w.wait(now, fetched > 0)
	}
}

// wait returns when there may be something to do. After packets have been
// fetched more are likely to follow: they gather for one quantum instead of
// waking the thread one by one.
func (w *worker) wait(now time.Duration, busy bool) {
	fds := w.polled[:]
	timeout := &w.timeout
	due, ok := w.shaper.next()
	switch {
	case busy:
		fds = fds[:1]
		*timeout = unix.NsecToTimespec(int64(quantum))
	case ok:
		*timeout = unix.NsecToTimespec(int64(max(due-now, quantum)))
	default:
		timeout = nil
	}
	unix.Ppoll(fds, timeout, nil) //nolint:errcheck // interrupted or not, the caller looks at everything
	if fds[0].Revents != 0 {
		var counter [8]byte
		unix.Read(w.wakeFD, counter[:]) //nolint:errcheck // empties it
	}
}

// fetch takes the packets that the sender has left, at most a batch, and
// returns their number.
func (w *worker) fetch() int {
	for n := range batch {
		size, err := unix.Read(w.in.fd, w.scratch)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || size <= 0 { // EAGAIN: no more
			return n
		}
		w.accept(w.scratch[:size])
	}
	return batch
}

// accept hands one packet to the shaper.
func (w *worker) accept(data []byte) {
	s, isTCP := parseSegment(data)
	if isTCP && s.opens() {
		w.shaper.count.SYNs++
		if w.flows.add(s.flow) {
			w.shaper.count.Connections++
		}
	}
	if isTCP && w.shaper.mode == ModeReset {
		if answer, ok := s.reset(); ok {
			w.shaper.count.Resets++
			w.writeTo(w.in, answer)
		}
	}
	w.shaper.offer(w.clock(), append(w.buffer(len(data)), data...))
}

// write puts a packet that has arrived into the receiver's device.
func (w *worker) write(_ time.Duration, p packet) {
	w.writeTo(w.out, p.data)
	w.recycle(p.data)
}

func (w *worker) writeTo(t *tun, data []byte) {
	for {
		_, err := unix.Write(t.fd, data)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			w.writeErrors++
		}
		return
	}
}

// buffer returns an empty slice with room for size bytes.
func (w *worker) buffer(size int) []byte {
	if size > bufferSize {
		return make([]byte, 0, size)
	}
	if last := len(w.free) - 1; last >= 0 {
		b := w.free[last]
		w.free = w.free[:last]
		return b
	}
	return make([]byte, 0, bufferSize)
}

func (w *worker) recycle(data []byte) {
	if cap(data) == bufferSize && len(w.free) < buffersKept {
		w.free = append(w.free, data[:0])
	}
}

// do runs fn on the thread, where it may use everything the thread does, and
// waits for it.
func (w *worker) do(fn func(now time.Duration)) error {
	done := make(chan struct{})
	err := w.post(func() error {
		if w.stop {
			return errStopped
		}
		w.commands = append(w.commands, func(now time.Duration) { fn(now); close(done) })
		return nil
	})
	if err != nil {
		return err
	}
	<-done // the thread obeys what was posted before it was told to stop
	return nil
}

// end ends run; commands that come later are refused.
func (w *worker) end() error {
	return w.post(func() error { w.stop = true; return nil })
}

// post changes what mu guards and wakes the thread. It does both under the
// lock, so that nobody touches wakeFD after end.
func (w *worker) post(change func() error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := change(); err != nil {
		return err
	}
	_, err := unix.Write(w.wakeFD, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	if errors.Is(err, unix.EAGAIN) { // full: the thread is awake
		err = nil
	}
	return err
}

// obey runs the commands that have come and reports whether to stop.
func (w *worker) obey(now time.Duration) (stop bool) {
	w.mu.Lock()
	commands := w.commands
	w.commands, stop = nil, w.stop
	w.mu.Unlock()
	for _, command := range commands {
		command(now)
	}
	return stop
}
