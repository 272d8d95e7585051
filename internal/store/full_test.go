package store

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// smallDisk mounts a file system of the given size, in bytes.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount a small file system")
	}
	dir := t.TempDir()
	must(t, unix.Mount("airstream-test", dir, "tmpfs", 0, "size="+size))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

// stuff fills a disk to the last byte, as others do.
func stuff(t *testing.T, dir string) (remove func()) {
	t.Helper()
	name := filepath.Join(dir, "of others")
	f, err := os.Create(name)
	must(t, err)
	for block := make([]byte, 64<<10); len(block) > 0; {
		if _, err := f.Write(block); err != nil {
			block = block[:len(block)/2]
		}
	}
	must(t, f.Close())
	return func() { must(t, os.Remove(name)) }
}

func putAll(c content, o *Object) error {
	for i, k := range c.chunks {
		if err := o.Put(uint32(i), k, c.bytes(i)); err != nil {
			return err
		}
	}
	return nil
}

func TestReserveIsKeptForTheDatabase(t *testing.T) {
	dir := smallDisk(t, "32m")
	const reserve = 12 << 20
	s, err := Open(filepath.Join(dir, "store"), Options{FlushDelay: never, Reserve: reserve, Logger: slog.New(slog.DiscardHandler)})
	must(t, err)
	c := newContent(1, 40_000_000)
	o := c.open(t, s)
	err = putAll(c, o)
	if !errors.Is(err, ErrNoSpace) {
		t.Fatalf("40 MB on a disk of 32: %v", err)
	}
	select {
	case <-s.Pressure():
	default:
		t.Error("nobody was told that room gets short")
	}
	u, err := s.Usage()
	must(t, err)
	if u.Free < reserve*9/10 || u.Free > reserve*3/2 {
		t.Errorf("%d bytes are left, want about %d", u.Free, reserve)
	}
	must(t, s.Flush())
	must(t, s.PutBlob(digest.FromString("manifest"), []byte("manifest"))) // there is room for what is small
	for size, want := range map[int64]error{6: nil, small: nil, small + 1: ErrNoSpace} {
		config := digest.FromString(fmt.Sprint("config", size))
		p := openPartial(t, s, config)
		p.Expect(size)
		if _, err := p.Write([]byte("config")); !errors.Is(err, want) {
			t.Errorf("the beginning of a blob of %d bytes: %v", size, err)
		}
		must(t, p.Close())
		_, err = s.DeletePartial(config)
		must(t, err)
	}

	remove := stuff(t, dir)
	if err := o.Put(0, c.chunks[0], c.bytes(0)); err != nil {
		t.Errorf("what is here already: %v", err)
	}
	tiny := newContent(2, 1000)
	if so, err := s.Object(tiny.id, 1000, 1); err == nil {
		if err := so.Put(0, tiny.chunks[0], tiny.data); !errors.Is(err, ErrNoSpace) {
			t.Errorf("on a full disk: %v", err)
		}
		must(t, so.Close())
	}
	before := o.Missing()
	must(t, o.Close())
	must(t, s.Flush())
	// The database has room: eviction works on a full disk.
	_, freed, err := s.DeleteObjects(tiny.id, newContent(3, 10).id)
	if err != nil || freed > 1<<20 {
		t.Errorf("freed %d, %v", freed, err)
	}
	remove()
	o = c.open(t, s)
	if o.Missing() != before {
		t.Errorf("%d chunks are missing, %d before", o.Missing(), before)
	}
	must(t, o.Close())
	_, freed, err = s.DeleteObjects(c.id)
	must(t, err)
	if freed < 8<<20 {
		t.Errorf("only %d bytes were freed", freed)
	}
	o = tiny.open(t, s) // after room is back all works, without a restart
	must(t, putAll(tiny, o))
	must(t, o.Close())
	must(t, s.Close())
	s = openStore(t, filepath.Join(dir, "store"))
	if missing, _ := s.HasObject(tiny.id, 1); missing != 0 {
		t.Error("what was put after that is missing")
	}
	must(t, s.Close())
}

