package e2e

import (
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/airstream-io/airstream/test/rig/node"
	"github.com/airstream-io/airstream/test/rig/registry"
	"github.com/airstream-io/airstream/test/rig/site"
)

// A private image is pulled with a pod's pull secret where the node has no
// credentials: containerd sends the secret to the mirror because the
// mirror asks for it, and the content that is read later comes with it, too.
func TestPullSecret(t *testing.T) {
	for name, auth := range map[string]registry.Auth{"basic": registry.AuthBasic, "token": registry.AuthBearer} {
		t.Run(name, func(t *testing.T) {
			img := publish(t, "redis")
			front := registry.FrontOptions{Auth: auth, Username: "pod", Password: "pull: s3cret", TokenLife: time.Second}
			s := newSite(t, site.Options{Profile: fast(t), Front: front, NoCredentials: true, Config: "[fetch]\nbackground = false\n"})
			ctx := t.Context()
			ref := s.Ref("redis:lazy")
			c, err := s.Node.CRI()
			must(t, err)
			t.Cleanup(func() { must(t, c.Close()) })

			for what, secret := range map[string]*cri.AuthConfig{"none": nil, "wrong": {Username: "pod", Password: "guess"}} {
				_, err := c.PullImage(ctx, ref, secret)
				if err == nil {
					t.Fatalf("pulled with %s secret", what)
				}
				if !strings.Contains(err.Error(), "credentials") {
					t.Errorf("with %s secret the error doesn't speak of credentials: %v", what, err)
				}
			}
			_, err = c.PullImage(ctx, ref, &cri.AuthConfig{Username: "pod", Password: "pull: s3cret"})
			must(t, err)
			// Chunks are read long after the pull, when its token has expired.
			_, err = c.RunUntil(ctx, node.Run{Ref: ref, Ready: img.Ready()})
			must(t, err)
			log, err := s.Log()
			must(t, err)
			if strings.Contains(log, "s3cret") {
				t.Error("the daemon has logged the secret")
			}

			// Dark, the image starts for whoever is on site.
			_, err = s.Run(ctx, "prefetch", ref)
			must(t, err)
			_, err = s.Link.Blackhole(ctx)
			must(t, err)
			for range 2 {
				_, err = c.PullImage(ctx, ref, &cri.AuthConfig{Username: "pod", Password: "pull: s3cret"})
				must(t, err)
			}
		})
	}
}
