// Package refetch counts what a node asks for again though it has it.
//
// It stands in a registry front and looks, at the moment when a request
// arrives, at the node's store on disk: every part of the range that is asked
// for and is there already, and has the content that it should have, is a byte
// fetched twice. It hashes what it finds and so counts nothing that is
// damaged, nothing that has merely been made room for, and nothing that was
// lost on the way; the daemon's own accounts are not asked.
//
// It knows the store's layout from package store's description. Should that
// change, Have finds nothing, which tests must check when an image is complete.
package refetch

import (
	"fmt"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/store"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/test/rig/registry"
)

// Count is what was asked for, in bytes of ranges of blobs as they cross.
type Count struct {
	Asked int64  // in all
	Again int64  // of it, what was on disk
	Lost  int64  // of it, what was on disk and had arrived a moment before a crash
	First string // the first request of Again
}

// since says when a member arrived, and how long before the crashes.
func (a answer) since(crashes []*crash) string {
	if a.arrival == nil {
		return ", though no answer brought it"
	}
	arrived, ok := a.arrival.At(a.end)
	if !ok {
		return ", though its answer is under way"
	}
	var before strings.Builder
	for _, c := range crashes {
		fmt.Fprintf(&before, "; a crash %v later", c.began.Sub(arrived).Round(time.Millisecond))
	}
	return fmt.Sprintf(", asked for at %s, here %v later%s", a.began.Format(time.TimeOnly), arrived.Sub(a.began).Round(time.Millisecond), before.String())
}

// Watch counts. It is safe for concurrent use.
type Watch struct {
	dir string // of the node's store

	mu      sync.Mutex
	layers  map[string]*layer  // guarded by mu; lazy ones, by digest of the blob in hex
	served  map[place][]answer // guarded by mu; those that a chunk was in, of whatever layer
	counts  map[string]*Count  // guarded by mu; the same
	crashes []*crash           // guarded by mu
}

// layer is a lazy layer that the watch knows.
type layer struct {
	tree   *toc.Tree
	table  digest.Digest
	offset int64    // of the table in the blob
	size   int64    // of the blob
	files  []string // by chunk: the file of the store that holds it
}

// place is where a chunk is in the store.
type place struct {
	file   string
	offset int64
}

func (l *layer) place(c uint32) place { return place{l.files[c], l.tree.Chunk(c).Offset} }

// answer is where a chunk was in the answer to a request.
type answer struct {
	began   time.Time
	arrival *registry.Arrival // nil: it was in none
	end     int64             // bytes of the answer up to the end of the chunk's member
}

// lostIn tells whether the member was asked for before a crash and arrived so
// shortly before it, or after, that it may be lost.
func (a answer) lostIn(c *crash) bool {
	if a.arrival == nil || !c.ended.IsZero() && a.began.After(c.ended) {
		return false
	}
	arrived, ok := a.arrival.At(a.end)
	return !ok || arrived.After(c.began.Add(-Lost))
}

// New returns a Watch over the store in a daemon's root directory.
func New(root string) *Watch {
	return &Watch{dir: filepath.Join(root, "store"), layers: map[string]*layer{}, served: map[place][]answer{}, counts: map[string]*Count{}}
}

// Count returns what was counted of the config and the layers of images, or
// of everything if none is named.
func (w *Watch) Count(images ...v1.Image) (Count, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var sum Count
	if len(images) == 0 {
		for _, c := range w.counts {
			sum.add(c)
		}
	}
	for _, img := range images {
		m, err := img.Manifest()
		if err != nil {
			return sum, fmt.Errorf("refetch: %w", err)
		}
		for _, desc := range append([]v1.Descriptor{m.Config}, m.Layers...) {
			if c := w.counts[desc.Digest.Hex]; c != nil {
				sum.add(c)
			}
		}
	}
	return sum, nil
}

func (c *Count) add(o *Count) {
	c.Asked += o.Asked
	c.Again += o.Again
	c.Lost += o.Lost
	if c.First == "" {
		c.First = o.First
	}
}

// Crash says that the daemon is about to be killed, and dead that it is dead.
// What arrived in the time that the store's promise leaves open may be asked for
// again.
func (w *Watch) Crash() (dead func()) {
	c := &crash{began: time.Now()}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.crashes = append(w.crashes, c)
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		c.ended = time.Now()
	}
}

// crash is the death of a daemon, which takes some milliseconds.
type crash struct{ began, ended time.Time } // ended: zero before

// Lost is how long before a crash bytes may arrive that it costs: the store's
// delay, and as much for the flush itself on a busy machine.
const Lost = 2 * store.FlushDelay

// grace is how long a request that asks for what is there is looked at before
// it counts. One that was given up while the link was dark, and that the
// kernel delivers all the same, is followed by the end of its connection.
const grace = 300 * time.Millisecond

// Wrap returns a hook that counts and then does what next does, which may be
// nil.
func (w *Watch) Wrap(next registry.Hook) registry.Hook {
	return func(kind registry.Kind, rw http.ResponseWriter, r *http.Request, handler http.Handler) {
		if r.Method == http.MethodGet && (kind == registry.KindStorage || kind == registry.KindBlob) {
			done := w.request(r)
			defer done()
		}
		if next != nil {
			next(kind, rw, r, handler)
			return
		}
		handler.ServeHTTP(rw, r)
	}
}

