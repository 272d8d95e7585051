// Command program is the checker in a test image: it reads the files of a Spec
// below a directory, over and over, compares every byte, and prints a Report
// as JSON four times a second. It goes on after what is wrong, for the test is
// to see all of it, and ends on SIGTERM, or after a number of passes with
// status 0 if nothing was wrong.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/test/rig/checker"
)

// every is how often a report is printed.
const every = 250 * time.Millisecond

func main() {
	seed := flag.Uint64("seed", 0, "of the content")
	size := flag.Int64("size", 0, "bytes of content")
	root := flag.String("root", "/", "where the files are")
	passes := flag.Int("passes", 0, "how often to read everything; 0: for ever")
	pause := flag.Duration("pause", 0, "between reads")
	flag.Parse()

	c := &check{root: *root, pause: *pause}
	stop := make(chan struct{})
	var printer sync.WaitGroup
	printer.Go(func() { c.print(stop) })
	files := checker.Spec{Seed: *seed, Size: *size}.Files()
	for n := 0; *passes == 0 || n < *passes; n++ {
		for _, i := range checker.Order(rand.Uint64(), len(files)) {
			c.file(files[i])
		}
		c.mu.Lock()
		c.report.Passes++
		c.mu.Unlock()
	}
	close(stop)
	printer.Wait()
	if c.report.Wrong+c.report.Errors > 0 {
		os.Exit(1)
	}
}

// check counts.
type check struct {
	root  string
	pause time.Duration

	mu     sync.Mutex
	report checker.Report // guarded by mu
	since  time.Time      // guarded by mu; when the present read began; zero: none is under way
}

func (c *check) print(stop chan struct{}) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for last := false; !last; {
		select {
		case <-stop:
			last = true
		case <-tick.C:
		}
		c.mu.Lock()
		r := c.report
		if !c.since.IsZero() {
			r.Waiting = time.Since(c.since).Milliseconds()
			r.Longest = max(r.Longest, r.Waiting)
		}
		c.mu.Unlock()
		line, err := json.Marshal(r)
		if err == nil {
			_, err = fmt.Printf("%s\n", line)
		}
		if err != nil {
			os.Exit(2)
		}
	}
}

// file reads one file: whole, then a few places in it, one of them mapped.
func (c *check) file(f checker.File) {
	c.read(f, 0, f.Size, whole)
	for range 2 {
		if f.Size > 1 {
			off := rand.Int64N(f.Size)
			c.read(f, off, min(f.Size-off, 1+rand.Int64N(16<<10)), piece)
		}
	}
	if f.Size > 0 {
		c.read(f, 0, f.Size, mapped)
	}
}

// read gets bytes [off, off+n) of a file in some way, compares and counts.
func (c *check) read(f checker.File, off, n int64, get func(path string, off, n int64) ([]byte, error)) {
	began := time.Now()
	c.mu.Lock()
	c.since = began
	c.mu.Unlock()
	got, err := get(filepath.Join(c.root, f.Path), off, n)
	took := time.Since(began)
	want := make([]byte, n)
	f.Fill(want, off)
	c.mu.Lock()
	defer time.Sleep(c.pause)
	defer c.mu.Unlock()
	c.since = time.Time{}
	r := &c.report
	r.Reads++
	r.Longest = max(r.Longest, took.Milliseconds())
	if took > checker.Slow {
		r.Slow++
	}
	switch {
	case err != nil:
		r.Errors++
		if r.First == "" {
			r.First = err.Error()
		}
	case !bytes.Equal(got, want):
		r.Wrong++
		if r.First == "" {
			r.First = fmt.Sprintf("%s: wrong bytes among %d at %d, first at %d", f.Path, n, off, firstDifference(got, want))
		}
	default:
		r.Bytes += n
	}
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// open opens a file and drops its pages, so that reading asks the file system.
// Pages that somebody has mapped stay.
func open(path string) (*os.File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return nil, errors.Join(fmt.Errorf("drop pages of %s: %w", path, err), file.Close())
	}
	return file, nil
}

// whole reads to the end, wherever that is: a file of another size is wrong.
func whole(path string, _, _ int64) (b []byte, err error) {
	file, err := open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return io.ReadAll(file)
}

// piece reads a part.
func piece(path string, off, n int64) (b []byte, err error) {
	file, err := open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return io.ReadAll(io.NewSectionReader(file, off, n))
}

// mapped reads through a mapping: each page is a fault.
func mapped(path string, off, n int64) (b []byte, err error) {
	file, err := open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	m, err := unix.Mmap(int(file.Fd()), 0, int(off+n), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, unix.Munmap(m)) }()
	// A page that can't be had is a signal; it counts as the failed read that
	// it is.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("a page of %s: %v", path, r)
		}
	}()
	return bytes.Clone(m[off:]), nil
}
