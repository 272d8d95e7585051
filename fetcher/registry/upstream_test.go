package registry

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/fetcher/uplink"
)

// answer makes a shore answer everything with a status.
func answerWith(status int) func(w http.ResponseWriter, r *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, http.StatusText(status), status)
		return true
	}
}

func cut(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }

func withMirrors(mirrors ...*shore) func(*Host) {
	return func(h *Host) {
		for _, m := range mirrors {
			h.Mirrors = append(h.Mirrors, m.URL)
		}
	}
}

// rested makes a client's hosts ready to be tried again.
func (c *Client) rested() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, list := range c.hosts {
		for _, h := range list {
			h.mu.Lock()
			if h.failures > 0 {
				h.until = time.Now().Add(-time.Second)
			}
			h.mu.Unlock()
		}
	}
}

func TestMirrorIsAskedFirstAndWhatItLacksIsAskedOfTheRegistry(t *testing.T) {
	s, m := newShore(t, false), newShore(t, false)
	c := client(t, s, withMirrors(m))
	wantRange(t, c, s, 10, 100)
	if len(m.seen()) != 1 || len(s.seen()) != 0 {
		t.Error("the mirror was not asked alone")
	}
	for _, status := range []int{404, 401, 403} {
		m.setMood(answerWith(status))
		wantRange(t, c, s, 10, 100)
		wantRange(t, c, s, 10, 100)
		if len(m.seen()) != 2 || len(s.seen()) != 2 {
			t.Errorf("%d from the mirror is no trouble: it is asked first, and the registry next", status)
		}
	}
	if _, err := c.Manifest(t.Context(), uplink.Demand, s.src(), digest.FromString("x").String()); err == nil {
		t.Error("wrong manifest")
	}
	s.setMood(answerWith(404))
	if _, _, err := read(t, c, s, 0, 1); !NotFound(err) {
		t.Errorf("both lack it: %v", err)
	}
	s.setMood(cut)
	if _, _, err := read(t, c, s, 0, 1); !Temporary(err) {
		t.Errorf("the mirror lacks it and the registry is gone: %v", err)
	}
}

func TestMirrorThatFailsIsLeftAloneUntilItIsBack(t *testing.T) {
	s, m1, m2 := newShore(t, false), newShore(t, false), newShore(t, false)
	c := client(t, s, withMirrors(m1, m2))
	m1.setMood(answerWith(503))
	for range 3 {
		wantRange(t, c, s, 10, 100)
	}
	if n1, n2 := len(m1.seen()), len(m2.seen()); n1 != 1 || n2 != 3 {
		t.Errorf("the first was asked %d times, want 1; the second %d times, want 3", n1, n2)
	}
	// It rests, is probed and fails again.
	c.rested()
	wantRange(t, c, s, 10, 100)
	c.work.Wait()
	wantRange(t, c, s, 10, 100)
	if diff := cmp.Diff([]string{"GET /v2/"}, m1.seen()); diff != "" {
		t.Errorf("the probe: %s", diff)
	}
	// It is back.
	m1.setMood(nil)
	c.rested()
	wantRange(t, c, s, 10, 100)
	c.work.Wait()
	m1.seen()
	m2.seen()
	wantRange(t, c, s, 10, 100)
	if len(m1.seen()) != 1 || len(m2.seen()) != 0 {
		t.Error("the first is back and not asked")
	}
	if len(s.seen()) != 0 {
		t.Error("the registry was asked though its mirrors work")
	}
}

func TestBlobGoesOnFromAnotherMirror(t *testing.T) {
	s, m := newShore(t, false), newShore(t, false)
	m.setMood(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/v2/" {
			return false
		}
		w.Header().Set("Content-Length", "100000")
		if err := errors.Join(second(w.Write(m.blob[:40_000])), http.NewResponseController(w).Flush()); err != nil {
			t.Error(err)
		}
		panic(http.ErrAbortHandler)
	})
	c := client(t, s, withMirrors(m))
	rc, _, err := c.Blob(t.Context(), uplink.Prefetch, s.src(), s.digest(), 0, 100_000)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(rc)
	if err2 := rc.Close(); !Temporary(err) || err2 != nil || len(got) != 40_000 {
		t.Fatalf("%d bytes, %v, %v", len(got), err, err2)
	}
	rest, start, err := read(t, c, s, 40_000, 60_000)
	if err != nil || start != 40_000 || !bytes.Equal(append(got, rest...), s.blob) {
		t.Errorf("%d more bytes from %d on: %v", len(rest), start, err)
	}
	if n := len(s.seen()); n != 1 {
		t.Errorf("the registry was asked %d times, want once", n)
	}
}

