package catalog

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/annotation"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestPinsAreKept(t *testing.T) {
	name := filepath.Join(t.TempDir(), "catalog.db")
	c, err := Open(name, nil)
	must(t, err)
	img, err := learn(t, c, src, layer{"d1", "t1", "b1"})
	must(t, err)
	if err := c.Pin(digest.FromString("unknown")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an unknown image: %v", err)
	}
	must(t, c.Pin(img.Manifest))
	must(t, c.Close())
	c = open(t, name)
	pins, err := c.Pinned()
	must(t, err)
	if !pins[img.Manifest] || len(pins) != 1 {
		t.Errorf("pins %v", pins)
	}
	must(t, c.Unpin(img.Manifest))
	must(t, c.Unpin(img.Manifest))
	if pins, err = c.Pinned(); err != nil || len(pins) != 0 {
		t.Errorf("pins %v, %v", pins, err)
	}
}

func TestRemoveKeepsSlotsAndNothingElse(t *testing.T) {
	c := open(t, filepath.Join(t.TempDir(), "catalog.db"))
	manifest, config := image(t, layer{"d1", "t1", "b1"}, layer{"d2", "t2", "b2"})
	img, err := c.Learn(src, "registry.example/app:1", "type", manifest, config)
	must(t, err)
	index := digest.FromString("index")
	must(t, c.SetTag("registry.example/app:1", Tag{Digest: index, MediaType: "index", Seen: time.Now()}))
	must(t, c.Pin(img.Manifest))
	must(t, c.Remove(img.Manifest))
	if err := c.Remove(img.Manifest); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("once more: %v", err)
	}
	if _, err := c.Tag("registry.example/app:1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its tag: %v", err)
	}
	types, err := c.Manifests()
	if err != nil || len(types) != 0 {
		t.Errorf("manifests %v, %v", types, err)
	}
	free, garbage, err := c.Free()
	if err != nil || !garbage || len(free) != 2 {
		t.Errorf("free layers %v, %v, %v", free, garbage, err)
	}
	other, err := learn(t, c, src, layer{"d0", "t0", "b0"})
	must(t, err)
	if other.Layers[0].Slot != 3 {
		t.Errorf("slot %d was given again", other.Layers[0].Slot)
	}
	again, err := c.Learn(src, "", "type", manifest, config)
	must(t, err)
	if diff := cmp.Diff(img.Layers, again.Layers); diff != "" {
		t.Error(diff)
	}
	if free, _, err = c.Free(); err != nil || len(free) != 0 {
		t.Errorf("free layers %v, %v", free, err)
	}
}

func TestUntagLeavesTheImage(t *testing.T) {
	c := open(t, filepath.Join(t.TempDir(), "catalog.db"))
	manifest, config := image(t, layer{"d1", "t1", "b1"})
	for _, name := range []string{"registry.example/app:1", "registry.example/app:latest"} {
		img, err := c.Learn(src, name, "type", manifest, config)
		must(t, err)
		must(t, c.SetTag(name, Tag{Digest: img.Manifest, MediaType: "type", Seen: time.Now()}))
	}
	must(t, c.Untag("registry.example/app:1"))
	names, err := c.Names(digest.FromBytes(manifest))
	if diff := cmp.Diff([]string{"registry.example/app:latest"}, names); diff != "" || err != nil {
		t.Error(diff, err)
	}
	tags, err := c.Tags()
	if err != nil || len(tags) != 1 || tags[0].Name != "registry.example/app:latest" {
		t.Errorf("tags %v, %v", tags, err)
	}
}

func TestPlansOutliveTheProcess(t *testing.T) {
	name := filepath.Join(t.TempDir(), "catalog.db")
	c, err := Open(name, nil)
	must(t, err)
	manifest, config := image(t, layer{"d1", "t1", "b1"}, layer{"d2", "", "b2"}, layer{"d3", "t3", "b3"})
	manifest = bytes.Replace(manifest, []byte(`"`+annotation.TOCOffset+`":"900"`), []byte(`"`+annotation.TOCOffset+`":"900","`+annotation.Hot+`":"1.plan"`), 1)
	img, err := c.Learn(src, "", "type", manifest, config)
	must(t, err)
	must(t, c.Close())
	c = open(t, name)
	layers, err := c.Hot(img.Manifest)
	must(t, err)
	if len(layers) != 2 || layers[0].Hot != "1.plan" || layers[1].Hot != "" || layers[1].Slot != img.Layers[2].Slot {
		t.Errorf("layers %+v", layers)
	}
}

