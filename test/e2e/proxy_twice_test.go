package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/airstream-io/airstream/test/rig/site"
)

// An image is asked for by its tag again, and made complete, while what its start
// reads is still on its way: that doesn't cross twice.
func TestProxySendsOnceWhatIsAskedForTwice(t *testing.T) {
	sc := proxied(t, profile(t, "rtt=300ms,down=8mbit,up=1mbit"), proxyOnly)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	tg := sc.tracedTarget(t, "proxy-twice", bulkSize)
	before := sc.down(ctx, t)
	_, err := sc.cri.PullImage(ctx, sc.Ref(tg.tag()), nil)
	must(t, err)
	waitUntil(t, "some of it has crossed", func() bool { return sc.down(ctx, t)-before > tg.spec.Size/5 })
	_, err = sc.cri.PullImage(ctx, sc.Ref(tg.tag()), nil)
	must(t, err)
	_, err = sc.Run(ctx, "prefetch", sc.Ref(tg.tag()))
	must(t, err)
	sc.check(t, 0, tg)
	sc.crossedOnce(ctx, t, before, tg, 0)
	sc.alone(t)
}

// tracedTarget is a target whose start reads the first half of its files.
func (sc *scene) tracedTarget(t *testing.T, id string, size int64) *target {
	t.Helper()
	tg := sc.target(t, id, size)
	plain := shore.reg.Host() + "/" + tg.name + ":plain"
	ref, err := name.ParseReference(plain)
	must(t, err)
	desc, err := remote.Get(ref, remote.WithContext(t.Context()))
	must(t, err)
	var reads []string
	files := tg.spec.Files()
	for _, f := range files[:len(files)/2] {
		if f.Size > 0 {
			reads = append(reads, fmt.Sprintf(`{"layer":0,"path":%q,"offset":0,"size":%d}`, f.Path, f.Size))
		}
	}
	text := fmt.Sprintf(`{"version":2,"image":%q,"manifest":%q,"layers":1,"reads":[%s]}`, plain, desc.Digest, strings.Join(reads, ","))
	file := filepath.Join(t.TempDir(), "trace")
	must(t, os.WriteFile(file, []byte(text), 0o600))
	_, err = site.Convert(t.Context(), shore.binary, shore.reg, tg.name+":plain", tg.tag(), "--trace", file)
	must(t, err)
	return tg
}
