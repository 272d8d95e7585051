package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/airstream-io/airstream/test/rig/link"
	"github.com/airstream-io/airstream/test/rig/node"
	"github.com/airstream-io/airstream/test/rig/registry"
	"github.com/airstream-io/airstream/test/rig/site"
)

// A lazy start works with whatever manners the registry has, and goes on with
// them when it takes long: tokens and links end on the way.
func TestLazyStartWithEveryKindOfRegistry(t *testing.T) {
	const life = time.Second // of tokens and links; a start takes several
	for _, tc := range []struct {
		name  string
		front registry.FrontOptions
		short bool // runs with -short, too
	}{
		{name: "tls", front: registry.FrontOptions{TLS: true}},
		{name: "basic", front: registry.FrontOptions{Auth: registry.AuthBasic}},
		{name: "token", front: registry.FrontOptions{Auth: registry.AuthBearer, TokenLife: life}},
		{name: "redirect", front: registry.FrontOptions{Redirect: true, LinkLife: life, StorageRefusesAuth: true}},
		{name: "tls-token-redirect", short: true, front: registry.FrontOptions{
			TLS: true, Auth: registry.AuthBearer, TokenLife: life, Redirect: true, LinkLife: life, StorageRefusesAuth: true,
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if testing.Short() && !tc.short {
				t.Skip("-short: tls-token-redirect stands for all")
			}
			img := publish(t, "redis")
			if tc.front.Auth != registry.AuthNone {
				tc.front.Username, tc.front.Password = "crew", "s3cret: with \"quotes\""
			}
			s := newSite(t, site.Options{Profile: fast(t), Front: tc.front, Config: "[fetch]\nbackground = false\n"})
			ctx := t.Context()
			ref := s.Ref("redis:lazy")

			began := time.Now()
			must(t, s.Node.PullTransfer(ctx, ref, lazySnapshotter))
			_, err := s.Node.RunUntil(ctx, node.Run{Ref: ref, Snapshotter: lazySnapshotter, Ready: img.Ready()})
			must(t, err)
			sent := s.Front.Counts().Sent
			t.Logf("ready after %v, %.1f of %.1f MB", time.Since(began).Round(time.Millisecond), float64(sent)/1e6, float64(img.Compressed)/1e6)
			if sent > img.Compressed*6/10 {
				t.Errorf("%d bytes of %d crossed before it was ready: that is not lazy", sent, img.Compressed)
			}
			_, err = s.Link.SetProfile(ctx, link.Direct())
			must(t, err)
			_, err = s.Run(ctx, "prefetch", ref)
			must(t, err)
			all, err := s.Images(ctx)
			must(t, err)
			if len(all) != 1 || !all[0].Complete {
				t.Errorf("images: %+v", all)
			}
			c := s.Front.Counts()
			if tc.front.Auth == registry.AuthBearer && c.Requests[registry.KindToken] < 2 {
				t.Errorf("%d tokens were asked for: none has ended on the way", c.Requests[registry.KindToken])
			}
			if tc.front.Redirect && (c.Redirects < 2 || c.Requests[registry.KindStorage] == 0) {
				t.Errorf("%d redirects, %d requests of the storage host", c.Redirects, c.Requests[registry.KindStorage])
			}
		})
	}
}

// A registry that sends every blob from its beginning can't be lazy, but it
// must not cost much more than the image, either.
func TestRegistryWithoutRanges(t *testing.T) {
	img := publish(t, "redis")
	s := newSite(t, site.Options{Profile: fast(t), Front: registry.FrontOptions{IgnoreRange: true}, Config: "[fetch]\nbackground = false\n"})
	limit := img.Compressed * 2
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	watch := time.NewTicker(50 * time.Millisecond)
	defer watch.Stop()
	go func() {
		for {
			select {
			case <-watch.C:
				if sent := s.Front.Counts().Sent; sent > limit {
					cancel(fmt.Errorf("%d bytes have crossed for an image of %d", sent, img.Compressed))
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	ref := s.Ref("redis:lazy")
	must(t, s.Node.PullTransfer(ctx, ref, lazySnapshotter))
	_, err := s.Node.RunUntil(ctx, node.Run{Ref: ref, Snapshotter: lazySnapshotter, Ready: img.Ready()})
	must(t, err)
}

// Who may not pull is told so, with the registry's name and what to look at.
func TestPullWithWrongCredentialsSaysSo(t *testing.T) {
	for name, auth := range map[string]registry.Auth{"basic": registry.AuthBasic, "token": registry.AuthBearer} {
		t.Run(name, func(t *testing.T) {
			publish(t, "redis")
			front := registry.FrontOptions{Auth: auth, Username: "crew", Password: "right"}
			s := newSite(t, site.Options{Front: front, Password: "wrong"})
			began := time.Now()
			err := s.Node.PullTransfer(t.Context(), s.Ref("redis:lazy"), lazySnapshotter)
			if err == nil {
				t.Fatal("the pull went through")
			}
			for _, want := range []string{s.Front.Host(), "credentials"} {
				// The command is quoted in the error, and names the registry.
				_, said, _ := strings.Cut(err.Error(), "\n")
				if !strings.Contains(said, want) {
					t.Errorf("the error doesn't say %q:\n%v", want, err)
				}
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("it took %v to say no", took)
			}
		})
	}
}
