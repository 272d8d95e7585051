package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/internal/database"
	"github.com/airstream-io/airstream/internal/toc"
)

// drill is a story of a store's life, told on a disk that is recorded: what is
// done, and what is promised from when on.
type drill struct {
	t          *testing.T
	dir        string
	s          *Store
	step       int
	promises   []promise
	contents   []content
	broken     bool // a sync loses what it should make durable, and fails
	rot, cured int  // the steps in which a bit of an object is flipped
}

// promise is something that must hold after every power loss from step on,
// until it is taken back.
type promise struct {
	what        string
	from, until int
	holds       func(s *Store) error
}

func (d *drill) open() {
	d.t.Helper()
	n := 0
	var err error
	d.s, err = Open(filepath.Join(d.dir, "store"), Options{FlushDelay: never, Logger: slog.New(slog.DiscardHandler), sync: func(fd int) error {
		// FUSE doesn't tell the server of syncfs(2).
		n++
		if d.broken {
			return errors.Join(unix.EIO, os.Mkdir(filepath.Join(d.dir, fmt.Sprintf(".fail-%d-%d", d.step, n)), 0o700))
		}
		return errors.Join(unix.Syncfs(fd), os.Mkdir(filepath.Join(d.dir, fmt.Sprintf(".sync-%d-%d", d.step, n)), 0o700))
	}})
	must(d.t, err)
}

// mark ends a step.
func (d *drill) mark() {
	must(d.t, os.Mkdir(filepath.Join(d.dir, fmt.Sprintf(".mark-%d", d.step)), 0o700))
	d.step++
}

// promise says what holds when the step is over.
func (d *drill) promise(what string, holds func(s *Store) error) {
	d.promises = append(d.promises, promise{what, d.step, 1 << 30, holds})
}

// takeBack ends promises: from the beginning of this step on they need not hold.
func (d *drill) takeBack(prefix string) {
	for i, p := range d.promises {
		if strings.HasPrefix(p.what, prefix) {
			d.promises[i].until = min(p.until, d.step)
		}
	}
}

// put puts chunks; flush says whether that is promised.
func (d *drill) put(c content, flush bool, which ...int) {
	o := c.open(d.t, d.s)
	c.put(d.t, o, which...)
	must(d.t, o.Close())
	if flush {
		must(d.t, d.s.Flush())
		for _, i := range which {
			d.promise(fmt.Sprintf("%s chunk %d", c.id, i), func(s *Store) error {
				if !s.HasChunk(c.id, uint32(len(c.chunks)), uint32(i)) {
					return fs.ErrNotExist
				}
				return nil
			})
		}
	}
	d.mark()
}

func hasBlob(b []byte) func(s *Store) error {
	return func(s *Store) error {
		got, err := s.ReadBlob(digest.FromBytes(b), 1<<20)
		if err == nil && !bytes.Equal(got, b) {
			err = errors.New("other bytes")
		}
		return err
	}
}

// smallTree returns a layer's tree of which c is the one file.
func smallTree(t *testing.T, c content) *toc.Tree {
	t.Helper()
	var b strings.Builder
	for i, k := range c.chunks {
		kind, size := "reg", fmt.Sprintf(`,"size":%d`, len(c.data))
		if i > 0 {
			kind, size = "chunk", ""
		}
		fmt.Fprintf(&b, `,{"name":"f","type":%q,"offset":%d,"chunkOffset":%d,"chunkSize":%d,"chunkDigest":%q%s}`, kind, 10+20*i, k.Offset, k.Size, k.ID, size)
	}
	tree, err := toc.Parse(strings.NewReader(`{"version":1,"entries":[{"name":"d","type":"dir"}`+b.String()+`]}`), 1<<20)
	must(t, err)
	return tree
}

