package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/internal/toc"
)

// everything checks that a node has all of the image, each chunk once.
func (n *node) everything(t *testing.T, img *testImage) {
	t.Helper()
	n.want(t, img, 0, "lib/big")
	n.want(t, img, 0, "lib/first")
	n.want(t, img, 0, "etc/cold")
	n.want(t, img, 1, "bin/app")
	n.want(t, img, 1, "bin/other")
	if n.twice > 0 {
		t.Errorf("%d chunks came twice", n.twice)
	}
}

func all(img *testImage) link.Request {
	return link.Request{Reference: img.ref, Platform: "linux/amd64", Depth: link.All}
}

// cost is how many bytes an image takes over a link that doesn't break.
func cost(t *testing.T, p *served, img *testImage) int64 {
	t.Helper()
	r := newRelay(t, p.addr, 0, 0)
	wait(t, dial(t, r.addr(), "vessel-0", nil).Pull(all(img), newNode()))
	n, _ := r.crossed()
	return n
}

// A link that breaks every 30 kB brings everything, to the byte: chunks of 64
// KiB that don't compress would never come whole otherwise.
func TestConnectionsThatLastForHalfAChunk(t *testing.T) {
	s := newShore(t)
	img := app(t, s)
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{})
	whole := cost(t, p, img)
	r := newRelay(t, p.addr, 30<<10, 0)
	n := newNode()
	wait(t, dial(t, r.addr(), "vessel-1", nil).Pull(all(img), n))
	n.everything(t, img)
	down, conns := r.crossed()
	t.Logf("%d bytes without a break, %d over %d connections", whole, down, conns)
	// What was under way when a connection broke, and handshakes.
	if most := whole + int64(conns)*(16<<10); down > most || conns < 10 {
		t.Errorf("%d bytes over %d connections, %d without a break", down, conns, whole)
	}
}

// A link that goes silent is given up after a while, and what came is kept.
func TestASilentLinkIsGivenUp(t *testing.T) {
	s := newShore(t)
	img := app(t, s)
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{})
	r := newRelay(t, p.addr, 0, 10*time.Millisecond)
	n := newNode()
	sess := dial(t, r.addr(), "vessel-1", nil)
	pull := sess.Pull(all(img), n)
	await(t, "the first chunks", func() bool { return n.count() > 2 })
	r.setStall(true)
	await(t, "the end of the connection", func() bool { st, _ := sess.State(); return !st.Up })
	r.setStall(false)
	wait(t, pull)
	n.everything(t, img)
}

// Another proxy, which knows nothing, goes on where the first one stopped.
func TestAnotherProxyGoesOn(t *testing.T) {
	s := newShore(t)
	img := app(t, s)
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{})
	n := newNode()
	n.slow = 10 * time.Millisecond
	pull := dial(t, p.addr, "vessel-1", nil).Pull(all(img), n)
	await(t, "the first chunks", func() bool { return n.count() > 5 })
	pull.Demand(link.Demand, 0, 9) // something out of its order
	p.stop()
	before := n.count()
	serve(t, t.TempDir(), p.addr, Options{})
	wait(t, pull)
	n.everything(t, img)
	if before >= 15 {
		t.Errorf("%d chunks had come before: nothing was resumed", before)
	}
}

// A node that was stopped goes on with its cookie, whatever broke off.
func TestANodeGoesOnWithItsCookie(t *testing.T) {
	s := newShore(t)
	img := app(t, s)
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{})
	r := newRelay(t, p.addr, 0, 0)
	n := newNode()
	n.slow = 10 * time.Millisecond
	sess := dial(t, r.addr(), "vessel-1", nil)
	pull := sess.Pull(all(img), n)
	await(t, "the first chunks", func() bool { return n.count() > 5 })
	pull.Demand(link.Demand, 0, 9)
	sess.Close()
	cookie := pull.Cookie()
	next := dial(t, r.addr(), "vessel-1", nil)
	again, err := next.Resume(cookie, nil, n)
	if err != nil {
		t.Fatal(err)
	}
	wait(t, again)
	n.everything(t, img)
	if diff := cmp.Diff(pull.Progress().Items, again.Progress().Items); diff != "" {
		t.Error(diff)
	}
	cookie[len(cookie)-1] ^= 1
	if _, err := next.Resume(cookie, nil, n); err == nil {
		t.Error("a damaged cookie was taken")
	}
}

