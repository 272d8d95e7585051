package database

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	fruit = []byte("fruit")
	tools = []byte("tools")
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func options(journal bool) Options {
	return Options{Buckets: [][]byte{fruit, tools}, Journal: journal, Check: true, Logger: slog.New(slog.DiscardHandler)}
}

func open(t *testing.T, name string, opts Options) *DB {
	t.Helper()
	d, err := Open(name, opts)
	must(t, err)
	return d
}

// record i of the test's database: some are long, so that pages overflow.
func key(i int) []byte { return fmt.Appendf(nil, "key-%05d", i*7919%100_000) }

func value(i int) []byte {
	n := 20
	if i%97 == 0 {
		n = 9000
	}
	return bytes.Repeat(fmt.Appendf(nil, "%d,", i), n)
}

const records = 600

func fill(t *testing.T, d *DB) {
	t.Helper()
	for from := 0; from < records; from += 100 {
		must(t, d.Update(func(tx *Tx) error {
			for i := from; i < from+100; i++ {
				if err := tx.Put(fruit, key(i), value(i)); err != nil {
					return err
				}
			}
			return tx.Put(tools, []byte("last"), fmt.Append(nil, from))
		}))
	}
	must(t, d.Update(func(tx *Tx) error { return tx.Delete(fruit, key(3)) }))
}

// count returns how many records are there, and fails if one is another.
func count(t *testing.T, d *DB) (n int) {
	t.Helper()
	for i := range records {
		must(t, d.View(func(tx *Tx) error {
			v, err := tx.Get(fruit, key(i))
			if errors.Is(err, ErrValue) {
				return nil
			}
			if v != nil {
				n++
				if !bytes.Equal(v, value(i)) {
					t.Errorf("record %d: another value", i)
				}
			}
			return err
		}))
	}
	return n
}

func TestRecordsOutliveTheProcess(t *testing.T) {
	name := filepath.Join(t.TempDir(), "db")
	d := open(t, name, options(true))
	fill(t, d)
	if _, err := Open(name, options(true)); !errors.Is(err, ErrLocked) {
		t.Errorf("a second process: %v", err)
	}
	must(t, d.Close())
	d = open(t, name, options(true))
	if d.Unclean() {
		t.Error("a closed database counts as unclean")
	}
	if n := count(t, d); n != records-1 {
		t.Errorf("%d records", n)
	}
	must(t, d.View(func(tx *Tx) error {
		n := 0
		must(t, tx.ForEach(fruit, func(k, v []byte) error { n++; return nil }))
		if n != records-1 {
			t.Errorf("%d records in ForEach", n)
		}
		return nil
	}))
	must(t, d.Check())
	must(t, d.Close())
	must(t, os.WriteFile(name+".lock", []byte("open\n"), 0o600))
	d = open(t, name, options(true))
	if !d.Unclean() {
		t.Error("a database that was not closed counts as clean")
	}
	must(t, d.Close())
}

func TestFailedUpdateChangesNothing(t *testing.T) {
	name := filepath.Join(t.TempDir(), "db")
	d := open(t, name, options(true))
	no := errors.New("no")
	err := d.Update(func(tx *Tx) error {
		must(t, tx.Put(fruit, []byte("a"), []byte("b")))
		return no
	})
	if !errors.Is(err, no) {
		t.Errorf("got %v", err)
	}
	must(t, d.Close())
	must(t, os.Remove(name)) // the journal must not have it either
	d = open(t, name, options(true))
	must(t, d.View(func(tx *Tx) error {
		if v, err := tx.Get(fruit, []byte("a")); v != nil || err != nil {
			t.Errorf("got %q, %v", v, err)
		}
		return nil
	}))
	must(t, d.Close())
}

// damage returns a copy of the database in which something is broken.
func damage(t *testing.T, dir string, file string, harm func(b []byte) []byte) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "damaged")
	must(t, os.CopyFS(to, os.DirFS(dir)))
	name := filepath.Join(to, file)
	b, err := os.ReadFile(name)
	must(t, err)
	must(t, os.WriteFile(name, harm(b), 0o600))
	return filepath.Join(to, "db")
}