// request counts one request of a blob. The caller calls done when the answer
// is out.
func (w *Watch) request(r *http.Request) (done func()) {
	hex := strings.TrimPrefix(path.Base(r.URL.Path), "sha256:")
	from, to := byteRange(r.Header.Get("Range"))
	w.mu.Lock()
	l := w.layers[hex]
	w.mu.Unlock()
	if l == nil {
		have := w.blob(hex)
		w.add(r, hex, Count{Again: max(0, min(have, to)-from)})
		return func() {}
	}
	to = min(to, l.size)
	again, members := w.here(l, from, to)
	w.mu.Lock()
	var forgiven int64
	var since string
	for _, m := range members {
		is := l.tree.Member(m)
		if brought, lost := w.broughtBy(l, m); lost {
			forgiven += is.End - is.Offset
		} else if since == "" {
			since = brought.since(w.crashes)
		}
	}
	w.mu.Unlock()
	w.add(r, hex, Count{Asked: max(0, to-from), Again: again - forgiven, Lost: forgiven, First: since})
	began, arrival := time.Now(), registry.FollowArrival(r)
	return func() {
		arrival.Out()
		w.handedOver(l, from, to, answer{began: began, arrival: arrival})
	}
}

// add counts, unless a request for what is there was given up before it
// arrived.
func (w *Watch) add(r *http.Request, hex string, c Count) {
	if c.Again > 0 {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
			return
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if c.Again > 0 {
		c.First = fmt.Sprintf("%s, %s: %d bytes of it were there%s", r.URL.Path, r.Header.Get("Range"), c.Again, c.First)
	}
	if w.counts[hex] == nil {
		w.counts[hex] = &Count{}
	}
	w.counts[hex].add(&c)
}

// handedOver notes in which answer the members of a range were last sent.
func (w *Watch) handedOver(l *layer, from, to int64, a answer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for m := range uint32(l.tree.NumMembers()) {
		if at := l.tree.Member(m); at.Offset < to && at.End > from {
			a.end = at.End - from
			for c, end := l.tree.MemberChunks(m); c < end; c++ {
				w.served[l.place(c)] = append(w.served[l.place(c)], a)
			}
		}
	}
}

// broughtBy returns the last answer that brought a chunk of a member, and whether a
// crash may have taken what it brought. One that broke off brought nothing. w.mu is
// held.
func (w *Watch) broughtBy(l *layer, m uint32) (last answer, lost bool) {
	for c, end := l.tree.MemberChunks(m); c < end; c++ {
		for _, a := range slices.Backward(w.served[l.place(c)]) {
			if slices.ContainsFunc(w.crashes, a.lostIn) {
				return a, true
			}
			if a.arrival.Has(a.end) {
				if a.began.After(last.began) {
					last = a
				}
				break
			}
		}
	}
	return last, false
}

// here returns how many bytes of a range are there, and the members that they
// are.
func (w *Watch) here(l *layer, from, to int64) (n int64, members []uint32) {
	for m := range uint32(l.tree.NumMembers()) {
		at := l.tree.Member(m)
		if at.Offset < from || at.End > to || !w.member(l, m) {
			continue
		}
		n += at.End - at.Offset
		members = append(members, m)
	}
	if from <= l.offset && to >= l.size && w.has("trees", l.table.Encoded()) {
		n += l.size - l.offset
	}
	return n, members
}

// member tells whether all chunks of a member are on disk.
func (w *Watch) member(l *layer, m uint32) bool {
	first, end := l.tree.MemberChunks(m)
	for c := first; c < end; c++ {
		if !w.chunk(l, c) {
			return false
		}
	}
	return first < end
}

func (w *Watch) chunk(l *layer, c uint32) bool {
	k := l.tree.Chunk(c)
	f, err := os.Open(l.files[c])
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // only read
	b := make([]byte, k.Size)
	if n, _ := f.ReadAt(b, k.Offset); n < len(b) {
		return false
	}
	return chunk.Sum(b) == k.ID
}

// blob returns how many bytes of a whole blob are there.
func (w *Watch) blob(hex string) int64 {
	if len(hex) < 2 {
		return 0
	}
	for _, name := range []string{filepath.Join("blobs", hex[:2], hex), filepath.Join("partial", hex)} {
		if info, err := os.Stat(filepath.Join(w.dir, name)); err == nil {
			return info.Size()
		}
	}
	return 0
}

func (w *Watch) has(kind, hex string) bool {
	_, err := os.Stat(filepath.Join(w.dir, kind, hex[:2], hex))
	return err == nil
}

// byteRange reads a Range header; to is far behind everything if it has no end.
func byteRange(h string) (from, to int64) {
	const far = 1 << 62
	first, last, ok := strings.Cut(strings.TrimPrefix(h, "bytes="), "-")
	if !ok {
		return 0, far
	}
	from, err := strconv.ParseInt(first, 10, 64)
	if err != nil {
		return 0, far
	}
	if to, err = strconv.ParseInt(last, 10, 64); err != nil {
		return from, far
	}
	return from, to + 1
}
