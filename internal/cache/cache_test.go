package cache

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/store"
	"github.com/airstream-io/airstream/internal/toc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestOldestUseGoesFirstAndSharedContentStays(t *testing.T) {
	n := newNode(t)
	base := n.layer("base", 0, "libc", "sh")
	old, young := n.layer("old", 0, "old1", "old2", "both"), n.layer("young", 0, "young1", "both")
	oldImage := n.image("registry.example/app:1", base, old)
	n.image("registry.example/app:2", base, young)
	freed := n.collect(1, Options{})
	n.want(base, true, "libc", "sh")
	n.want(young, true, "young1", "both")
	if n.has(old, "old1") && n.has(old, "old2") {
		t.Error("nothing of the oldest image went")
	}
	if len(freed.Images) != 1 || freed.Images[0] != oldImage.Manifest || freed.Bytes < fileSize {
		t.Errorf("freed %+v", freed)
	}
}

func TestPinnedAndMountedAreNeverTouched(t *testing.T) {
	n := newNode(t)
	pinned, mounted, other := n.layer("p", 0, "p1", "p2"), n.layer("m", 1, "m1", "m2"), n.layer("o", 0, "o1", "o2")
	n.image("registry.example/p:1", pinned, n.plain("plain layer of a pinned image"))
	mountedImage := n.image("registry.example/m:1", mounted)
	n.image("registry.example/o:1", other)
	pinnedImage, err := n.c.Images()
	must(t, err)
	for _, i := range pinnedImage {
		if i.Names[0] == "registry.example/p:1" {
			must(t, n.c.Pin(i.Manifest))
		}
	}
	opts := Options{
		All: true, Unpacked: func(digest.Digest) bool { return true },
		InUse: func() (map[uint32]bool, error) { return slots(mountedImage), nil },
	}
	freed := n.collect(1<<40, opts)
	n.want(pinned, true, "p1", "p2")
	n.want(mounted, true, "m1", "m2")
	n.want(other, false, "o1", "o2")
	if _, ok := n.s.HasBlob(digest.FromBytes(data("plain layer of a pinned image"))); !ok {
		t.Error("a pinned image lost a blob")
	}
	if !n.s.HasTree(pinned.toc) || !n.s.HasTree(mounted.toc) || n.s.HasTree(other.toc) {
		t.Error("trees: wrong ones went")
	}
	if freed.Objects != 2 || freed.Trees != 1 {
		t.Errorf("freed %+v", freed)
	}
	// Manifest and config stay: without a link, the tag still resolves.
	images, err := n.c.Images()
	must(t, err)
	for _, i := range images {
		for _, d := range []digest.Digest{i.Manifest, i.Config} {
			if _, ok := n.s.HasBlob(d); !ok {
				t.Errorf("%s went", d)
			}
		}
	}
}

func TestUnknownUseEvictsNothing(t *testing.T) {
	n := newNode(t)
	l := n.layer("l", 0, "a")
	n.image("registry.example/a:1", l)
	_, err := Collect(t.Context(), n.s, n.c, Options{All: true, InUse: func() (map[uint32]bool, error) { return nil, errors.New("no answer") }})
	if err == nil {
		t.Error("no error")
	}
	n.want(l, true, "a")
}

func TestOpenContentStays(t *testing.T) {
	n := newNode(t)
	l := n.layer("l", 0, "a", "b")
	n.image("registry.example/a:1", l)
	entry, _ := l.tree.Lookup(toc.Root, "a")
	o, err := n.s.Object(l.tree.ObjectID(entry), fileSize, 1)
	must(t, err)
	n.collect(0, Options{All: true})
	n.want(l, true, "a")
	n.want(l, false, "b")
	must(t, o.Close())
}

func TestOrderDeadBlobsColdHotTrees(t *testing.T) {
	n := newNode(t)
	old, young := n.layer("old", 1, "oldhot", "oldcold"), n.layer("young", 1, "younghot", "youngcold")
	n.image("registry.example/old:1", old)
	unpacked := n.plain("unpacked")
	img := n.image("registry.example/plain:1", unpacked)
	n.image("registry.example/young:1", young)
	opts := Options{Unpacked: func(chain digest.Digest) bool { return chain == img.Layers[0].ChainID }}
	type state struct{ blob, oldcold, youngcold, oldhot, younghot, oldtree, youngtree bool }
	now := func() state {
		_, blob := n.s.HasBlob(unpacked.blob)
		return state{blob, n.has(old, "oldcold"), n.has(young, "youngcold"), n.has(old, "oldhot"), n.has(young, "younghot"), n.s.HasTree(old.toc), n.s.HasTree(young.toc)}
	}
	want := state{true, true, true, true, true, true, true}
	must(t, n.s.Flush())
	for _, step := range []func(){
		func() { want.blob = false }, func() { want.oldcold = false }, func() { want.youngcold = false },
		func() { want.oldhot = false }, func() { want.younghot = false },
	} {
		// Margin is a sixteenth: one item at a time as long as that is less.
		u, err := n.s.Usage()
		must(t, err)
		target := u.Bytes - fileSize/2
		opts.Limit = target + target/15
		if opts.Limit >= u.Bytes {
			opts.Limit = u.Bytes - 1
		}
		if _, err := Collect(t.Context(), n.s, n.c, opts); err != nil {
			t.Fatal(err)
		}
		step()
		if got := now(); got != want {
			t.Fatalf("got  %+v\nwant %+v", got, want)
		}
	}
	opts.Limit, opts.All = 0, true
	_, err := Collect(t.Context(), n.s, n.c, opts)
	must(t, err)
	want.oldtree, want.youngtree = false, false
	if got := now(); got != want {
		t.Errorf("at last: %+v", got)
	}
}

