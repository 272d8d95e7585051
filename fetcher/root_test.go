package fetcher

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/airstream-io/airstream/internal/artifact"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/toc"
)

// bind gives the image's layer a slot for the tree that its root has for it.
func (img *hotImage) bind(t *testing.T, b *bench) catalog.Layer {
	t.Helper()
	own, err := b.catalog.Bind(src, img.ref, []catalog.Layer{img.info})
	if err != nil {
		t.Fatal(err)
	}
	return own[0]
}

// tables returns how many bytes of the layer's table crossed.
func (s *shore) tables() (sent int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.sent[s.at:] {
		sent += int(n)
	}
	return sent
}

// settled waits until nothing of a slot's hot set is missing, and nothing is asked for.
func (b *bench) settled(t *testing.T, slot uint32) {
	t.Helper()
	waitFor(t, func() bool {
		c, err := b.Completeness(slot)
		if err != nil {
			t.Fatal(err)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		return c.Hot() && len(b.queue.transfers)+len(b.queue.hot) == 0
	})
}

func (img *hotImage) readIn(t *testing.T, b *bench, slot uint32) {
	t.Helper()
	for _, r := range hotReads {
		img.want(t, b.openIn(t, slot, r.name), r.name, r.off, r.n)
	}
}

func TestStartFromTheRootAlone(t *testing.T) {
	img := newHotImage(t)
	b := newBench(t, img.shore, t.TempDir(), img.at)
	own := img.bind(t, b)
	if own.Slot == slot {
		t.Fatal("the image's own tree has the slot of the layer's table")
	}
	if err := b.WarmFrom(src, img.ref, own); err != nil {
		t.Fatal(err)
	}
	b.settled(t, own.Slot)
	img.readIn(t, b, own.Slot)
	if sent, _ := img.traffic(); sent > 0 || img.tables() > 0 {
		t.Errorf("%d bytes of the layer and %d of its table crossed", sent, img.tables())
	}
	if n := img.asked.Load() + 1; img.requests != int(n) {
		t.Errorf("%d requests, want %d: one for the root, and those for the hot set", img.requests, n)
	}
	if c := b.Counts(); c.Waits > 0 {
		t.Errorf("%d reads waited for what was hot", c.Waits)
	}

	before := img.asked.Load()
	img.want(t, b.openIn(t, own.Slot, "small/07"), "small/07", 0, 3000)
	if img.tables() > 0 || img.asked.Load() > before {
		t.Errorf("a file that isn't hot made %d bytes of the table cross, and %d requests for the hot set", img.tables(), img.asked.Load()-before)
	}
}

// Of an image that came without its root, in a bundle, and whose tables are here, the
// root is not waited for.
func TestTableThatIsHereStandsInForTheRoot(t *testing.T) {
	img := newHotImage(t)
	b := newBench(t, img.shore, t.TempDir(), img.at)
	if err := b.Complete(t.Context(), slot); err != nil {
		t.Fatal(err)
	}
	img.setMood(func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, "nobody is there", http.StatusServiceUnavailable)
		return true
	})
	requests := img.shore.asked()
	own := img.bind(t, b)
	if err := b.WarmFrom(src, img.ref, own); err != nil {
		t.Fatal(err)
	}
	for name, content := range img.files {
		img.want(t, b.openIn(t, own.Slot, name), name, 0, len(content))
	}
	if c, err := b.Completeness(own.Slot); err != nil || !c.Complete() {
		t.Errorf("%+v, %v", c, err)
	}
	time.Sleep(100 * time.Millisecond) // for requests that should not be
	if n := img.shore.asked(); n > requests {
		t.Errorf("%d requests for what is here", n-requests)
	}
}