func TestFlippedBitsLoseNothingWithAJournal(t *testing.T) { flips(t, true) }

func TestFlippedBitsAreSeenWithoutAJournal(t *testing.T) { flips(t, false) }

func flips(t *testing.T, journal bool) {
	t.Helper()
	dir := t.TempDir()
	d := open(t, filepath.Join(dir, "db"), options(journal))
	fill(t, d)
	must(t, d.Close())
	rounds := 300
	if testing.Short() {
		rounds = 60
	}
	mended := 0
	r := rand.New(rand.NewPCG(1, 2))
	for range rounds {
		var what string
		name := damage(t, dir, "db", func(b []byte) []byte {
			// Page headers, element headers and metas are where it hurts.
			at := r.IntN(len(b))
			if r.IntN(2) == 0 {
				at = at&^4095 + r.IntN(80)
			}
			what = fmt.Sprintf("bit %d of byte %d (page %d+%d)", at%8, at, at/4096, at%4096)
			b[at] ^= 1 << (at % 8)
			return b
		})
		opts := options(journal)
		opts.Check = r.IntN(4) > 0 // also met by a transaction only
		d := open(t, name, opts)
		n := count(t, d)
		if journal && opts.Check && n != records-1 {
			t.Errorf("%s: %d records are left of %d (made anew: %v)", what, n, records-1, d.Mended())
		}
		must(t, d.Update(func(tx *Tx) error { return tx.Put(fruit, key(0), value(0)) }))
		must(t, d.Update(func(tx *Tx) error { return tx.Put(fruit, []byte("new"), value(5)) }))
		if err := d.Check(); opts.Check && err != nil {
			t.Errorf("%s: %v (made anew: %v)", what, err, d.Mended())
		}
		must(t, d.Close())
		if _, err := os.Stat(name + ".damaged-1"); err == nil {
			mended++
		}
	}
	if mended < rounds/4 {
		t.Errorf("only %d of %d flips were noticed", mended, rounds)
	}
}

func TestCutOffZeroedOrForeignFilesAreMadeAnew(t *testing.T) {
	dir := t.TempDir()
	d := open(t, filepath.Join(dir, "db"), options(true))
	fill(t, d)
	must(t, d.Close())
	for name, harm := range map[string]func(b []byte) []byte{
		"half":        func(b []byte) []byte { return b[:len(b)/2] },
		"a page":      func(b []byte) []byte { return b[:4096] },
		"one byte":    func(b []byte) []byte { return b[:1] },
		"nothing":     func([]byte) []byte { return nil },
		"zeros":       func(b []byte) []byte { return make([]byte, len(b)) },
		"text":        func(b []byte) []byte { return bytes.Repeat([]byte("lorem "), len(b)/6) },
		"zeroed data": func(b []byte) []byte { clear(b[8192:]); return b },
		"zeroed meta": func(b []byte) []byte { clear(b[:8192]); return b },
	} {
		t.Run(name, func(t *testing.T) {
			file := damage(t, dir, "db", harm)
			d := open(t, file, options(true))
			if n := count(t, d); n != records-1 {
				t.Errorf("%d records are left", n)
			}
			must(t, d.Close())
		})
	}
}

func TestDamagedJournalIsReplaced(t *testing.T) {
	dir := t.TempDir()
	d := open(t, filepath.Join(dir, "db"), options(true))
	fill(t, d)
	must(t, d.Close())
	name := damage(t, dir, "db.journal", func(b []byte) []byte {
		b[len(b)/2] ^= 8
		return b[:len(b)-5]
	})
	d = open(t, name, options(true))
	must(t, d.Close())
	must(t, os.Remove(name))
	d = open(t, name, options(true))
	if n := count(t, d); n != records-1 {
		t.Errorf("%d records are left", n)
	}
	must(t, d.Close())
}