func TestManifestOfAnotherDigestIsTakenFromNobody(t *testing.T) {
	s, m := newShore(t, false), newShore(t, false)
	forge := func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") {
			_, err := io.WriteString(w, "forged")
			return err == nil
		}
		return false
	}
	m.setMood(forge)
	c := client(t, s, withMirrors(m))
	d := digest.FromString(`{"schemaVersion":2}`)
	got, err := c.Manifest(t.Context(), uplink.Demand, s.src(), d.String())
	if err != nil || got.Digest != d {
		t.Errorf("the registry has the right one: %v", err)
	}
	if n := c.Counts().Wrong; n != 1 {
		t.Errorf("%d counted, want 1", n)
	}
	s.setMood(forge)
	if _, err = c.Manifest(t.Context(), uplink.Demand, s.src(), d.String()); !errors.Is(err, ErrContent) || Temporary(err) {
		t.Errorf("both forge: %v", err)
	}
	m.setMood(answerWith(404))
	s.setMood(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Docker-Content-Digest", d.String())
		_, err := io.WriteString(w, "forged")
		return err == nil
	})
	if _, err = c.Manifest(t.Context(), uplink.Demand, s.src(), "1"); !errors.Is(err, ErrContent) {
		t.Errorf("a tag whose digest isn't its content's: %v", err)
	}
}

func TestOutageOfAllIsForgivenToAll(t *testing.T) {
	s, m := newShore(t, false), newShore(t, false)
	c := client(t, s, withMirrors(m))
	s.setMood(cut)
	m.setMood(cut)
	for range 8 {
		if _, _, err := read(t, c, s, 0, 1); !Temporary(err) {
			t.Fatal(err)
		}
		c.rested()
	}
	s.setMood(nil)
	m.setMood(nil)
	wantRange(t, c, s, 0, 10)
	for _, h := range c.hosts["shore.example"] {
		if failures, until := h.state(); failures > 0 && time.Until(until) > firstRest {
			t.Errorf("%s rests for %v more", h.base.Host, time.Until(until))
		}
	}
}

func TestNameOfAMirrorIsChecked(t *testing.T) {
	s := newShore(t, false)
	c := client(t, s, func(h *Host) { h.Mirrors = []string{"ftp://x"} })
	if _, _, err := read(t, c, s, 0, 1); err == nil || !strings.Contains(err.Error(), "ftp://x") {
		t.Errorf("got %v", err)
	}
}

func TestLoopIsRecognised(t *testing.T) {
	s := newShore(t, false)
	var via atomic.Pointer[[]string]
	s.setMood(func(_ http.ResponseWriter, r *http.Request) bool {
		v := r.Header.Values("Via")
		via.Store(&v)
		return false
	})
	c, other := client(t, s, nil), client(t, s, nil)
	if _, err := c.Manifest(Through(t.Context(), []string{"1.1 elsewhere"}), uplink.Demand, s.src(), "1"); err != nil {
		t.Fatal(err)
	}
	if v := *via.Load(); !c.Looped(v) || other.Looped(v) || !strings.Contains(v[0], "1.1 elsewhere") {
		t.Errorf("Via: %q", v)
	}
}

// A mirror that sends wrong bytes of the right length is left alone once that
// was noticed.
func TestWrongBytesAreAskedOfAnother(t *testing.T) {
	s, m := newShore(t, false), newShore(t, false)
	m.blob = bytes.Repeat([]byte("wrong bytes"), 10_000)[:100_000]
	c := client(t, s, withMirrors(m))
	for range 2 {
		if got, _, err := read(t, c, s, 0, 100); err != nil || bytes.Equal(got, s.blob[:100]) {
			t.Fatalf("%v, or the mirror was not asked", err)
		}
	}
	c.Distrust(s.src(), s.digest())
	for range 3 {
		wantRange(t, c, s, 0, 100)
	}
	alone := client(t, s, nil)
	wantRange(t, alone, s, 0, 100)
	alone.Distrust(s.src(), s.digest())
	wantRange(t, alone, s, 0, 100)
}