// Once all pages are here, the tree is the one that the layer's own table makes.
func TestWholeFromTheRoot(t *testing.T) {
	img := newHotImage(t)
	b := newBench(t, img.shore, t.TempDir(), img.at)
	own := img.bind(t, b)
	if err := b.Complete(t.Context(), own.Slot); err != nil {
		t.Fatal(err)
	}
	if img.tables() > 0 {
		t.Errorf("%d bytes of the table crossed", img.tables())
	}
	for name, content := range img.files {
		img.want(t, b.openIn(t, own.Slot, name), name, 0, len(content))
	}
	c, err := b.Completeness(own.Slot)
	if err != nil || !c.Complete() {
		t.Errorf("%+v, %v", c, err)
	}
	have, err := b.TreeHere(own.Slot)
	if err != nil || have == nil {
		t.Fatal(have, err)
	}
	want, err := b.Tree(t.Context(), slot)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have.Bytes(), want.Bytes()) {
		t.Error("the tree is another one than the table's")
	}
	if _, twice := img.traffic(); twice > 0 {
		t.Errorf("%d bytes of the layer crossed twice", twice)
	}
}

func TestFillFromTheRoot(t *testing.T) {
	img := newHotImage(t)
	b := newBenchWith(t, img.shore, t.TempDir(), img.at, Options{Background: true, IdleAfter: 10 * time.Millisecond}, nil)
	own := img.bind(t, b)
	if err := errors.Join(b.WarmFrom(src, img.ref, own), b.Fill(own.Slot)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool {
		c, err := b.Completeness(own.Slot)
		if err != nil {
			t.Fatal(err)
		}
		return c.Complete() && c.Hot()
	})
	if img.tables() > 0 {
		t.Errorf("%d bytes of the table crossed", img.tables())
	}
}

// What the root and the hot set brought is enough for the next process, without a link.
func TestDarkStartFromTheRoot(t *testing.T) {
	img := newHotImage(t)
	dir := t.TempDir()
	b := newBench(t, img.shore, dir, img.at)
	own := img.bind(t, b)
	if err := b.WarmFrom(src, img.ref, own); err != nil {
		t.Fatal(err)
	}
	b.settled(t, own.Slot)
	img.want(t, b.openIn(t, own.Slot, "small/07"), "small/07", 0, 3000)
	b.close(t)

	img.setMood(func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) })
	for _, lost := range []bool{false, true} {
		b = newBench(t, img.shore, dir, img.at)
		if lost { // the tree is made anew from the root
			if _, err := b.store.DeleteTree(own.TOC); err != nil {
				t.Fatal(err)
			}
		}
		own = img.bind(t, b)
		if err := b.Warm(own); err != nil {
			t.Fatal(err)
		}
		b.settled(t, own.Slot)
		img.readIn(t, b, own.Slot)
		if !lost {
			img.want(t, b.openIn(t, own.Slot, "small/07"), "small/07", 0, 3000)
		}
		b.close(t)
	}
}

// spoilPages alters what is behind the root.
func (img *hotImage) spoilPages() {
	for i := img.ref.Root.Size; i < int64(len(img.toc)); i++ {
		img.toc[i] ^= 1
	}
}

func TestPagesThatAreNotTheRoots(t *testing.T) {
	img := newHotImage(t)
	img.spoilPages()
	b := newBench(t, img.shore, t.TempDir(), img.at)
	own := img.bind(t, b)
	img.want(t, b.openIn(t, own.Slot, "small/07"), "small/07", 0, 3000)
	img.want(t, b.openIn(t, own.Slot, "big"), "big", 0, 1<<20)
	if img.tables() == 0 {
		t.Error("the IDs came from nowhere")
	}
}

func TestRootThatIsOfNoUse(t *testing.T) {
	for name, change := range map[string]func(*hotImage){
		"gone":      func(img *hotImage) { img.ref.TOC = artifact.BlobOf([]byte("nothing")) },
		"other":     func(img *hotImage) { img.toc[100] ^= 1 },
		"no root":   func(img *hotImage) { img.ref.Root = artifact.BlobOf(img.toc[:img.ref.Root.Size/2]) },
		"too short": func(img *hotImage) { img.toc = img.toc[:img.ref.Root.Size/2] },
	} {
		t.Run(name, func(t *testing.T) {
			img := newHotImage(t)
			change(img)
			img.setMood(func(w http.ResponseWriter, r *http.Request) bool {
				if strings.HasSuffix(r.URL.Path, artifact.BlobOf([]byte("nothing")).Digest) {
					http.Error(w, "unknown blob", http.StatusNotFound)
					return true
				}
				return img.serveBlobs(nil)(w, r)
			})
			b := newBench(t, img.shore, t.TempDir(), img.at)
			own := img.bind(t, b)
			if err := b.WarmFrom(src, img.ref, own); err != nil {
				t.Fatal(err)
			}
			b.settled(t, own.Slot)
			img.readIn(t, b, own.Slot)
			img.want(t, b.openIn(t, own.Slot, "small/07"), "small/07", 0, 3000)
		})
	}
}

