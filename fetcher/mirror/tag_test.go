package mirror

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/airstream-io/airstream/fetcher/registry"
)

func blackhole(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }

func digestOf(t *testing.T, img v1.Image) string {
	t.Helper()
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// means asks the mirror what a tag means.
func (n *nodeSide) means(t *testing.T, ref string) string {
	t.Helper()
	repo, tag, _ := strings.Cut(ref, ":")
	return n.get(t, "HEAD", repo+"/manifests/"+tag).header.Get("Docker-Content-Digest")
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

func patient(o *Options, _ map[string]registry.Host) { o.Patience = time.Minute }

func refreshing(o *Options, _ map[string]registry.Host) { o.Refresh = true }

// After a restart on a link that is silently dead nothing says so yet: the
// first question must not wait for a whole stall, nor the second at all.
func TestStartOnASilentLinkDoesNotWait(t *testing.T) {
	s, dir := newShore(t), t.TempDir()
	one, two := randomImage(t), randomImage(t)
	s.push(t, "app:1", one)
	s.push(t, "app:2", two)
	n := newNode(t, s, dir)
	n.pull(t, "app:1", one)
	n.pull(t, "app:2", two)
	n.stop()
	s.setMood(blackhole)
	n = newNode(t, s, dir, patient)
	began := time.Now()
	if got := n.means(t, "app:1"); got != digestOf(t, one) {
		t.Errorf("got %s", got)
	}
	if took := time.Since(began); took > 300*time.Millisecond { // silence is 50 ms, a stall 500
		t.Errorf("the first question took %v", took)
	}
	began = time.Now()
	if got := n.means(t, "app:2"); got != digestOf(t, two) {
		t.Errorf("got %s", got)
	}
	if took := time.Since(began); took > 200*time.Millisecond {
		t.Errorf("the second question took %v", took)
	}
}

// A link that is slow, but says something, gets its whole patience.
func TestSlowLinkThatLivesIsWaitedFor(t *testing.T) {
	s, dir := newShore(t), t.TempDir()
	one, two := randomImage(t), randomImage(t)
	s.push(t, "app:1", one)
	n := newNode(t, s, dir)
	n.pull(t, "app:1", one)
	n.stop()
	s.push(t, "app:1", two)
	first := true
	s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
		time.Sleep(30 * time.Millisecond) // each answer alone comes before the silence is noticed, all together don't
		if first {
			first = false
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+s.URL+`/token"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		if r.URL.Path == "/token" {
			_, err := w.Write([]byte(`{"token":"t"}`))
			return err == nil
		}
		return false
	})
	n = newNode(t, s, dir, patient)
	if got := n.means(t, "app:1"); got != digestOf(t, two) {
		t.Errorf("the tag is the cached one: %s", n.words)
	}
}

func TestStaleTagSaysSoAndIsAskedAgainOnceWhenTheLinkIsBack(t *testing.T) {
	s := newShore(t)
	one, two, other := randomImage(t), randomImage(t), randomImage(t)
	s.push(t, "app:1", one)
	s.push(t, "other:1", other)
	n := newNode(t, s, t.TempDir(), refreshing)
	n.pull(t, "app:1", one)
	n.pull(t, "other:1", other)
	s.setMood(dead)
	for range 3 {
		resp := n.get(t, "GET", "app/manifests/1")
		if w := resp.header.Get("Warning"); resp.status != 200 || !strings.HasPrefix(w, "299 - ") {
			t.Errorf("%d, Warning %q", resp.status, w)
		}
	}
	n.means(t, "other:1")
	eventually(t, "the link is not known to be dark", n.reg.Dark)
	s.push2(t, "app:1", two)
	s.seen()
	heads := s.countHeads()
	s.setMood(nil)
	eventually(t, "the new meaning never arrived", func() bool {
		tag, err := n.catalog.Tag("shore.example/app:1")
		return err == nil && tag.Digest.String() == digestOf(t, two)
	})
	eventually(t, "something is left to ask", func() bool { _, left := n.refresh.next(); return !left })
	if got := s.countHeads() - heads; got > 3 { // one each, and one that was under way
		t.Errorf("%d questions for two tags", got)
	}
	// The manifest of the tag that moved crossed, and nothing of the other.
	if seen := s.seen(); slices.ContainsFunc(seen, func(p string) bool { return strings.Contains(p, "/other/") }) || len(seen) > 2 {
		t.Errorf("crossed: %q", seen)
	}
	if resp := n.get(t, "GET", "app/manifests/1"); resp.header.Get("Warning") != "" {
		t.Error("a fresh tag has a warning")
	}
}

func TestTagThatHasNotMovedCostsNoManifest(t *testing.T) {
	s := newShore(t)
	img := randomImage(t)
	s.push(t, "app:1", img)
	n := newNode(t, s, t.TempDir())
	n.pull(t, "app:1", img)
	s.seen()
	n.pull(t, "app:1", img)
	if seen := s.seen(); len(seen) != 0 {
		t.Errorf("a second pull of the same fetched %q", seen)
	}
}

func TestDigestIsNeverAskedForTwice(t *testing.T) {
	s := newShore(t)
	img := randomImage(t)
	s.push(t, "app:1", img)
	n := newNode(t, s, t.TempDir(), patient)
	n.pull(t, "app:1", img)
	s.setMood(blackhole)
	began := time.Now()
	for range 10 {
		if resp := n.get(t, "GET", "app/manifests/"+digestOf(t, img)); resp.status != 200 {
			t.Errorf("%d", resp.status)
		}
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("took %v", took)
	}
}

func TestTooManyRequestsIsNotAskedAgainBeforeItsTime(t *testing.T) {
	s := newShore(t)
	n := newNode(t, s, t.TempDir())
	asked := 0
	s.setMood(func(w http.ResponseWriter, _ *http.Request) bool {
		asked++
		w.Header().Set("Retry-After", "30")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	})
	for range 5 { // as containerd does, at once
		if resp := n.get(t, "HEAD", "app/manifests/1"); resp.status != http.StatusTooManyRequests || resp.header.Get("Retry-After") == "" {
			t.Errorf("%d %v", resp.status, resp.header)
		}
	}
	if asked != 1 {
		t.Errorf("the registry was asked %d times, want once", asked)
	}
}

func TestBurstOf503IsWaitedOut(t *testing.T) {
	s := newShore(t)
	img := randomImage(t)
	s.push(t, "app:1", img)
	n := newNode(t, s, t.TempDir())
	asked := 0
	s.setMood(func(w http.ResponseWriter, _ *http.Request) bool {
		if asked++; asked <= 2 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		return false
	})
	if got := n.means(t, "app:1"); got != digestOf(t, img) {
		t.Errorf("got %q", got)
	}
}
