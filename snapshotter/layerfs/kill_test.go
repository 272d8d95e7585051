package layerfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Daemons are killed at random moments while readers read in a loop and check
// what they read: no wrong byte, no error, nobody who waits for ever.
func TestReadersNoticeNothingOfKills(t *testing.T) {
	rounds := 20
	if os.Getenv("AIRSTREAM_SOAK") != "" {
		rounds = 300
	}
	for kernel, noResend := range kernels {
		t.Run(kernel, func(t *testing.T) {
			var entries []header
			contents := map[string][]byte{}
			for i := range 16 {
				name := fmt.Sprintf("d%d/f", i)
				contents[name] = random(byte(i), 3000+i*12000) // half of them are passed through
				entries = append(entries, dir(filepath.Dir(name), 0o755), file(name, 0o644, contents[name]))
			}
			d := newDaemons(t, tarOf(t, entries), noResend)
			d.start()
			var (
				readers sync.WaitGroup
				stop    atomic.Bool
				reads   atomic.Int64
			)
			for reader := range 8 {
				readers.Go(func() {
					random := rand.New(rand.NewPCG(uint64(reader), 1))
					for !stop.Load() {
						i := random.IntN(16)
						name := fmt.Sprintf("d%d/f", i)
						if err := readOnce(d.path(name), contents[name], random); err != nil {
							t.Errorf("reader %d: %v", reader, err)
							return
						}
						reads.Add(1)
					}
				})
			}
			moments := rand.New(rand.NewPCG(uint64(rounds), 2))
			for range rounds {
				time.Sleep(time.Duration(moments.Int64N(int64(50 * time.Millisecond)))) // the moment is the point
				if moments.IntN(4) == 0 {
					d.end(syscall.SIGTERM)
				} else {
					d.kill()
				}
				d.start()
			}
			stop.Store(true)
			done := make(chan struct{})
			go func() { readers.Wait(); close(done) }()
			select {
			case <-done:
			case <-time.After(30 * time.Second):
				t.Error("a reader waits for ever")
				d.abort()
				<-done
			}
			t.Logf("%d kills, %d files read", rounds, reads.Load())
			eventually(t, "all that was open is released", func() bool { return d.openFiles() == 0 })
		})
	}
}

// readOnce opens a file, drops it from the page cache, and compares it; and
// looks at a name that nobody has looked at before.
func readOnce(name string, want []byte, random *rand.Rand) (err error) {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	got, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%s: wrong bytes (%d of %d)", name, len(got), len(want))
	}
	none := fmt.Sprintf("%s/none%x", filepath.Dir(name), random.Uint64())
	if _, err := os.Lstat(none); !errors.Is(err, os.ErrNotExist) {
		return errors.Join(fmt.Errorf("%s should not be there", none), err)
	}
	names, err := os.ReadDir(filepath.Dir(name))
	if err != nil || len(names) != 1 {
		return fmt.Errorf("%s: %d names, %w", filepath.Dir(name), len(names), err)
	}
	return nil
}
