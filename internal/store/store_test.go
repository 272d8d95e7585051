package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/toc"
)

func TestMain(m *testing.M) {
	if what := os.Getenv("AIRSTREAM_TEST_RECORDER"); what != "" {
		part := strings.Split(what, ":")
		if err := runRecorder(part[0], part[1], part[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// never keeps the background flusher out of tests that flush by hand.
const never = 24 * time.Hour

func openStore(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir, Options{FlushDelay: never})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// crash returns a copy of what a power loss would leave of the store in dir:
// nothing is flushed, nothing is closed.
func crash(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "after")
	must(t, os.CopyFS(to, os.DirFS(dir)))
	return to
}

// content is a file in chunks of 1000 bytes.
type content struct {
	id     toc.ObjectID
	data   []byte
	chunks []toc.Chunk
}

func newContent(seed uint64, size int) content {
	r := rand.New(rand.NewPCG(seed, 0))
	c := content{data: make([]byte, size)}
	for i := range c.data {
		c.data[i] = byte(r.Uint32())
	}
	for off := 0; off < size; off += 1000 {
		p := c.data[off:min(off+1000, size)]
		c.chunks = append(c.chunks, toc.Chunk{ID: chunk.Sum(p), Offset: int64(off), Size: uint32(len(p))})
	}
	c.id = toc.ObjectID(chunk.Sum(c.data))
	return c
}

func (c content) open(t *testing.T, s *Store) *Object {
	t.Helper()
	o, err := s.Object(c.id, int64(len(c.data)), uint32(len(c.chunks)))
	must(t, err)
	return o
}

func (c content) bytes(i int) []byte {
	k := c.chunks[i]
	return c.data[k.Offset : k.Offset+int64(k.Size)]
}

func (c content) put(t *testing.T, o *Object, which ...int) {
	t.Helper()
	for _, i := range which {
		must(t, o.Put(uint32(i), c.chunks[i], c.bytes(i)))
	}
}

func (c content) all() []int {
	var n []int
	for i := range c.chunks {
		n = append(n, i)
	}
	return n
}

func TestObjectGivesBackWhatWasPut(t *testing.T) {
	s := openStore(t, t.TempDir())
	c := newContent(1, 4500)
	o := c.open(t, s)
	c.put(t, o, 1, 4)
	for i := range c.chunks {
		err := o.Check(uint32(i), c.chunks[i])
		if here := i == 1 || i == 4; here != (err == nil) || !here && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("chunk %d: %v", i, err)
		}
	}
	got := make([]byte, 500)
	if _, err := o.ReadAt(got, 4000); err != nil || !bytes.Equal(got, c.bytes(4)) {
		t.Errorf("chunk 4: %v, equal %v", err, bytes.Equal(got, c.bytes(4)))
	}
	if o.Missing() != 3 || o.Complete() != nil {
		t.Errorf("%d missing, complete %v; want 3 and no file", o.Missing(), o.Complete())
	}
	c.put(t, o, 0, 2, 3)
	if o.Missing() != 0 || o.Complete() == nil {
		t.Errorf("%d missing, complete %v; want 0 and a file", o.Missing(), o.Complete())
	}
	must(t, o.Close())
	must(t, s.Close())
}

func TestPutRefusesOtherBytes(t *testing.T) {
	s := openStore(t, t.TempDir())
	c := newContent(1, 3000)
	o := c.open(t, s)
	if err := o.Put(0, c.chunks[0], c.bytes(1)); !errors.Is(err, chunk.ErrMismatch) {
		t.Errorf("wrong bytes: %v", err)
	}
	if err := o.Put(0, c.chunks[0], c.bytes(0)[:10]); err == nil {
		t.Error("short bytes were taken")
	}
	if err := o.Put(3, c.chunks[0], c.bytes(0)); err == nil {
		t.Error("a chunk behind the end was taken")
	}
	if o.Has(0) || o.Missing() != 3 {
		t.Error("a refused chunk is present")
	}
	must(t, o.Close())
	must(t, s.Close())
}

func TestCrashKeepsWhatWasFlushedAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	c := newContent(1, 10_000)
	o := c.open(t, s)
	c.put(t, o, 0, 7)
	must(t, s.Flush())
	c.put(t, o, 1, 8)
	after := openStore(t, crash(t, dir))
	again := c.open(t, after)
	for i := range c.chunks {
		if want := i == 0 || i == 7; again.Has(uint32(i)) != want {
			t.Errorf("chunk %d: present %v, want %v", i, again.Has(uint32(i)), want)
		}
	}
	must(t, again.Check(7, c.chunks[7]))
	must(t, again.Close())
	must(t, after.Close())

	must(t, o.Close()) // closed, still not durable
	after = openStore(t, crash(t, dir))
	if missing, _ := after.HasObject(c.id, 10); missing != 8 {
		t.Errorf("%d missing, want 8", missing)
	}
	must(t, after.Close())

	must(t, s.Close())
	s = openStore(t, dir)
	if missing, _ := s.HasObject(c.id, 10); missing != 6 {
		t.Errorf("after a clean stop: %d missing, want 6", missing)
	}
	must(t, s.Close())
}

func TestFlusherMakesDurableByItself(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{FlushDelay: time.Millisecond})
	must(t, err)
	c := newContent(1, 2000)
	o := c.open(t, s)
	c.put(t, o, c.all()...)
	must(t, o.Close())
	for deadline := time.Now().Add(10 * time.Second); ; {
		s.mu.Lock()
		n := len(s.dirty)
		s.mu.Unlock()
		if n == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing was flushed in 10 s")
		}
		time.Sleep(time.Millisecond)
	}
	after := openStore(t, crash(t, dir))
	if missing, _ := after.HasObject(c.id, 2); missing != 0 {
		t.Errorf("%d missing, want 0", missing)
	}
	must(t, after.Close())
	must(t, s.Close())
}

