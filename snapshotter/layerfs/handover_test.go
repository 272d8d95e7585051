package layerfs_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/snapshotter/layerfs"
)

// Requests that wait when the daemon is killed are answered by the next one.
func TestWaitingRequestsSurviveTheDaemon(t *testing.T) {
	for kernel, noResend := range kernels {
		t.Run(kernel, func(t *testing.T) {
			want := random(1, 300<<10)
			d := newDaemons(t, tarOf(t, []header{file("big", 0o644, want), file("small", 0o644, []byte("small"))}), noResend)
			d.start(func(s *serving) { s.HoldTOC = true })
			look := exec.Command("cat", d.path("small"))
			var looked bytes.Buffer
			look.Stdout = &looked
			start(t, look)
			eventually(t, "the look-up waits", func() bool { return inState(look, "D") })
			d.kill()

			d.start(hold("big"))
			if err := look.Wait(); err != nil || looked.String() != "small" {
				t.Errorf("look-up over a crash: %q, %v", &looked, err)
			}
			read := exec.Command("sha256sum", d.path("big"))
			var sum bytes.Buffer
			read.Stdout = &sum
			start(t, read)
			eventually(t, "the read waits", func() bool { return d.stats().Reads > 0 && inState(read, "D") })
			d.kill()
			// One that comes while nobody serves.
			late := exec.Command("cat", d.path("small"))
			var lately bytes.Buffer
			late.Stdout = &lately
			start(t, late)
			d.start(hold("big"))
			d.end(syscall.SIGTERM) // again without an answer
			d.start()
			if err := read.Wait(); err != nil || !strings.HasPrefix(sum.String(), fmt.Sprintf("%x", sha256.Sum256(want))) {
				t.Errorf("read over two restarts: %q, %v", &sum, err)
			}
			if err := late.Wait(); err != nil || lately.String() != "small" {
				t.Errorf("read while nobody served: %q, %v", &lately, err)
			}
		})
	}
}

// A daemon comes up at once whatever waits for it.
func TestHundredsOfRequestsWaitForTheNextDaemon(t *testing.T) {
	const files = 300
	for kernel, noResend := range kernels {
		t.Run(kernel, func(t *testing.T) {
			var entries []header
			var names []string
			for i := range files {
				names = append(names, fmt.Sprint(i))
				entries = append(entries, file(names[i], 0o644, random(byte(i), 5000)))
			}
			d := newDaemons(t, tarOf(t, entries), noResend)
			d.start(hold(names...))
			var readers sync.WaitGroup
			for i, name := range names {
				readers.Go(func() {
					if b, err := os.ReadFile(d.path(name)); err != nil || !bytes.Equal(b, random(byte(i), 5000)) {
						t.Errorf("file %s: %d bytes, %v", name, len(b), err)
					}
				})
			}
			eventually(t, "all wait", func() bool { return d.stats().Reads >= files })
			d.kill()
			up := d.start()
			began := time.Now()
			readers.Wait()
			t.Logf("up in %v, all %d answered %v later", up, files, time.Since(began).Round(time.Millisecond))
			if up > time.Second {
				t.Errorf("the next daemon took %v to take over", up)
			}
		})
	}
}