func TestRemovedImageIsSweptAlsoBelowTheLimit(t *testing.T) {
	n := newNode(t)
	base, top := n.layer("base", 0, "libc"), n.layer("top", 0, "app")
	n.image("registry.example/keep:1", base)
	gone := n.image("registry.example/gone:1", base, top)
	must(t, n.c.Remove(gone.Manifest))
	// A layer that is about to be learned is no garbage.
	soon := n.layer("soon", 0, "next")
	_, err := n.c.Layers(src, manifestOf(t, soon))
	must(t, err)
	inUse := slots(gone)
	opts := Options{InUse: func() (map[uint32]bool, error) { return inUse, nil }}
	_, err = Collect(t.Context(), n.s, n.c, opts)
	must(t, err)
	n.want(top, true, "app") // a container still runs from it
	inUse = nil
	dry, err := Collect(t.Context(), n.s, n.c, Options{DryRun: true})
	must(t, err)
	freed, err := Collect(t.Context(), n.s, n.c, opts)
	must(t, err)
	n.want(top, false, "app")
	n.want(base, true, "libc")
	n.want(soon, true, "next")
	if n.s.HasTree(top.toc) {
		t.Error("its tree is still here")
	}
	if dry.Objects != freed.Objects || dry.Trees != freed.Trees || dry.Bytes != freed.Bytes {
		t.Errorf("dry %+v, freed %+v", dry, freed)
	}
	// The slot is its for ever.
	again, err := n.c.Layers(src, manifestOf(t, top))
	must(t, err)
	if again[0].Slot != gone.Layers[1].Slot {
		t.Errorf("slot %d, was %d", again[0].Slot, gone.Layers[1].Slot)
	}
}

func TestClockJumpsDontChangeTheOrder(t *testing.T) {
	n := newNode(t)
	first, second := n.layer("first", 0, "a"), n.layer("second", 0, "b")
	a := n.image("registry.example/a:1", first)
	n.image("registry.example/b:1", second)
	uses, err := n.c.Uses()
	must(t, err)
	if uses[a.Manifest].Seq != 1 {
		t.Errorf("uses %+v", uses)
	}
	// The node restarts, its clock goes back a year, and a is used.
	must(t, n.c.Close())
	n.c, err = catalog.Open(n.catalogFile, slog.New(slog.DiscardHandler))
	must(t, err)
	must(t, n.c.Used(a.Manifest, time.Now().AddDate(-1, 0, 0)))
	n.collect(1, Options{})
	n.want(first, true, "a")
	n.want(second, false, "b")
}

func TestVerifyFindsWhatNobodyKnows(t *testing.T) {
	n := newNode(t)
	l := n.layer("l", 0, "a")
	n.image("registry.example/a:1", l)
	lone := []byte("nobody asks for this")
	must(t, n.s.PutBlob(digest.FromBytes(lone), lone))
	must(t, n.s.Flush())
	var found []store.Finding
	must(t, Verify(t.Context(), n.s, n.c, store.VerifyOptions{Deep: true, Repair: true}, func(f store.Finding) { found = append(found, f) }))
	if len(found) != 1 || found[0].Name != digest.FromBytes(lone).String() || !found[0].Orphan || !found[0].Repaired {
		t.Errorf("found %+v", found)
	}
	found = nil
	must(t, Verify(t.Context(), n.s, n.c, store.VerifyOptions{Deep: true}, func(f store.Finding) { found = append(found, f) }))
	if len(found) != 0 {
		t.Errorf("found %+v", found)
	}
}

func TestCollectCanBeCancelled(t *testing.T) {
	n := newNode(t)
	l := n.layer("l", 0, "a")
	n.image("registry.example/a:1", l)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Collect(ctx, n.s, n.c, Options{All: true}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	n.want(l, true, "a")
}

// Of a layer on somebody's word, what it is to be compared with stays until it was; its
// tree stays as long as its image.
func TestALayerOnSomebodysWordCanBeCompared(t *testing.T) {
	n := newNode(t)
	l := n.layer("word", 0, "w1", "w2")
	l.plain, l.toc = true, annotation.TableOf(l.blob, nil)
	must(t, n.s.PutTree(l.toc, l.tree))
	outline := []byte("an outline")
	must(t, n.s.PutBlob(digest.FromBytes(outline), outline))
	word, err := n.c.Vouch(src, ocispec.Descriptor{Digest: l.blob, Size: 1 << 20}, l.diff, digest.FromBytes(outline), 1<<20)
	must(t, err)
	img := n.image("registry.example/word:1", l)
	if img.Layers[0].Slot != word.Slot {
		t.Fatalf("%+v", img.Layers)
	}
	all := func() (outlineHere, treeHere bool) {
		must(t, n.s.Flush())
		_, err := Collect(t.Context(), n.s, n.c, Options{All: true})
		must(t, err)
		_, outlineHere = n.s.HasBlob(digest.FromBytes(outline))
		return outlineHere, n.s.HasTree(l.toc)
	}
	if outline, tree := all(); !outline || !tree {
		t.Errorf("before it was compared: outline %v, tree %v", outline, tree)
	}
	must(t, n.c.Compared(word.Slot, ""))
	if _, tree := all(); !tree {
		t.Error("the tree went while there is an image")
	}
	must(t, n.c.Remove(img.Manifest))
	if _, tree := all(); tree {
		t.Error("the tree stays without an image")
	}
	if got, err := n.c.Layer(word.Slot); err != nil || got.Outline != "" {
		t.Errorf("somebody still vouches: %+v, %v", got, err)
	}
}
