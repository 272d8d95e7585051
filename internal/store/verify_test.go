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

	"github.com/airstream-io/airstream/internal/toc"
)

// flip changes one bit of a file.
func flip(t *testing.T, name string, at int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	must(t, err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, at)
	must(t, err)
	b[0] ^= 4
	_, err = f.WriteAt(b, at)
	must(t, errors.Join(err, f.Close()))
}

// stocked is a store that holds one of each kind.
type stocked struct {
	t       *testing.T
	dir     string
	s       *Store
	object  content // of which the tree is made
	table   digest.Digest
	blob    digest.Digest // small
	layer   digest.Digest // larger than small
	begun   digest.Digest // partial
	partial []byte
}

func stock(t *testing.T) *stocked {
	t.Helper()
	k := &stocked{t: t, dir: t.TempDir(), object: newContent(1, 50_000), table: digest.FromString("table"), partial: newContent(7, 3_000_000).data}
	k.s = openQuiet(t, k.dir)
	tree := smallTree(t, k.object)
	entry, _ := tree.Lookup(toc.Root, "f")
	k.object.id = tree.ObjectID(entry)
	must(t, k.s.PutTree(k.table, tree))
	o := k.object.open(t, k.s)
	k.object.put(t, o, k.object.all()...)
	must(t, o.Close())
	for size, d := range map[int]*digest.Digest{5000: &k.blob, 2_000_000: &k.layer} {
		b := newContent(uint64(size), size).data
		*d = digest.FromBytes(b)
		must(t, k.s.PutBlob(*d, b))
	}
	k.begun = digest.FromBytes(k.partial)
	p := openPartial(t, k.s, k.begun)
	write(t, p, k.partial[:2_500_000])
	must(t, p.Close())
	must(t, k.s.Flush())
	return k
}

func openQuiet(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir, Options{FlushDelay: never, Logger: slog.New(slog.DiscardHandler)})
	must(t, err)
	return s
}

func (k *stocked) file(kind string, d digest.Digest) string {
	return filepath.Join(k.dir, kind, d.Encoded()[:2], d.Encoded())
}

func (k *stocked) verify(opts VerifyOptions) (found []Finding) {
	k.t.Helper()
	must(k.t, k.s.Verify(k.t.Context(), opts, func(f Finding) { found = append(found, f) }))
	return found
}

func TestVerifyFindsAndMends(t *testing.T) {
	for name, tt := range map[string]struct {
		harm  func(k *stocked)
		kind  Kind
		quick bool // found without hashing everything
	}{
		"object":      {func(k *stocked) { flip(k.t, objectFile(k.t, k.dir, k.object.id), 1234) }, KindObject, false},
		"object gone": {func(k *stocked) { must(k.t, os.Remove(objectFile(k.t, k.dir, k.object.id))) }, KindObject, true},
		"object cut":  {func(k *stocked) { must(k.t, os.Truncate(objectFile(k.t, k.dir, k.object.id), 100)) }, KindObject, true},
		"blob":        {func(k *stocked) { flip(k.t, k.file("blobs", k.blob), 77) }, KindBlob, true},
		"layer":       {func(k *stocked) { flip(k.t, k.file("blobs", k.layer), 1_000_000) }, KindBlob, false},
		"partial":     {func(k *stocked) { flip(k.t, filepath.Join(k.dir, "partial", k.begun.Encoded()), 1_500_000) }, KindPartial, false},
		"tree":        {func(k *stocked) { flip(k.t, k.file("trees", k.table), 99) }, KindTree, true},
		"database":    {func(k *stocked) { flip(k.t, filepath.Join(k.dir, "store.db"), 72) }, KindDatabase, true},
	} {
		t.Run(name, func(t *testing.T) {
			k := stock(t)
			if found := k.verify(VerifyOptions{Deep: true, Gentle: true}); len(found) > 0 {
				t.Fatalf("nothing is wrong, and found: %+v", found)
			}
			tt.harm(k)
			damage := func(deep, repair bool) (found []Finding) {
				for _, f := range k.verify(VerifyOptions{Deep: deep, Repair: repair}) {
					if !f.Orphan {
						found = append(found, f)
					}
				}
				return found
			}
			if found := damage(false, false); (len(found) == 1) != tt.quick {
				t.Errorf("quick: %+v", found)
			}
			if found := damage(true, false); len(found) != 1 || found[0].Kind != tt.kind || found[0].Repaired {
				t.Errorf("deep: %+v", found)
			}
			if found := damage(true, true); len(found) != 1 || found[0].Kind != tt.kind || !found[0].Repaired {
				t.Errorf("repair: %+v", found)
			}
			found := damage(true, false)
			if tt.kind == KindDatabase { // what happened is told as long as the process lives
				found = found[:len(found)-1]
			}
			if len(found) != 0 {
				t.Errorf("after repair: %+v", found)
			}
			k.usable()
			must(t, k.s.Close())
		})
	}
}