// The next daemon opens files in the way in which they are open; the kernel
// would refuse another. And what the kernel reads by itself it goes on to read.
func TestOpenFilesSurviveTheDaemon(t *testing.T) {
	want := random(3, 1<<20)
	d := newDaemons(t, tarOf(t, []header{file("whole", 0o755, want), file("late", 0o644, want), file("tiny", 0o644, []byte("tiny"))}), false)
	d.start(hold("late"))
	open := func(name string) *os.File {
		t.Helper()
		f, err := os.Open(d.path(name))
		if err != nil {
			t.Fatalf("open %s: %v", name, err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	read := func(f *os.File) {
		t.Helper()
		b, err := io.ReadAll(io.NewSectionReader(f, 0, 2<<20))
		if err != nil || !bytes.Equal(b, want) {
			t.Fatalf("%s: %d bytes, %v", f.Name(), len(b), err)
		}
	}
	whole := open("whole")
	if d.stats().Passthrough == 0 {
		t.Skip("skipped: this kernel has no FUSE passthrough (Linux 6.9)")
	}
	late := open("late") // by cache: it is not complete
	d.kill()
	read(whole) // with nobody there

	d.start() // now late is complete
	for range 2 {
		second, third := open("whole"), open("late")
		forget(t, d.path("late"))
		read(second)
		read(third)
		read(late)
		if s := d.stats(); s.Passthrough == 0 || s.Reads == 0 {
			t.Errorf("opens beside those from before: %+v", s)
		}
		// The next daemon inherits these as well; the first ones close meanwhile.
		d.kill()
		if err := errors.Join(second.Close(), third.Close()); err != nil {
			t.Fatal(err)
		}
		d.start()
		read(whole)
	}
	if err := errors.Join(late.Close(), whole.Close()); err != nil {
		t.Fatal(err)
	}
	// When all are closed, complete files are passed through again.
	eventually(t, "late is opened by passthrough", func() bool {
		before := d.stats()
		f := open("late")
		read(f)
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		return d.stats().Passthrough == before.Passthrough+1
	})
	d.kill()
	d.start()
	read(open("whole"))
}

// A program that runs from the tree, and what it has mapped, don't notice.
func TestMappedFilesSurviveTheDaemon(t *testing.T) {
	for kernel, noResend := range kernels {
		t.Run(kernel, func(t *testing.T) {
			want := random(4, 4<<20)
			shell, err := os.ReadFile("/bin/sh")
			if err != nil {
				t.Fatal(err)
			}
			shell = append(shell, make([]byte, 1<<20)...) // small files are not passed through
			d := newDaemons(t, tarOf(t, []header{file("data", 0o644, want), file("sh", 0o755, shell)}), noResend)
			d.start()
			run := func(cmd *exec.Cmd) (io.WriteCloser, *bufio.Reader) {
				t.Helper()
				in, err := cmd.StdinPipe()
				out, err2 := cmd.StdoutPipe()
				if err := errors.Join(err, err2); err != nil {
					t.Fatal(err)
				}
				start(t, cmd)
				r := bufio.NewReader(out)
				if line, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(line, "mapped") {
					t.Fatalf("%q, %v", line, err)
				}
				return in, r
			}
			mapper := exec.Command(os.Args[0])
			mapper.Env = append(os.Environ(), helperEnv+"=map:"+d.path("data"))
			program := exec.Command(d.path("sh"), "-c", "echo mapped; read x; echo $((6*7)) $x; printf 'ran\n'")
			mapIn, mapOut := run(mapper)
			runIn, runOut := run(program)
			d.kill()
			for _, in := range []io.Writer{mapIn, runIn} {
				if _, err := io.WriteString(in, "go\n"); err != nil {
					t.Fatal(err)
				}
			}
			d.start()
			if line, err := mapOut.ReadString('\n'); line != fmt.Sprintf("%x\n", sha256.Sum256(want)) {
				t.Errorf("mapped file: %q, %v", line, err)
			}
			if line, err := runOut.ReadString('\n'); line != "42 go\n" {
				t.Errorf("program: %q, %v", line, err)
			}
			if err := errors.Join(mapper.Wait(), program.Wait()); err != nil {
				t.Error(err)
			}
		})
	}
}

// The kernel reports one signal of a waiting process. When that was told to a
// daemon that died, the next one must still let the process be killed.
func TestReaderCanBeKilledAfterAHandover(t *testing.T) {
	for kernel, noResend := range kernels {
		t.Run(kernel, func(t *testing.T) {
			d := newDaemons(t, tarOf(t, []header{file("big", 0o644, random(1, 8192))}), noResend)
			d.start(hold("big"))
			reader := exec.Command("dd", "if="+d.path("big"), "of=/dev/null", "iflag=direct", "bs=4096", "count=1")
			start(t, reader)
			eventually(t, "it waits", func() bool { return d.stats().Reads > 0 })
			if err := reader.Process.Signal(syscall.SIGUSR1); err != nil { // spends the message
				t.Fatal(err)
			}
			time.Sleep(50 * time.Millisecond) // it is on its way
			d.kill()
			d.start(hold("big"))
			if err := reader.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_ = reader.Wait()
			}()
			select {
			case <-ended:
			case <-time.After(10 * time.Second):
				t.Error("a reader that waits can't be killed after a handover")
			}
		})
	}
}

// What can't be taken over is replaced.
func TestMountReplacesWhatCannotBeTakenOver(t *testing.T) {
	layer := tarOf(t, []header{file("f", 0o644, []byte("f"))})
	check := func(t *testing.T, d *daemons) {
		t.Helper()
		if b, err := os.ReadFile(d.path("f")); err != nil || string(b) != "f" {
			t.Errorf("%q, %v", b, err)
		}
	}
	t.Run("unmounted meanwhile", func(t *testing.T) {
		d := newDaemons(t, layer, false)
		d.start()
		d.kill()
		if err := unix.Unmount(d.what.Dir, unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		d.start()
		check(t, d)
	})
	t.Run("other state", func(t *testing.T) {
		d := newDaemons(t, layer, false)
		d.start()
		d.kill()
		_, files, err := d.keeper.Environ(nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if f.Name() == "tree-state" {
				if _, err := f.WriteAt([]byte("airstream tree 0"), 0); err != nil {
					t.Fatal(err)
				}
			}
			_ = f.Close()
		}
		d.start()
		check(t, d)
	})
	t.Run("kept and not given", func(t *testing.T) {
		d := newDaemons(t, layer, false)
		d.start()
		d.kill()
		n := newNode(t)
		n.add(t, 0, layer)
		s, err := layerfs.Mount(d.what.Dir, n, layerfs.Options{})
		if err != nil {
			t.Fatal(err)
		}
		check(t, d)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("ended for good", func(t *testing.T) {
		d := newDaemons(t, layer, false)
		d.start(func(s *serving) { s.Final = true })
		if names := d.keeper.Names(); len(names) != 2 {
			t.Errorf("kept: %q, want a connection and its state", names)
		}
		d.end(syscall.SIGTERM)
		if names := d.keeper.Names(); len(names) != 0 {
			t.Errorf("kept after the end: %q", names)
		}
		if err := unix.Unmount(d.what.Dir, 0); !errors.Is(err, unix.EINVAL) {
			t.Errorf("something is still mounted: %v", err)
		}
		d.start()
		check(t, d)
	})
}
