package e2e

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/airstream-io/airstream/test/rig/registry"
	"github.com/airstream-io/airstream/test/rig/site"
)

// containerd gives up a request that has had no answer for 30 s. A pull must
// get over an outage that is longer, wherever an answer can begin without the
// link; where it can't, it must fail with the registry's trouble and not with a
// timeout of containerd's own.
func TestPullAndContainerdsLimits(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it waits longer than containerd does")
	}
	push(t, "redis")
	s := newSite(t, site.Options{Profile: fast(t), Config: "[fetch]\nbackground = false\n"})
	ctx := t.Context()
	c, err := s.Node.CRI()
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })

	// The link dies with the first layer's request, for 40 s.
	var once sync.Once
	s.Front.SetHook(func(kind registry.Kind, w http.ResponseWriter, r *http.Request, next http.Handler) {
		if kind == registry.KindBlob && r.Header.Get("Range") != "" {
			once.Do(func() {
				if _, err := s.Link.Blackhole(ctx); err != nil {
					t.Error(err)
				}
				time.AfterFunc(40*time.Second, func() {
					if _, err := s.Link.Restore(ctx); err != nil {
						t.Error(err)
					}
				})
			})
		}
		next.ServeHTTP(w, r)
	})
	began := time.Now()
	_, err = c.PullImage(ctx, s.Ref("redis:plain"), nil)
	must(t, err)
	if took := time.Since(began); took < 40*time.Second {
		t.Errorf("it took %v: the link has not been dark", took)
	}
	s.Front.SetHook(nil)

	_, err = s.Link.Blackhole(ctx)
	must(t, err)
	began = time.Now()
	_, err = c.PullImage(ctx, s.Ref("redis:docker"), nil)
	if err == nil {
		t.Fatal("pulled an image that is not here")
	}
	took := time.Since(began)
	t.Logf("after %v: %v", took.Round(time.Second), err)
	if !strings.Contains(err.Error(), "503") || took > 90*time.Second {
		t.Errorf("after %v: %v", took, err)
	}
	// What is here goes on at once.
	began = time.Now()
	_, err = c.PullImage(ctx, s.Ref("redis:plain"), nil)
	if took := time.Since(began); err != nil || took > 10*time.Second {
		t.Errorf("dark, after %v: %v", took, err)
	}
}