func TestUsesAreCountedNotTimed(t *testing.T) {
	name := filepath.Join(t.TempDir(), "catalog.db")
	c, err := Open(name, nil)
	must(t, err)
	a, err := learn(t, c, src, layer{"d1", "t1", "b1"})
	must(t, err)
	b, err := learn(t, c, src, layer{"d2", "t2", "b2"})
	must(t, err)
	must(t, c.Used(a.Manifest, time.Now()))
	must(t, c.Used(b.Manifest, time.Now().AddDate(-10, 0, 0)))
	must(t, c.Used(a.Manifest, time.Now().AddDate(10, 0, 0))) // within the hour: not written
	must(t, c.Used(digest.FromString("unknown"), time.Now()))
	uses, err := c.Uses()
	must(t, err)
	if uses[a.Manifest].Seq != 1 || uses[b.Manifest].Seq != 2 || len(uses) != 2 {
		t.Errorf("uses %v", uses)
	}
	must(t, c.Close())
	c = open(t, name)
	must(t, c.Used(a.Manifest, time.Now()))
	if uses, err = c.Uses(); err != nil || uses[a.Manifest].Seq != 3 {
		t.Errorf("uses %v, %v", uses, err)
	}
}

func TestReferrersBelongToARepository(t *testing.T) {
	c := open(t, filepath.Join(t.TempDir(), "catalog.db"))
	subject := digest.FromString("image")
	must(t, c.SetReferrers(src, subject, []byte(`{"manifests":[]}`), time.Now()))
	r, err := c.Referrers(src, subject)
	if err != nil || string(r.Index) != `{"manifests":[]}` || time.Since(r.Seen) > time.Minute {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := c.Referrers(Source{Host: src.Host, Repo: "other"}, subject); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("another repository: %v", err)
	}
}

// TestDamageMovesNoSlot flips bits of the catalog, of its journal, or cuts
// either off: whatever happens, a layer's slot never becomes another, since
// inode numbers in mounted trees are made of it.
func TestDamageMovesNoSlot(t *testing.T) {
	dir := t.TempDir()
	c, err := Open(filepath.Join(dir, "catalog.db"), nil)
	must(t, err)
	var images []Image
	for i := range 40 {
		n := string(rune('a' + i))
		img, err := learn(t, c, src, layer{"d" + n, "t" + n, "b" + n}, layer{"D" + n, "T" + n, "B" + n})
		must(t, err)
		must(t, c.SetTag("registry.example/app:"+n, Tag{Digest: img.Manifest, MediaType: "type", Seen: time.Now()}))
		images = append(images, img)
	}
	must(t, c.Close())
	r := rand.New(rand.NewPCG(4, 2))
	for range 60 {
		to := filepath.Join(t.TempDir(), "c")
		must(t, os.CopyFS(to, os.DirFS(dir)))
		file := []string{"catalog.db", "catalog.db", "catalog.db.journal"}[r.IntN(3)]
		b, err := os.ReadFile(filepath.Join(to, file))
		must(t, err)
		switch r.IntN(4) {
		case 0:
			b = b[:r.IntN(len(b))]
		default:
			for range 1 + r.IntN(3) {
				b[r.IntN(len(b))] ^= 1 << r.IntN(8)
			}
		}
		must(t, os.WriteFile(filepath.Join(to, file), b, 0o600))
		c, err := Open(filepath.Join(to, "catalog.db"), slog.New(slog.DiscardHandler))
		must(t, err)
		for i, want := range images {
			got, err := c.Image(want.Manifest)
			must(t, err)
			if diff := cmp.Diff(want.Layers, got.Layers); diff != "" {
				t.Fatalf("image %d: %s", i, diff)
			}
			for _, l := range want.Layers {
				chain, err := c.Chain(l.ChainID)
				if err != nil || chain.Slot != l.Slot {
					t.Fatalf("chain %s: slot %d, %v", l.ChainID, chain.Slot, err)
				}
			}
		}
		next, err := learn(t, c, src, layer{"new", "new", "new"})
		must(t, err)
		if next.Layers[0].Slot != 81 {
			t.Fatalf("a new layer got slot %d", next.Layers[0].Slot)
		}
		must(t, c.Close())
	}
}
