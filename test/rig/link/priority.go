package link

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"

	"golang.org/x/sys/unix"
)

// highest is the best nice value there is.
const highest = -20

// Prioritise makes the whole process fit for emulating a link on a machine
// that is busy. It is for a process that does nothing else.
//
// The workers' threads run in real time by themselves, but they share Go's
// scheduler with the rest of the process. A thread of ordinary priority that
// the kernel has put aside while it holds a lock of that scheduler, or the
// processor (in Go's sense) that a worker needs, holds the worker up: with
// six busy loops on two processors packets came up to 57 ms late. With every
// thread at the best nice value, more processors than anything here uses, and
// garbage collected rarely, they were at most 1 ms late (measured in November
// 2026). Without the right to it, niceness stays as it is.
func Prioritise() error {
	runtime.GOMAXPROCS(max(8, runtime.NumCPU()))
	debug.SetGCPercent(1000) // of a few hundred KiB: the queues' buffers are kept
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("link: prioritise: %w", err)
	}
	// Where the kernel groups sessions for fairness (sched(7), autogroup), a
	// nice value counts within the session only, and the session's own counts
	// outside. Start gives the emulator a session; a shell's is left alone.
	if sid, err := unix.Getsid(0); err == nil && sid == os.Getpid() {
		os.WriteFile("/proc/self/autogroup", []byte(strconv.Itoa(highest)), 0) //nolint:errcheck,gosec // best effort; no such file where the kernel does not group
	}
	// A thread that starts during the loop inherits from one that started
	// before it; those are few and all listed by now.
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			return fmt.Errorf("link: prioritise: %w", err)
		}
		err = unix.Setpriority(unix.PRIO_PROCESS, tid, highest)
		if err != nil && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("link: prioritise: %w", err)
		}
	}
	return nil
}

// raisePriority puts the calling thread before everything ordinary, so that a
// machine that is busy testing does not look like a slow link, and returns
// what it got. Real time is safe here: the thread sleeps for a quantum after
// each batch, and the kernel keeps 5% for others in any case.
func raisePriority() string {
	const (
		schedRR     = 2 // sched(7)
		resetOnFork = 1 // sched_setattr(2): threads that it starts are ordinary ones
	)
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: schedRR, Flags: resetOnFork, Priority: 10}
	if unix.SchedSetAttr(0, &attr, 0) == nil {
		return "realtime"
	}
	if unix.Setpriority(unix.PRIO_PROCESS, 0, highest) == nil {
		return "nice"
	}
	return "normal"
}