// usable puts everything once more, as a fetcher does with what is missing.
func (k *stocked) usable() {
	t := k.t
	o := k.object.open(t, k.s)
	for i, c := range k.object.chunks {
		if err := o.Check(uint32(i), c); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("chunk %d: %v", i, err)
		}
	}
	k.object.put(t, o, k.object.all()...)
	got := make([]byte, len(k.object.data))
	if _, err := o.ReadAt(got, 0); err != nil || !bytes.Equal(got, k.object.data) {
		t.Errorf("the object is not what was put: %v", err)
	}
	must(t, o.Close())
	p := openPartial(t, k.s, k.begun)
	write(t, p, k.partial[p.Len():])
	must(t, p.Commit())
	must(t, p.Close())
}

func TestDamageAfterTheFirstCheckIsFoundByVerifyAndMendedInPlace(t *testing.T) {
	k := stock(t)
	o := k.object.open(t, k.s)
	for i, c := range k.object.chunks {
		must(t, o.Check(uint32(i), c))
	}
	file := o.Complete() // what passthrough reads
	if file == nil {
		t.Fatal("not complete")
	}
	flip(t, file.Name(), 1500)
	if found := k.verify(VerifyOptions{Deep: true, Repair: true}); len(found) != 1 || !found[0].Repaired {
		t.Errorf("found %+v", found)
	}
	if o.Has(1) || o.Complete() != nil || k.s.Losses() == 0 {
		t.Error("the damaged chunk is still present")
	}
	k.object.put(t, o, 1)
	got := make([]byte, 1000)
	if _, err := file.ReadAt(got, 1000); err != nil || !bytes.Equal(got, k.object.bytes(1)) {
		t.Error("who had it open doesn't see it mended")
	}
	must(t, o.Close())
	must(t, k.s.Close())
}

func TestDamagedBlobIsNotServedAndIsFetchedAgain(t *testing.T) {
	k := stock(t)
	must(t, k.s.Close())
	flip(t, k.file("blobs", k.layer), 1_000_000)
	k.s = openQuiet(t, k.dir)
	if _, err := k.s.Blob(k.layer); !errors.Is(err, ErrDamaged) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if _, err := k.s.Blob(k.layer); errors.Is(err, ErrDamaged) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	p := openPartial(t, k.s, k.layer)
	write(t, p, newContent(2_000_000, 2_000_000).data)
	must(t, p.Commit())
	must(t, p.Close())
	f, err := k.s.Blob(k.layer)
	must(t, err)
	must(t, f.Close())
	must(t, k.s.Close())
}

func TestFlippedBitInAPartialBlobCostsOnlyWhatFollows(t *testing.T) {
	k := stock(t)
	must(t, k.s.Close())
	flip(t, filepath.Join(k.dir, "partial", k.begun.Encoded()), 1_500_000)
	k.s = openQuiet(t, k.dir)
	p := openPartial(t, k.s, k.begun)
	write(t, p, k.partial[p.Len():])
	if err := p.Commit(); !errors.Is(err, ErrDamaged) || !errors.Is(err, ErrMismatch) {
		t.Errorf("commit: %v", err)
	}
	must(t, p.Close())
	p = openPartial(t, k.s, k.begun)
	if p.Len() != 1<<20 {
		t.Errorf("%d bytes are kept, want the first MiB", p.Len())
	}
	write(t, p, k.partial[p.Len():])
	must(t, p.Commit())
	must(t, p.Close())
	must(t, k.s.Close())
}