func TestDamageWhileOpenIsMended(t *testing.T) {
	name := filepath.Join(t.TempDir(), "db")
	d := open(t, name, options(true))
	fill(t, d)
	b, err := os.ReadFile(name)
	must(t, err)
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	must(t, err)
	// All pages but the metas: whatever is looked up next meets it.
	_, err = f.WriteAt(bytes.Repeat([]byte{0xA5}, len(b)-8192), 8192)
	must(t, errors.Join(err, f.Close()))
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 20 {
				err := d.Update(func(tx *Tx) error { return tx.Put(tools, fmt.Append(nil, w, i), []byte("x")) })
				if err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() { count(t, d) })
	}
	wg.Wait()
	if n := count(t, d); n != records-1 {
		t.Errorf("%d records are left", n)
	}
	must(t, d.Check())
	must(t, d.Close())
}

func TestOwnerAddsWhatItKnows(t *testing.T) {
	name := filepath.Join(t.TempDir(), "db")
	d := open(t, name, options(false))
	fill(t, d)
	must(t, d.Close())
	must(t, os.Truncate(name, 4096))
	opts := options(false)
	opts.Rebuild = func(tx *Tx) ([]slog.Attr, error) {
		for i := range 50_000 { // more than one batch
			if err := tx.Put(tools, fmt.Append(nil, i), []byte("known")); err != nil {
				return nil, err
			}
		}
		return nil, nil
	}
	d = open(t, name, opts)
	n := 0
	must(t, d.View(func(tx *Tx) error {
		return tx.ForEach(tools, func(_, _ []byte) error { n++; return nil })
	}))
	if n != 50_000 {
		t.Errorf("%d records", n)
	}
	must(t, d.Close())
}

func TestJournalIsShortened(t *testing.T) {
	name := filepath.Join(t.TempDir(), "db")
	d := open(t, name, options(true))
	v := make([]byte, 100_000)
	for i := range 60 {
		must(t, d.Update(func(tx *Tx) error { return tx.Put(fruit, []byte("same"), append(v, byte(i))) }))
	}
	info, err := os.Stat(name + ".journal")
	must(t, err)
	if info.Size() > 3<<20 {
		t.Errorf("the journal of one record has %d bytes", info.Size())
	}
	must(t, d.Close())
	must(t, os.Remove(name))
	d = open(t, name, options(true))
	must(t, d.View(func(tx *Tx) error {
		if got, err := tx.Get(fruit, []byte("same")); err != nil || len(got) != 100_001 || got[100_000] != 59 {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		return nil
	}))
	must(t, d.Close())
}

func FuzzJournal(f *testing.F) {
	var l batch
	l.put(fruit, []byte("a"), []byte("1"))
	l.delete(fruit, []byte("a"))
	f.Add([]byte(journalMagic+string(l.b)), 0)
	f.Add([]byte(recordMagic), 3)
	f.Add([]byte{}, 1)
	f.Fuzz(func(t *testing.T, b []byte, at int) {
		decodeJournal(b, func(r record) {
			if len(r.key) == 0 || r.op != opPut && r.op != opDelete {
				t.Errorf("record %+v", r)
			}
		})
		// A sound record is found behind anything.
		var l batch
		l.put(tools, []byte("key"), []byte("value"))
		found := false
		decodeJournal(append(slices.Clip(b), l.b...), func(r record) {
			found = found || string(r.bucket) == "tools" && string(r.key) == "key" && string(r.value) == "value"
		})
		if !found && !bytes.Contains(b, []byte(recordMagic)) {
			t.Error("a sound record was not found")
		}
	})
}

func FuzzScan(f *testing.F) {
	name := filepath.Join(f.TempDir(), "db")
	d, err := Open(name, options(false))
	if err != nil {
		f.Fatal(err)
	}
	err = errors.Join(d.Update(func(tx *Tx) error { return tx.Put(fruit, []byte("a"), []byte("1")) }), d.Close())
	b, readErr := os.ReadFile(name)
	if err = errors.Join(err, readErr); err != nil {
		f.Fatal(err)
	}
	f.Add(b, 5000, byte(1))
	f.Add(b[:9000], 16400, byte(255))
	f.Fuzz(func(t *testing.T, b []byte, at int, x byte) {
		b = bytes.Clone(b)
		if at >= 0 && at < len(b) {
			b[at] ^= x
		}
		_ = scan(bytes.NewReader(b), int64(len(b)), func(_, _, _ []byte) {})
	})
}