// What a node has through any image does not cross again, tables included.
func TestNothingCrossesThatTheNodeHas(t *testing.T) {
	s := newShore(t)
	one := app(t, s)
	base := one.files[0]
	two := s.push(t, "team/other", "2", base, []file{
		{name: "opt/copy", content: one.files[1][1].content}, // as bin/other
		{name: "opt/new", content: prose(9, 100<<10), hot: 1},
	})
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{})
	trees := map[string]*toc.Tree{}
	for i, l := range layersOf(t, one) {
		trees[l.Annotations[annotation.TOCDigest]] = one.trees[i]
	}
	n := newNode()
	n.known = func(d ocispec.Descriptor) *toc.Tree { return trees[d.Annotations[annotation.TOCDigest]] }
	req := all(two)
	req.Have = []string{one.byDigest}
	wait(t, dial(t, p.addr, "vessel-1", nil).Pull(req, n))
	want := []string{"manifest", "config", "table 1", "chunk 1/2", "chunk 1/3"}
	if diff := cmp.Diff(want, n.order); diff != "" {
		t.Error(diff)
	}
	n.want(t, two, 1, "opt/new")
}

// A demand that is on its way already, as part of the plan, costs nothing.
func TestADemandForWhatIsUnderWay(t *testing.T) {
	s := newShore(t)
	img := app(t, s)
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{})
	n := newNode()
	n.slow = 5 * time.Millisecond
	pull := dial(t, p.addr, "vessel-1", nil).Pull(all(img), n)
	await(t, "the first chunk", func() bool { return n.count() > 0 })
	for c := range uint32(5) { // of lib/big, which nothing hot is in
		pull.Demand(link.Demand, 0, c)
	}
	wait(t, pull)
	n.everything(t, img)
}

// Nor does one for what the plan comes to before the demand's lane does.
func TestADemandThatThePlanOvertakes(t *testing.T) {
	s := newShore(t)
	img := app(t, s)
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{})
	n := newNode()
	n.slow = 5 * time.Millisecond
	pull := dial(t, p.addr, "vessel-1", nil).Pull(all(img), n)
	for layer, tree := range img.trees {
		for c := range uint32(tree.NumChunks()) {
			pull.Demand(link.Rest, layer, c)
		}
	}
	wait(t, pull)
	await(t, "what was demanded", func() bool {
		return n.count() == img.trees[0].NumChunks()+img.trees[1].NumChunks()
	})
	// The lane is served in its order, so this one, which is wanted again, is the last.
	pull.Demand(link.Rest, 0, 0)
	twice := func() int { n.mu.Lock(); defer n.mu.Unlock(); return n.twice }
	await(t, "a second demand", func() bool { return twice() > 0 })
	if again := twice(); again > 1 {
		t.Errorf("%d chunks came twice that were wanted once", again-1)
	}
}

// A registry that takes its time is not a dead link: the node is told, and waits.
func TestASlowRegistryIsNoDeadLink(t *testing.T) {
	s := newShore(t)
	img := app(t, s)
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{Reassure: 200 * time.Millisecond})
	s.setMood(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			time.Sleep(2 * time.Second) // the node gives up after one
		}
		return false
	})
	n := newNode()
	sess := dial(t, p.addr, "vessel-1", nil)
	await(t, "the session", func() bool { st, _ := sess.State(); return st.Up })
	before, _ := sess.State()
	wait(t, sess.Pull(link.Request{Reference: img.ref, Platform: "linux/amd64", Depth: link.Start}, n))
	if after, _ := sess.State(); after.Since != before.Since || len(n.status) == 0 {
		t.Errorf("the session was %+v, is %+v; the node was told %q", before, after, n.status)
	}
}

