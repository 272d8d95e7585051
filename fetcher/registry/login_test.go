package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/airstream-io/airstream/fetcher/uplink"
)

// members makes s want Basic credentials that are in the list, "user:password".
func (s *shore) members(list ...string) {
	s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, ok := r.BasicAuth(); ok && slices.Contains(list, u+":"+p) {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="shore"`)
		http.Error(w, "members only", http.StatusUnauthorized)
		return true
	})
}

func (c *Client) manifestAs(ctx context.Context, s *shore, l Login) error {
	_, err := c.Manifest(As(ctx, l), uplink.Demand, s.src(), "1")
	return err
}

func TestClientsLoginIsItsOwnAndTheFetchersLater(t *testing.T) {
	s := newShore(t, false)
	s.members("pod:secret")
	c := client(t, s, nil)
	ctx := t.Context()
	pod, stranger := Login{"pod", "secret"}, Login{"stranger", "guess"}
	if _, _, err := read(t, c, s, 0, 10); !Refused(err) {
		t.Errorf("before anybody logged in: %v", err)
	}
	if err := c.manifestAs(ctx, s, stranger); !Refused(err) || c.Granted(s.src(), stranger) {
		t.Errorf("stranger: %v", err)
	}
	if err := c.manifestAs(ctx, s, pod); err != nil || !c.Granted(s.src(), pod) {
		t.Errorf("pod: %v", err)
	}
	if err := c.manifestAs(ctx, s, Login{}); !Refused(err) {
		t.Errorf("a client without credentials got in with another's: %v", err)
	}
	wantRange(t, c, s, 0, 10) // the fetcher, later
	s.members()               // the password is changed
	if _, _, err := read(t, c, s, 0, 10); !Refused(err) || c.Granted(s.src(), pod) {
		t.Errorf("after the password was changed: %v", err)
	}
}

func TestClientsLoginDoesNotGoToMirrors(t *testing.T) {
	s, m := newShore(t, false), newShore(t, false)
	s.members("pod:secret")
	m.setMood(func(w http.ResponseWriter, r *http.Request) bool {
		if a := r.Header.Get("Authorization"); a != "" {
			t.Errorf("the mirror was sent %q", a)
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="mirror"`)
		http.Error(w, "no", http.StatusUnauthorized)
		return true
	})
	c := client(t, s, withMirrors(m))
	if err := c.manifestAs(t.Context(), s, Login{"pod", "secret"}); err != nil {
		t.Error(err)
	}
	c = client(t, s, func(h *Host) { h.Mirrors, h.Username, h.Password = []string{m.URL}, "pod", "secret" })
	if err := c.manifestAs(t.Context(), s, Login{}); err != nil {
		t.Error(err)
	}
}

func TestMirrorHasCredentialsOfItsOwn(t *testing.T) {
	s, m := newShore(t, false), newShore(t, false)
	m.members("fleet:anchor")
	c := client(t, s, withMirrors(m))
	c.opts.Hosts[strings.TrimPrefix(m.URL, "http://")] = Host{Username: "fleet", Password: "anchor"}
	if err := c.manifestAs(t.Context(), s, Login{}); err != nil || len(s.seen()) != 0 {
		t.Errorf("%v, or the registry was asked", err)
	}
}

func TestLoginsAreNotWords(t *testing.T) {
	l := Login{"pod", "secret"}
	var b strings.Builder
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", slog.Any("login", l))
	if text := b.String() + fmt.Sprint(l) + fmt.Sprintf("%#v %+v %s", l, l, l); strings.Contains(text, "secret") || strings.Contains(text, "pod") {
		t.Errorf("told: %s", text)
	}
}