func TestDamagedDatabaseForgetsNothing(t *testing.T) {
	for name, harm := range map[string]func(name string) error{
		"gone":  os.Remove,
		"empty": func(n string) error { return os.Truncate(n, 0) },
		"cut":   func(n string) error { return os.Truncate(n, 5000) },
		"zeros": func(n string) error { return os.WriteFile(n, make([]byte, 65536), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			k := stock(t)
			half := newContent(20, 300_000)
			o := half.open(t, k.s)
			half.put(t, o, 0, 1, 2, 3, 4, 5, 6, 7, 8)
			must(t, o.Close())
			must(t, k.s.Close())
			must(t, harm(filepath.Join(k.dir, "store.db")))
			k.s = openQuiet(t, k.dir)
			o = k.object.open(t, k.s)
			for i, c := range k.object.chunks {
				must(t, o.Check(uint32(i), c))
			}
			must(t, o.Close())
			o = half.open(t, k.s)
			for i, c := range half.chunks {
				if err := o.Check(uint32(i), c); (err == nil) != (i < 9) || err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("chunk %d of an object with holes: %v", i, err)
				}
			}
			must(t, o.Close())
			if p := openPartial(t, k.s, k.begun); p.Len() != 2_500_000 {
				t.Errorf("%d bytes of the partial blob", p.Len())
			} else {
				must(t, p.Close())
			}
			if _, err := k.s.Tree(k.table); err != nil {
				t.Error(err)
			}
			k.usable()
			must(t, k.s.Close())
		})
	}
}

func TestVerifyEndsWithItsContext(t *testing.T) {
	k := stock(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := k.s.Verify(ctx, VerifyOptions{Deep: true}, func(Finding) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	must(t, k.s.Close())
}

func TestVerifyReportsStrangersAndKeepsOrphansOfALostTree(t *testing.T) {
	k := stock(t)
	must(t, os.WriteFile(filepath.Join(k.dir, "objects", "ab", "readme"), []byte("x"), 0o600))
	must(t, os.Remove(k.file("trees", k.table)))
	found := k.verify(VerifyOptions{Deep: true, Repair: true})
	var all []string
	for _, f := range found {
		all = append(all, fmt.Sprintf("%s %v %v", f.Kind, f.Orphan, f.Repaired))
	}
	if got := strings.Join(all, ", "); got != "file true false, object true false" && got != "object true false, file true false" {
		t.Errorf("found %s", got)
	}
	if missing, _ := k.s.HasObject(k.object.id, uint32(len(k.object.chunks))); missing != 0 {
		t.Error("content of a layer whose tree is lost was deleted")
	}
	must(t, k.s.Close())
}

func FuzzPresence(f *testing.F) {
	f.Add([]byte{stateComplete}, uint32(9))
	f.Add([]byte{statePartial, 0xff, 1}, uint32(9))
	f.Add([]byte{stateDoubt}, uint32(70))
	f.Add([]byte{statePartial, 0xff, 0xff}, uint32(9))
	f.Fuzz(func(t *testing.T, v []byte, chunks uint32) {
		chunks %= 1 << 16
		p := newPresence(chunks)
		p.decode(v)
		missing := uint32(0)
		for i := range chunks {
			if !p.has(i) {
				missing++
			}
			if p.has(i) != hasIn(v, chunks, i) {
				t.Fatalf("chunk %d of %d: %v and %v", i, chunks, p.has(i), hasIn(v, chunks, i))
			}
		}
		if missing != p.missing || missingIn(v, chunks) != missing {
			t.Fatalf("%d missing: %d and %d", missing, p.missing, missingIn(v, chunks))
		}
		again := newPresence(chunks)
		if !again.decode(p.encode()) && chunks > 0 || again.missing != p.missing {
			t.Fatal("what was written reads differently")
		}
	})
}

func FuzzPartialRecord(f *testing.F) {
	f.Add([]byte{0, 0, 16, 0, 0, 0, 0, 0, 1, 2, 3, 4}, int64(2<<20))
	f.Add([]byte{1, 2}, int64(5))
	f.Fuzz(func(t *testing.T, v []byte, size int64) {
		length, sums, blind := decodePartial(v, size)
		if length < 0 || length > max(size, 0) || !blind && int64(len(sums)) != (length+pieceSize-1)/pieceSize {
			t.Fatalf("%d bytes of %d, %d sums, %v", length, size, len(sums), blind)
		}
	})
}