func TestFullDiskPromisesNothingAndRecovers(t *testing.T) {
	dir := smallDisk(t, "8m")
	s, err := Open(filepath.Join(dir, "store"), Options{FlushDelay: never, Logger: slog.New(slog.DiscardHandler)})
	must(t, err)
	c := newContent(1, 20_000)
	o := c.open(t, s)
	c.put(t, o, 0, 1)
	b := newContent(5, 3_000_000)
	p := openPartial(t, s, digest.FromBytes(b.data))
	write(t, p, b.data[:10_000])
	must(t, s.Flush())
	c.put(t, o, 2)
	remove := stuff(t, dir)
	if _, err := p.Write(b.data[10_000:]); !errors.Is(err, ErrNoSpace) {
		t.Errorf("a blob on a full disk: %v", err)
	}
	if err := s.PutBlob(digest.FromBytes(b.data), b.data); !errors.Is(err, ErrNoSpace) {
		t.Errorf("a whole blob on a full disk: %v", err)
	}
	if err := s.Flush(); err != nil && !errors.Is(err, ErrNoSpace) {
		t.Errorf("flush: %v", err)
	}
	if err := o.Check(1, c.chunks[1]); err != nil {
		t.Errorf("what is here can't be read: %v", err)
	}
	remove()
	must(t, putAll(c, o))
	write(t, p, b.data[p.Len():])
	must(t, p.Commit())
	must(t, p.Close())
	must(t, o.Close())
	must(t, s.Close())
	s = openStore(t, filepath.Join(dir, "store"))
	if missing, _ := s.HasObject(c.id, uint32(len(c.chunks))); missing != 0 {
		t.Errorf("%d chunks are missing", missing)
	}
	must(t, s.Close())
}

func TestLimitStopsContentAndPresses(t *testing.T) {
	s, err := Open(t.TempDir(), Options{FlushDelay: never, Limit: 1 << 20})
	must(t, err)
	c := newContent(1, 3_000_000)
	o := c.open(t, s)
	if err := putAll(c, o); !errors.Is(err, ErrNoSpace) {
		t.Errorf("3 MB within 1 MiB: %v", err)
	}
	select {
	case <-s.Pressure():
	default:
		t.Error("nobody was told")
	}
	must(t, s.Flush())
	u, err := s.Usage()
	must(t, err)
	if stored := u.Bytes - s.db.Size(); stored < 1<<20 || stored > 1<<20+1<<17 {
		t.Errorf("%d bytes are stored within %d", stored, u.Limit)
	}
	if u.Over() <= 0 {
		t.Errorf("usage %+v is not over its limit", u)
	}
	s.SetLimit(8<<20, 0)
	must(t, putAll(c, o))
	must(t, o.Close())
	must(t, s.Close())
}

func TestUsageCountsBlocksAndIsKept(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	c, d := newContent(1, 400_000), newContent(2, 100_000)
	o := c.open(t, s)
	c.put(t, o, 0, 1, 2, 3)
	must(t, o.Close())
	do := d.open(t, s)
	d.put(t, do, d.all()...)
	must(t, do.Close())
	blob := d.data
	must(t, s.PutBlob(digest.FromBytes(blob), blob))
	must(t, s.Flush())
	check := func(when string) {
		t.Helper()
		have := s.space.used.Load()
		must(t, s.Recount())
		if want := s.space.used.Load(); have != want {
			t.Errorf("%s: %d bytes in the account, %d on disk", when, have, want)
		}
	}
	check("after putting")
	if u := s.space.used.Load(); u > 300_000 {
		t.Errorf("%d bytes: holes were counted", u)
	}
	p := openPartial(t, s, digest.FromString("x"))
	write(t, p, blob)
	must(t, p.Close())
	check("with a partial blob")
	_, _, err := s.DeleteObjects(c.id)
	must(t, err)
	_, err = s.DeletePartial(digest.FromString("x"))
	must(t, err)
	check("after deleting")
	want := s.space.used.Load()
	must(t, s.Close())
	s = openStore(t, dir)
	if got := s.space.used.Load(); got != want {
		t.Errorf("after a restart: %d, want %d", got, want)
	}
	must(t, s.Close())
}