// Refused credentials must not be offered again and again: accounts get
// locked. Others are offered at once.
func TestRefusedCredentialsAreNotOfferedAgainSoon(t *testing.T) {
	for _, scheme := range []string{"basic", "bearer"} {
		s := newShore(t, false)
		offered := map[string]int{}
		s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
			if u, p, ok := r.BasicAuth(); ok {
				offered[u+":"+p]++
				if p == "right" && r.URL.Path != "/token" {
					return false
				}
			}
			if r.Header.Get("Authorization") == "Bearer right" {
				return false
			}
			if u, p, _ := r.BasicAuth(); r.URL.Path == "/token" && u != "" && p == "right" {
				return json.NewEncoder(w).Encode(map[string]string{"token": "right"}) == nil
			}
			w.Header().Set("WWW-Authenticate", `Basic realm="shore"`)
			if scheme == "bearer" {
				w.Header().Set("WWW-Authenticate", `Bearer realm="`+s.URL+`/token"`)
			}
			http.Error(w, "no", http.StatusUnauthorized)
			return true
		})
		c := client(t, s, nil)
		for range 20 {
			if err := c.manifestAs(t.Context(), s, Login{"pod", "wrong"}); !Refused(err) {
				t.Errorf("%s: %v", scheme, err)
			}
		}
		if n := offered["pod:wrong"]; n != 1 {
			t.Errorf("%s: wrong credentials were offered %d times, want once", scheme, n)
		}
		if err := c.manifestAs(t.Context(), s, Login{"pod", "right"}); err != nil {
			t.Errorf("%s, the right ones: %v", scheme, err)
		}
		// After a while they are offered once more.
		h := c.hosts["shore.example"][0]
		h.cred.mu.Lock()
		for k, d := range h.cred.denied {
			d.until = time.Now().Add(-time.Second)
			h.cred.denied[k] = d
		}
		h.cred.mu.Unlock()
		for range 5 {
			if err := c.manifestAs(t.Context(), s, Login{"pod", "wrong"}); !Refused(err) {
				t.Errorf("%s: %v", scheme, err)
			}
		}
		if n := offered["pod:wrong"]; n != 2 {
			t.Errorf("%s: wrong credentials were offered %d times, want twice", scheme, n)
		}
	}
}

// Many that are challenged at once lead to one login, and a token service that
// is dead holds them up together and not one after the other.
func TestStormOf401(t *testing.T) {
	s := newShore(t, false)
	var mu sync.Mutex
	logins, dead := 0, true
	s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			mu.Lock()
			logins++
			d := dead
			mu.Unlock()
			if d {
				<-r.Context().Done()
				return true
			}
			return json.NewEncoder(w).Encode(map[string]string{"token": "t"}) == nil
		}
		if r.Header.Get("Authorization") == "Bearer t" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+s.URL+`/token"`)
		http.Error(w, "no", http.StatusUnauthorized)
		return true
	})
	c := client(t, s, nil)
	c.opts.Meter.FirstByte(time.Millisecond)
	ask := func() (errs []error) {
		var wg sync.WaitGroup
		all := make([]error, 50)
		for i := range all {
			wg.Go(func() { all[i] = c.manifestAs(t.Context(), s, Login{}) })
		}
		wg.Wait()
		for _, err := range all {
			if err != nil {
				errs = append(errs, err)
			}
		}
		return errs
	}
	began := time.Now()
	errs := ask()
	if took := time.Since(began); len(errs) != 50 || took > 5*time.Second {
		t.Errorf("%d errors after %v; one stall is 200 ms", len(errs), took)
	}
	for _, err := range errs {
		if !Temporary(err) {
			t.Errorf("dead token service: %v", err)
		}
	}
	mu.Lock()
	logins, dead = 0, false
	mu.Unlock()
	c.opts.Meter.MinStall = time.Minute // 50 handshakes at once are slow on a busy machine, not stalled
	if errs := ask(); len(errs) != 0 || logins != 1 {
		t.Errorf("%d logins, want 1; %v", logins, errs)
	}
}

func FuzzChallenge(f *testing.F) {
	f.Add(`Bearer realm="https://auth.example/token",service="registry",scope="repository:a/b:pull,push"`)
	f.Add(`basic realm=shore , charset="UTF-8"`)
	f.Fuzz(func(t *testing.T, s string) {
		scheme, params := parseChallenge(s)
		if scheme != strings.ToLower(scheme) {
			t.Errorf("scheme %q", scheme)
		}
		if _, ok := params[""]; ok {
			t.Error("a parameter without a name")
		}
	})
}

func TestParseChallenge(t *testing.T) {
	scheme, params := parseChallenge(`Bearer realm="https://auth.example/token",service=reg ,scope="repository:a/b:pull,push"`)
	want := map[string]string{"realm": "https://auth.example/token", "service": "reg", "scope": "repository:a/b:pull,push"}
	if diff := cmp.Diff(want, params); scheme != "bearer" || diff != "" {
		t.Errorf("%q\n%s", scheme, diff)
	}
}