// A root that says something else than the table of the same layer lies about its own
// image alone, and when that shows nothing is served of what it says.
func TestRootThatContradictsTheTable(t *testing.T) {
	img, other := newHotImage(t), newHotImage(t)
	b := newBench(t, img.shore, t.TempDir(), img.at)
	tree, err := b.Tree(t.Context(), slot)
	if err != nil {
		t.Fatal(err)
	}
	liar := toc.NewAssembly(img.at)
	entry := b.entry(t, "small/07")
	if err := misplace(liar, tree, entry); err != nil {
		t.Fatal(err)
	}
	lie, err := liar.Tree()
	if err != nil {
		t.Fatal(err)
	}
	e := artifact.NewEncoder(nil, nil)
	if err := e.Add(lie); err != nil {
		t.Fatal(err)
	}
	blob, root, err := e.Blob()
	if err != nil {
		t.Fatal(err)
	}
	other.toc, other.ref = blob, artifact.Ref{TOC: artifact.BlobOf(blob), Root: artifact.BlobOf(blob[:root]), Hot: img.ref.Hot}
	other.spoilPages()
	img.setMood(other.serveBlobs(nil))
	// On another node: where the table is here first, the root is not even asked for.
	b = newBench(t, img.shore, t.TempDir(), img.at)
	own, err := b.catalog.Bind(src, other.ref, []catalog.Layer{img.info})
	if err != nil {
		t.Fatal(err)
	}
	if c, err := b.Open(t.Context(), own[0].Slot, entry); !errors.Is(err, ErrQuarantined) {
		t.Errorf("a file was opened whose attributes two tables dispute: %v, %v", c, err)
	}
	if _, err := b.Tree(t.Context(), own[0].Slot); !errors.Is(err, ErrQuarantined) {
		t.Errorf("the tree of the liar is served: %v", err)
	}
	if l, err := b.catalog.Layer(own[0].Slot); err != nil || l.Wrong == "" {
		t.Errorf("the catalog says nothing of it: %+v, %v", l, err)
	}
	img.want(t, b.open(t, "small/07"), "small/07", 0, 3000) // of other images
}

// misplace copies a tree and gives an entry other permissions.
func misplace(a *toc.Assembly, tree *toc.Tree, entry uint32) error {
	for e := range uint32(tree.Len()) {
		attr := tree.Attr(e)
		if e == entry {
			attr.Mode |= 0o4000
		}
		if err := a.Add(toc.Entry{Attr: attr}); err != nil {
			return err
		}
		first, end := tree.Chunks(e)
		for c := first; c < end; c++ {
			k := tree.Chunk(c)
			if err := a.Chunk(k.ID, k.Size, k.Inner, tree.Member(k.Member)); err != nil {
				return err
			}
		}
	}
	var errs []error
	for dir := range uint32(tree.Len()) {
		for k := range tree.NumChildren(dir) {
			name, e := tree.Child(dir, k)
			errs = append(errs, a.Name(dir, name, e))
		}
	}
	return errors.Join(errs...)
}

// Many readers of many cold files wait for few requests.
func TestReadersOfColdFilesShareRequests(t *testing.T) {
	img := newHotImage(t)
	b := newBench(t, img.shore, t.TempDir(), img.at)
	own := img.bind(t, b)
	done := make(chan struct{})
	n := 0
	for i := range 40 {
		n++
		go func() {
			defer func() { done <- struct{}{} }()
			name := fmt.Sprintf("small/%02d", i)
			c, err := b.Open(t.Context(), own.Slot, b.entryIn(t, own.Slot, name))
			if err != nil {
				t.Error(err)
				return
			}
			img.want(t, c, name, 0, 3000)
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}()
	}
	for range n {
		<-done
	}
	if img.tables() > 0 {
		t.Errorf("%d bytes of the table crossed", img.tables())
	}
	if _, twice := img.traffic(); twice > 0 {
		t.Errorf("%d bytes of the layer crossed twice", twice)
	}
}