func objectFile(t *testing.T, dir string, id toc.ObjectID) string {
	t.Helper()
	return filepath.Join(dir, "objects", id.String()[:2], id.String())
}

func TestRottenBytesAreNotServedAndCanBePutAgain(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	c := newContent(1, 5000)
	o := c.open(t, s)
	c.put(t, o, c.all()...)
	must(t, o.Close())
	must(t, s.Close())

	f, err := os.OpenFile(objectFile(t, dir, c.id), os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte{c.data[2345] ^ 4}, 2345)
	must(t, errors.Join(err, f.Close()))

	s = openStore(t, dir)
	o = c.open(t, s)
	if o.Complete() != nil {
		t.Error("bytes of an earlier process are complete before anybody hashed them")
	}
	for i := range c.chunks {
		if err := o.Check(uint32(i), c.chunks[i]); (i == 2) != errors.Is(err, ErrDamaged) {
			t.Errorf("chunk %d: %v", i, err)
		}
	}
	if o.Has(2) || o.Missing() != 1 || o.Complete() != nil {
		t.Error("the damaged chunk is still present")
	}
	c.put(t, o, 2)
	if err := o.Check(2, c.chunks[2]); err != nil || o.Complete() == nil {
		t.Errorf("after repair: %v, complete %v", err, o.Complete())
	}
	must(t, o.Close())
	must(t, s.Close())
}

func TestLostOrCutFileIsMissing(t *testing.T) {
	for name, harm := range map[string]func(string) error{
		"removed": os.Remove,
		"cut":     func(p string) error { return os.Truncate(p, 1500) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir)
			c := newContent(1, 3000)
			o := c.open(t, s)
			c.put(t, o, c.all()...)
			must(t, o.Close())
			must(t, s.Close())
			must(t, harm(objectFile(t, dir, c.id)))

			s = openStore(t, dir)
			o = c.open(t, s)
			if o.Missing() != 3 {
				t.Errorf("%d missing, want 3", o.Missing())
			}
			must(t, o.Close())
			must(t, s.Close())
			s = openStore(t, dir)
			if missing, _ := s.HasObject(c.id, 3); missing != 3 {
				t.Errorf("after a restart: %d missing, want 3", missing)
			}
			must(t, s.Close())
		})
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "another airstream") {
		t.Errorf("got %v", err)
	}
	must(t, s.Close())
}

func TestManyAtOnce(t *testing.T) {
	s, err := Open(t.TempDir(), Options{FlushDelay: time.Microsecond})
	must(t, err)
	var wg sync.WaitGroup
	contents := []content{newContent(1, 64_000), newContent(2, 999), newContent(3, 130_000)}
	for w := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			for range 200 {
				c := contents[r.IntN(len(contents))]
				o, err := s.Object(c.id, int64(len(c.data)), uint32(len(c.chunks)))
				if err != nil {
					t.Error(err)
					return
				}
				i := r.IntN(len(c.chunks))
				if err := o.Put(uint32(i), c.chunks[i], c.bytes(i)); err != nil {
					t.Error(err)
				}
				got := make([]byte, c.chunks[i].Size)
				if err := o.Check(uint32(i), c.chunks[i]); err != nil {
					t.Error(err)
				}
				if _, err := o.ReadAt(got, c.chunks[i].Offset); err != nil || !bytes.Equal(got, c.bytes(i)) {
					t.Errorf("chunk %d: %v", i, err)
				}
				s.HasObject(c.id, uint32(len(c.chunks)))
				if err := o.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	must(t, s.Close())
	if len(s.objects) != 0 || len(s.dirty) != 0 {
		t.Errorf("%d objects open and %d dirty after Close", len(s.objects), len(s.dirty))
	}
}

func TestTreeIsMappedAndChecked(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	tree, err := toc.Parse(strings.NewReader(`{"version":1,"entries":[{"name":"a","type":"dir"}]}`), 10)
	must(t, err)
	d := digest.FromString("table")
	if _, err := s.Tree(d); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before: %v", err)
	}
	must(t, s.PutTree(d, tree))
	must(t, s.Close())
	s = openStore(t, dir)
	got, err := s.Tree(d)
	must(t, err)
	if !bytes.Equal(got.Bytes(), tree.Bytes()) {
		t.Error("another tree came back")
	}
	must(t, s.Close())

	name := filepath.Join(dir, "trees", d.Encoded()[:2], d.Encoded())
	raw, err := os.ReadFile(name)
	must(t, err)
	raw[len(raw)/2] ^= 1
	must(t, os.WriteFile(name, raw, 0o600))
	s = openStore(t, dir)
	if _, err := s.Tree(d); !errors.Is(err, ErrDamaged) {
		t.Errorf("damaged: %v", err)
	}
	must(t, s.Close())
}