// A file that changed a little costs what changed: it is compressed with what the
// node has of the version before.
func TestAChangedFileBuildsOnTheOneBefore(t *testing.T) {
	s := newShore(t)
	one := app(t, s)
	big := bytes.Clone(one.files[0][0].content)
	big = slices.Concat(big[:100<<10], []byte("something that was put in"), big[100<<10:]) // all that follows moves
	two := s.push(t, "team/app", "2", []file{{name: "lib/big", content: big, hot: 1}})
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{})
	r := newRelay(t, p.addr, 0, 0)
	n := newNode()
	tree := one.trees[0]
	var asked int
	n.base = func(b link.Base) ([]byte, error) {
		asked++
		if !isTable(t, one, 0, b.Table) || b.Entry != entryOf(t, tree, "lib/big") {
			return nil, errors.New("another file")
		}
		return one.files[0][0].content[b.Offset : b.Offset+int64(b.Length)], nil
	}
	req := all(two)
	req.Have = []string{one.byDigest}
	wait(t, dial(t, r.addr(), "vessel-1", nil).Pull(req, n))
	n.want(t, two, 0, "lib/big")
	down, _ := r.crossed()
	t.Logf("%d bytes crossed for %d that don't compress; %d bases", down, len(big), asked)
	if down > 20<<10 || asked == 0 {
		t.Errorf("%d bytes crossed for a change of 25", down)
	}
}

// isTable tells whether the digest of a layer's table begins like that.
func isTable(t *testing.T, img *testImage, layer int, prefix [8]byte) bool {
	t.Helper()
	return strings.HasPrefix(layersOf(t, img)[layer].Annotations[annotation.TOCDigest], fmt.Sprintf("sha256:%x", prefix))
}

// Of an image whose hot set the node has, what is in the hot set does not cross
// again, and what changed builds on it and on nothing else.
func TestAnUpdateOfAnImageThatIsHereInPart(t *testing.T) {
	s := newShore(t)
	same, cold, part := noise(1, 100<<10), noise(2, 100<<10), noise(3, 300<<10)
	one := s.push(t, "team/app", "1", []file{
		{name: "same", content: same, hot: 1}, {name: "cold", content: cold}, {name: "part", content: part, hot: 2},
	})
	changed := bytes.Clone(part)
	changed[150<<10]++
	coldToo := bytes.Clone(cold)
	coldToo[0]++
	two := s.push(t, "team/app", "2", []file{
		{name: "same", content: same, hot: 1},
		{name: "cold", content: coldToo, hot: 2},
		{name: "part", content: changed, hot: 3},
		{name: "copy", content: cold, hot: 4},
	})
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{})
	r := newRelay(t, p.addr, 0, 0)
	n := newNode()
	n.base = func(b link.Base) ([]byte, error) {
		if !isTable(t, one, 0, b.Table) || b.Entry != entryOf(t, one.trees[0], "part") {
			return nil, errors.New("not here")
		}
		return part[b.Offset : b.Offset+int64(b.Length)], nil
	}
	req := link.Request{Reference: two.ref, Platform: "linux/amd64", Depth: link.Start, Warm: []string{one.byDigest}}
	wait(t, dial(t, r.addr(), "vessel-1", nil).Pull(req, n))
	n.want(t, two, 0, "cold")
	n.want(t, two, 0, "part")
	n.want(t, two, 0, "copy")
	if again := n.file(t, two, 0, "same"); len(again) > 0 {
		t.Errorf("%d bytes of what was in the hot set crossed again", len(again))
	}
	down, _ := r.crossed()
	t.Logf("%d bytes crossed", down)
	if limit := int64(len(coldToo)+len(cold)) + 20<<10; down > limit {
		t.Errorf("%d bytes crossed, more than %d: the change of a byte cost more than a byte", down, limit)
	}
}

// A base that the node says it has, and hasn't, is not built on again.
func TestABaseThatIsNotThere(t *testing.T) {
	s := newShore(t)
	one := app(t, s)
	big := slices.Concat([]byte("x"), one.files[0][0].content)
	two := s.push(t, "team/app", "2", []file{{name: "lib/big", content: big, hot: 1}})
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{})
	n := newNode()
	req := all(two)
	req.Have = []string{one.byDigest}
	wait(t, dial(t, p.addr, "vessel-1", nil).Pull(req, n))
	n.want(t, two, 0, "lib/big")
}