func (d *drill) tell() {
	t := d.t
	a, b := newContent(1, 4500), newContent(2, 70_000)
	treed := newContent(3, 2500)
	tree := smallTree(t, treed)
	treeEntry, _ := tree.Lookup(toc.Root, "f")
	treed.id = tree.ObjectID(treeEntry)
	d.contents = []content{a, b, treed}
	manifest, config := []byte(`{"schemaVersion":2}`), bytes.Repeat([]byte("config "), 3000)
	layer := newContent(9, 30_000).data
	layerDigest := digest.FromBytes(layer)

	d.open()
	d.mark()
	d.put(a, true, 0, 3)
	d.put(b, false, 1, 2, 3)
	d.put(a, true, 1)
	d.put(b, true, 69)
	for i, blob := range [][]byte{manifest, config} {
		must(t, d.s.PutBlob(digest.FromBytes(blob), blob))
		d.promise(fmt.Sprintf("blob %d", i), hasBlob(blob))
		d.mark()
	}
	d.partial(layer, 12_000)
	must(t, d.s.PutTree(digest.FromString("table"), tree))
	d.promise("tree", func(s *Store) error {
		got, err := s.Tree(digest.FromString("table"))
		if err == nil && !bytes.Equal(got.Bytes(), tree.Bytes()) {
			err = errors.New("another tree")
		}
		return err
	})
	d.mark()
	d.put(treed, true, 0, 1, 2)

	d.put(b, false, 10, 11)
	d.broken = true
	if err := d.s.Flush(); !errors.Is(err, unix.EIO) {
		t.Errorf("a sync that fails: %v", err)
	}
	d.broken = false
	d.mark()
	d.put(b, true, 10, 11)

	must(t, d.s.Close())
	d.mark()
	d.open()
	d.mark()

	p := openPartial(t, d.s, layerDigest)
	write(t, p, layer[p.Len():])
	d.takeBack("partial")
	must(t, p.Commit())
	must(t, p.Close())
	d.promise("layer", hasBlob(layer))
	d.mark()

	wrong := openPartial(t, d.s, digest.FromString("right"))
	write(t, wrong, []byte("wrong"))
	must(t, d.s.Flush())
	if err := wrong.Commit(); !errors.Is(err, ErrMismatch) {
		t.Errorf("wrong bytes: %v", err)
	}
	must(t, wrong.Close())
	d.mark()

	d.takeBack(b.id.String())
	d.takeBack("blob 1")
	d.takeBack("layer")
	_, _, err := d.s.DeleteObjects(b.id)
	must(t, err)
	_, err = d.s.DeleteBlob(digest.FromBytes(config))
	must(t, err)
	_, err = d.s.DeleteBlob(layerDigest)
	must(t, err)
	d.mark()
	d.put(b, true, 4, 5)
	d.repair(treed)
	d.mend()
	d.put(a, true, 0, 2, 4)
	d.takeBack("tree")
	_, err = d.s.DeleteTree(digest.FromString("table"))
	must(t, err)
	d.mark()
	must(t, d.s.Close())
	d.mark()
}

// partial writes the beginning of a layer in two goes.
func (d *drill) partial(layer []byte, n int) {
	dg := digest.FromBytes(layer)
	p := openPartial(d.t, d.s, dg)
	write(d.t, p, layer[:n/2])
	must(d.t, d.s.Flush())
	d.promise("partial", func(s *Store) error {
		q, err := s.Partial(dg)
		if err != nil {
			return err
		}
		if q.Len() < int64(n/2) {
			err = fmt.Errorf("%d bytes", q.Len())
		}
		return errors.Join(err, q.Close())
	})
	d.mark()
	write(d.t, p, layer[n/2:n])
	must(d.t, p.Close())
	d.mark()
}

// repair damages a file on disk and lets Verify mend it.
func (d *drill) repair(c content) {
	d.rot = d.step
	d.takeBack(c.id.String())
	f, err := os.OpenFile(objectFile(d.t, filepath.Join(d.dir, "store"), c.id), os.O_RDWR, 0)
	must(d.t, err)
	_, err = f.WriteAt([]byte{c.data[1500] ^ 1}, 1500)
	must(d.t, errors.Join(err, f.Sync(), f.Close()))
	d.mark()
	for _, orphan := range d.contents[:2] { // no tree has them: they go
		d.takeBack(orphan.id.String())
	}
	found := 0
	must(d.t, d.s.Verify(d.t.Context(), VerifyOptions{Deep: true, Repair: true}, func(f Finding) {
		if !f.Orphan {
			found++
		}
	}))
	if found != 1 {
		d.t.Errorf("%d findings, want the one that was made", found)
	}
	d.mark()
	d.cured = d.step
	d.put(c, true, 1)
}

// mend makes the database anew.
func (d *drill) mend() {
	must(d.t, d.s.db.Mend(errors.New("drill")))
	d.mark()
}

