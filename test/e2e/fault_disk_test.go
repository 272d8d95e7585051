package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/airstream-io/airstream/test/rig/checker"
	"github.com/airstream-io/airstream/test/rig/site"
)

// The disk is full. Who makes an image complete gets an error, and nobody else:
// what is read is served from memory, images that are here go on, snapshots are
// made, and no byte is wrong. With room on the disk everything goes on.
func TestFaultDiskFull(t *testing.T) {
	const size = 12 << 20
	sc := newScene(t, site.Options{Profile: profile(t, "rtt=20ms,down=48mbit,up=8mbit"), Disk: site.Disk{Size: size}, Config: "[cache]\nreserve = \"1MiB\"\n"})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	sc.probe(t)
	loop := sc.target(t, "disk-full-loop", 256<<10)
	_, err := sc.cri.PullImage(ctx, sc.Ref(loop.tag()), nil)
	must(t, err)
	reader, err := sc.run(ctx, sc.Ref(loop.tag()), loop, "-pause", "2ms")
	must(t, err)
	tg := sc.target(t, "disk-full", 16<<20)
	_, err = sc.cri.PullImage(ctx, sc.Ref(tg.tag()), nil)
	must(t, err)
	measure := sc.prober.begin(t)
	if _, err := sc.Run(ctx, "prefetch", sc.Ref(tg.tag())); err == nil {
		t.Fatal("an image of 16 MiB is said to be complete on a disk of 12")
	} else {
		t.Logf("prefetch says: %v", err)
	}
	// A first read of what can't be stored, and a pull.
	c, err := sc.run(ctx, sc.Ref(tg.tag()), tg)
	must(t, err)
	_, err = c.until(ctx, time.Minute, "a hundred reads were made", func(r checker.Report) bool { return r.Reads > 100 })
	must(t, errors.Join(err, c.end(ctx)))
	late := sc.target(t, "disk-full-pull", 256<<10)
	s := sc.tryStart(ctx, late)
	must(t, s.err)
	must(t, s.container.readAll(ctx, time.Minute))
	must(t, s.container.end(ctx))
	must(t, reader.readAll(ctx, time.Minute))
	measure.check(t)
	must(t, sc.ResizeDisk(4*size))
	_, err = sc.Run(ctx, "prefetch", sc.Ref(tg.tag()))
	must(t, err)
	c, err = sc.run(ctx, sc.Ref(tg.tag()), tg)
	must(t, err)
	must(t, c.readAll(ctx, time.Minute))
	must(t, c.end(ctx))
	must(t, reader.end(ctx))
	sc.check(t, 0, tg)
}

// The disk changes bits in what is stored, while the daemon doesn't run. It
// finds every one before a container reads it, and fetches the content again.
func TestFaultBitsFlipInObjects(t *testing.T) {
	sc := newScene(t, site.Options{Profile: profile(t, "rtt=20ms,down=48mbit,up=8mbit")})
	tg := sc.target(t, "bit-flips-in-objects", 4<<20)
	sc.complete(t, tg)
	must(t, sc.StopDaemon(t.Context()))
	flipped := 0
	must(t, filepath.WalkDir(filepath.Join(sc.Root(), "store", "objects"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		flipped++
		return flipBits(path, 3)
	}))
	t.Logf("bits in %d objects", flipped)
	if flipped < 10 {
		t.Fatalf("only %d objects were found: the store is somewhere else", flipped)
	}
	must(t, sc.StartDaemon(t.Context()))
	sc.allRight(t, tg)
	sc.check(t, 0, tg)
}

// The same in everything else that the daemon keeps of images: it starts, and what it
// serves is right. What it can't know any more it asks for again.
func TestFaultBitsFlipInDatabases(t *testing.T) {
	sc := newScene(t, site.Options{Profile: profile(t, "rtt=20ms,down=48mbit,up=8mbit")})
	tg := sc.target(t, "bit-flips-in-databases", 1<<20)
	sc.complete(t, tg)
	must(t, sc.StopDaemon(t.Context()))
	for n := range times(8, 80) {
		kinds := []string{"store/store.db", "catalog.db", "store/trees/*/*", "store/blobs/*/*"}
		files, err := filepath.Glob(filepath.Join(sc.Root(), kinds[n%len(kinds)]))
		must(t, err)
		if len(files) == 0 {
			t.Fatalf("there is no %s: the store is somewhere else", kinds[n%len(kinds)])
		}
		file := files[rand.IntN(len(files))] //nolint:gosec // any will do
		content := mustRead(t, file)
		few, many := 4, len(content)/512+4 // one page, or every page
		t.Run(fmt.Sprintf("%s-%d", strings.Split(kinds[n%len(kinds)], "/*")[0], n), func(t *testing.T) {
			must(t, flipBits(file, []int{few, many}[n/len(kinds)%2]))
			defer func() { must(t, os.WriteFile(file, content, 0o600)) }()
			if err := sc.StartDaemon(t.Context()); err != nil {
				t.Fatalf("the daemon does not start: %v", err)
			}
			defer func() { must(t, sc.StopDaemon(context.WithoutCancel(t.Context()))) }()
			sc.allRight(t, tg)
		})
	}
	must(t, sc.StartDaemon(t.Context()))
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return b
}

// complete makes a target complete.
func (sc *scene) complete(t *testing.T, tg *target) {
	t.Helper()
	_, err := sc.cri.PullImage(t.Context(), sc.Ref(tg.tag()), nil)
	must(t, err)
	_, err = sc.Run(t.Context(), "prefetch", sc.Ref(tg.tag()))
	must(t, err)
}

// allRight pulls an image as kubelet does before it starts a pod, and has a
// container read all of it. containerd may still have a connection to a daemon
// that was stopped a moment ago, so the first try may fail.
func (sc *scene) allRight(t *testing.T, tg *target) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	s := sc.tryStart(ctx, tg)
	must(t, s.err)
	_, err := s.container.until(ctx, time.Minute, "everything was read", func(r checker.Report) bool { return r.Passes > 0 })
	must(t, errors.Join(err, s.container.end(ctx)))
}

// flipBits changes so many bits of a file, anywhere.
func flipBits(path string, bits int) error {
	b, err := os.ReadFile(path)
	if err != nil || len(b) == 0 {
		return err
	}
	for range bits {
		b[rand.IntN(len(b))] ^= 1 << rand.IntN(8) //nolint:gosec // any bit will do
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	return errors.Join(err, f.Close())
}