// TestPowerLoss lets the power fail after every change to the disk that the
// store's operations make, in five ways each, and opens the store on what is
// left.
func TestPowerLoss(t *testing.T) {
	d := &drill{t: t}
	events := recording(t, func(mount string) { d.dir = mount; d.tell() })
	if t.Failed() {
		return
	}
	base := "/dev/shm" // hundreds of stores with their databases: no disk needs to see them
	if _, err := os.Stat(base); err != nil {
		base = ""
	}
	scratch, err := os.MkdirTemp(base, "airstream-powerloss-") //nolint:usetesting // in memory, not where other tests write
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(scratch)) })

	model := newDisk()
	step, states := 0, 0
	seen := map[uint64]bool{}
	for i, e := range events {
		model.apply(i, e)
		base := filepath.Base(e.Path)
		if _, err := fmt.Sscanf(base, ".mark-%d", new(int)); err == nil {
			step++
			continue
		}
		if e.What == "mkdir" && i%64 != 0 && !strings.HasPrefix(base, ".sync") {
			continue // the layout: 768 of them
		}
		for _, o := range outages(uint64(i)) {
			if testing.Short() && (i+len(o.name))%7 != 0 {
				continue
			}
			dir := filepath.Join(scratch, "state")
			model.write(t, o, dir)
			if sum := sumOf(t, dir, step); !seen[sum] {
				seen[sum] = true
				states++
				d.survives(dir, step, fmt.Sprintf("event %d, %s %s%s, in step %d, %s", i, e.What, e.Path, e.To, step, o.name))
			}
			must(t, os.RemoveAll(dir))
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("%d events, %d different states", len(events), states)
	if states < 100 {
		t.Errorf("only %d states", states)
	}
}

// survives opens the store on what a power loss has left.
func (d *drill) survives(dir string, step int, when string) {
	t := d.t
	must(t, os.MkdirAll(dir, 0o700))
	name := filepath.Join(dir, "store")
	s, err := Open(name, Options{FlushDelay: never, Logger: slog.New(slog.DiscardHandler), sync: func(int) error { return nil }})
	if err != nil {
		t.Errorf("%s: %v", when, err)
		return
	}
	if cause := s.db.Mended(); cause != nil && !errors.Is(cause, database.ErrDamaged) {
		t.Errorf("%s: the database was made anew: %v", when, cause)
	}
	for _, p := range d.promises {
		if p.from < step && p.until > step {
			if err := p.holds(s); err != nil {
				t.Errorf("%s: %s was promised: %v", when, p.what, err)
			}
		}
	}
	d.believe(s, when, step >= d.rot && step < d.cured)
	// It works on: what is missing can be put.
	for _, c := range d.contents {
		o := c.open(t, s)
		c.put(t, o, c.all()...)
		must(t, o.Close())
	}
	must(t, s.Flush())
	must(t, s.db.Check())
	must(t, s.Verify(context.Background(), VerifyOptions{Deep: true}, func(f Finding) {
		if !f.Orphan {
			t.Errorf("%s: %+v", when, f)
		}
	}))
	must(t, s.Close())
}

// believe checks that whatever the store says it has is what it should be.
func (d *drill) believe(s *Store, when string, rotten bool) {
	t := d.t
	for _, c := range d.contents {
		o := c.open(t, s)
		for i, k := range c.chunks {
			if err := o.Check(uint32(i), k); errors.Is(err, ErrDamaged) && !rotten {
				t.Errorf("%s: chunk %d of %s: %v", when, i, c.id, err)
			}
		}
		must(t, o.Close())
	}
	blobs, err := s.Blobs()
	must(t, err)
	for _, b := range blobs {
		f, err := s.Blob(b.Digest)
		if err == nil {
			must(t, f.Close())
		} else if errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", when, err)
		}
	}
	if _, err := s.Tree(digest.FromString("table")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", when, err)
	}
	layer := newContent(9, 30_000).data
	p := openPartial(t, s, digest.FromBytes(layer))
	got := make([]byte, p.Len())
	_, err = p.ReadAt(got, 0)
	if len(got) > 0 && (err != nil || !bytes.Equal(got, layer[:len(got)])) {
		t.Errorf("%s: %d bytes of the partial blob are not what was written: %v", when, len(got), err)
	}
	must(t, p.Close())
}
